"""The trained parameters of the published set-ups, on real sizes, without their weights (meta device).

Published: 41.95 M, 48.24 M and 56.64 M for Llama 3.1-8B, Whisper medium and AV-HuBERT Large (Llama-AVSR, arXiv
2409.12319). The delimiters, which their code never trains, are not among them.
"""

from __future__ import annotations

import pytest

from mtsk.checkpoints.shapes import shape_model
from mtsk.paper_recipes import PAPER_RECIPES

ENCODER_LORA = 24 * 2 * 2 * 64 * 1024  # rank 64 on the query and value projections of 24 layers
LORA_8B = 32 * 64 * (4096 + 4096 + 4096 + 1024)
LORA_1B = 16 * 64 * (2048 + 2048 + 2048 + 512)


def _counts(recipe: str) -> dict[str, int]:
    return shape_model(PAPER_RECIPES[recipe]().model).num_trained()


@pytest.mark.parametrize(
    ("recipe", "published"),
    [("llama_avsr_8b_a3", "41.95"), ("llama_avsr_8b_v3", "48.24"), ("llama_avsr_8b_a3v3", "56.64")],
)
def test_published_counts(recipe: str, published: str) -> None:
    counts = _counts(recipe)
    assert counts.pop("delimiters") == 4 * 4096
    assert counts["adapters"] == LORA_8B
    assert counts.get("video_encoder", 0) == (ENCODER_LORA if recipe.endswith("_v3") else 0)
    assert f"{sum(counts.values()) / 1e6:.2f}" == published


@pytest.mark.parametrize("recipe", PAPER_RECIPES)
def test_every_published_set_up_has_the_parameters_of_its_parts(recipe: str) -> None:
    """Counted by hand from the configuration: adapters by strategy, a projector per rate, LoRA in the lip encoder."""
    config = PAPER_RECIPES[recipe]().model
    large = "8B" in config.llm
    num_scales, num_tasks = len(config.grid), len({scale.task for scale in config.grid})
    by_strategy = {"ms": 1, "ss": num_scales, "mss": num_scales + 1, "t": num_tasks, "st": num_tasks + 1}
    num_adapters = by_strategy[config.lora.strategy]
    embedding, hidden = (4096 if large else 2048), config.projector.hidden
    whisper = 1024 if "medium" in (config.audio.source if config.audio else "") else 768
    widths = [(whisper, rate) for rate in config.grid.audio_rates] + [(1024, rate) for rate in config.grid.video_rates]
    num_projectors = 0
    for width, rate in widths:
        inputs = width * rate if config.compression == "stack" else width
        norm = 2 * embedding if config.projector.output_norm else 0
        num_projectors += (inputs + 1) * hidden + (hidden + 1) * embedding + norm
    expected = {
        "adapters": num_adapters * (LORA_8B if large else LORA_1B),
        "projectors": num_projectors,
        "delimiters": 4 * embedding,
    }
    if not config.grid.audio_rates:
        expected["video_encoder"] = ENCODER_LORA
    assert _counts(recipe) == expected
