"""Costs from a configuration and the base models' folders alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtsk.checkpoints.shapes import load_cost_model, model_cost
from mtsk.checkpoints.sources import is_cached
from mtsk.checkpoints.store import build_model
from mtsk.config import AvHubertConfig, to_dict
from mtsk.model.avhubert import CONFIG_FILE, MODEL_TYPE, AvHubertEncoder, AvHubertShape
from mtsk.model.cost import CostModel
from mtsk.model.encoder_cost import encoder_shape
from mtsk.recipes import get_recipe
from mtsk.scale import Scale
from tests.tiny import save_tiny_bases, tiny_config

SCALE = Scale(4, 2)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_same_as_of_the_built_model(tmp_path: Path, kind: str) -> None:
    config = tiny_config("mss", sources=save_tiny_bases(tmp_path, kind), window="30s")
    built = CostModel.of_model(build_model(config))
    assert load_cost_model(config, bytes_per_value=4) == built


def test_needs_no_weights(tmp_path: Path) -> None:
    config = tiny_config(sources=save_tiny_bases(tmp_path))
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    cost = model_cost(config, SCALE, 3.0)
    assert cost.stages["prefill"].num_tokens > 37 + 37
    assert cost.stages["decode"].num_tokens == 10  # of ordinary speech
    assert model_cost(config, SCALE, 3.0, num_text_tokens=20).total_flops > cost.total_flops


@pytest.mark.parametrize("lora_rank", [None, 8])
def test_av_hubert_by_its_folder(tmp_path: Path, lora_rank: int | None) -> None:
    shape = AvHubertShape(num_layers=2, width=64, ffn_width=128, num_heads=4)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_type": MODEL_TYPE, **to_dict(shape)}), encoding="utf-8")
    video = AvHubertConfig(str(tmp_path), lora_rank=lora_rank)
    config = replace(tiny_config(sources=save_tiny_bases(tmp_path)), video=video)
    encoder = AvHubertEncoder(shape)
    if lora_rank is not None:
        encoder.add_adapters(lora_rank, alpha=8.0)
    assert load_cost_model(config).encoders["v"] == encoder_shape(encoder)


@pytest.mark.weights
def test_the_default_model() -> None:
    config = get_recipe("grid-s1").model
    if not all(map(is_cached, ("whisper-base", "smollm2-135m-instruct"))):
        pytest.skip("needs the base weights in the cache (`make weights` fetches them)")
    costs = load_cost_model(config)
    assert costs.llm.num_parameters + costs.llm.num_head_weights == 134_515_008  # tied: head and embeddings are one
    fine, coarse = (costs.cost(scale, 3.0).stages for scale in (SCALE, Scale(16, 5)))
    assert fine["audio_encoder"] == coarse["audio_encoder"]
    assert fine["prefill"].num_tokens - coarse["prefill"].num_tokens == (37 + 37) - (9 + 15)
