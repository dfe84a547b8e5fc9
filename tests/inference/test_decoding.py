"""Greedy decoding: a mixed batch writes what each row writes alone, and what a loop without a cache writes."""

from dataclasses import replace

import pytest
import torch

from mtsk.inference.decoding import greedy
from mtsk.model.avsr import AvsrModel
from mtsk.scale import Scale
from mtsk.types import Batch
from tests.tiny import row_of, tiny_batch, tiny_model

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]
LIMITS = [9, 14, 5]


@torch.inference_mode()
def _greedy(model: AvsrModel, batch: Batch, scales: list[Scale], limits: list[int]) -> list[list[int]]:
    inputs = model.embed(model.encode(batch, scales), scales, [[]] * len(scales))
    return greedy(model, inputs, scales, limits)


@torch.no_grad()
def _naive(model: AvsrModel, batch: Batch, scale: Scale, limit: int) -> list[int]:
    """One row, the whole sequence computed again for each token."""
    encoded = model.encode(batch, [scale])
    written: list[int] = []
    while len(written) < limit:
        inputs = model.embed(encoded, [scale], [written])
        with model.adapters.select([scale], "cpu"):
            best = int(model.llm(inputs_embeds=inputs.embeds_BSE).logits[0, -1].argmax())
        if best == model.prompts.vocabulary.eos:
            break
        written.append(best)
    return written


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("strategy", ["ms", "ss", "mss"])
def test_a_mixed_batch_writes_what_each_row_writes_alone(kind: str, strategy: str) -> None:
    model, batch = tiny_model(strategy, kind=kind), tiny_batch()
    together = _greedy(model, batch, SCALES, LIMITS)
    assert [len(row) for row in together] == LIMITS, "chosen so that no row ends by itself"
    assert len({tuple(row[:5]) for row in together}) == 3, "the rows must differ to tell them apart"
    for row, (scale, limit) in enumerate(zip(SCALES, LIMITS, strict=True)):
        alone = row_of(batch, row)
        assert _greedy(model, alone, [scale], [limit]) == [together[row]]
        assert _naive(model, alone, scale, limit) == together[row]


def test_a_row_ends_at_the_end_of_sequence_and_the_others_go_on() -> None:
    model, batch = tiny_model("mss"), tiny_batch()
    before = _greedy(model, batch, SCALES, LIMITS)
    # Let the third token of the second row be the end of sequence from now on.
    eos = before[1][2]
    model.prompts.vocabulary = replace(model.prompts.vocabulary, eos=eos)
    after = _greedy(model, batch, SCALES, LIMITS)
    for row in range(3):
        end = before[row].index(eos) if eos in before[row] else len(before[row])
        assert after[row] == before[row][:end]
    assert len(after[1]) <= 2


def test_limits() -> None:
    model, batch = tiny_model(), tiny_batch()
    full = _greedy(model, batch, SCALES, LIMITS)
    assert _greedy(model, batch, SCALES, [0, 0, 0]) == [[], [], []]
    assert _greedy(model, batch, SCALES, [0, 3, 1]) == [[], full[1][:3], full[2][:1]]


@torch.inference_mode()
def test_untrained_scale_is_refused() -> None:
    model, batch = tiny_model(), tiny_batch()
    inputs = model.embed(model.encode(batch, SCALES), SCALES, [[]] * 3)
    with pytest.raises(ValueError, match="a8 was not trained"):
        greedy(model, inputs, [Scale.parse("a8")] * 3, LIMITS)
