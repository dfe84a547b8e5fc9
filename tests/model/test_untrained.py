"""Scales that a model was not trained at: refused, averaged from the tokens of a finer one, or read in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtsk.config import ProjectorConfig, Untrained
from mtsk.inference.engine import Engine
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel, Reading
from mtsk.model.compress import average, average_tokens
from mtsk.model.fusion import IGNORED
from mtsk.scale import Scale
from mtsk.types import Batch
from tests.tiny import (
    TEXTS,
    row_of,
    tiny_batch,
    tiny_config,
    tiny_examples,
    tiny_llm,
    tiny_model,
    tiny_video_encoder,
    tiny_whisper,
)

GRID = ("a4", "a16", "v2", "v5", "a4v2", "a16v5")
MIXED = [Scale.parse(text) for text in ("a8v3", "v4", "a6")]


def _model(untrained: Untrained, strategy: str = "mss", compression: str = "average") -> AvsrModel:
    model = tiny_model(strategy, compression, scales=GRID)
    model.untrained = untrained
    return model


@torch.no_grad()
def _label_logits(model: AvsrModel, batch: Batch, scales: list[Scale]) -> list[Tensor]:
    """For each row the logits at its labels."""
    prediction = model(model.encode(batch, scales), scales, batch.texts)
    rows = zip(prediction.logits_BLV, prediction.labels_BL, strict=True)
    return [logits[labels != IGNORED] for logits, labels in rows]


def test_readings() -> None:
    """Which adapters, and at which rates the projectors read."""

    def reading(untrained: Untrained, text: str) -> tuple[str, str]:
        found: Reading = _model(untrained).reading(Scale.parse(text))
        return str(found.trained), str(found.projected)

    for text in GRID:
        assert reading("refuse", text) == reading("pool", text) == reading("between", text) == (text, text)
    assert reading("pool", "a8") == ("a4", "a4")
    assert reading("pool", "a20v9") == ("a16v5", "a16v5")
    assert reading("between", "a8") == ("a4", "a8")
    assert reading("between", "a20v9") == ("a16v5", "a20v9")
    for text in ("a8", "v4", "a4v5"):
        with pytest.raises(ValueError, match=f"{text} was not trained"):
            reading("refuse", text)
    for untrained in ("pool", "between"):
        with pytest.raises(ValueError, match="no trained scale is as fine as a3"):
            reading(untrained, "a3")


@pytest.mark.parametrize("untrained", ["pool", "between"])
@pytest.mark.parametrize("strategy", ["ms", "ss", "mss"])
def test_a_row_is_as_if_alone(untrained: Untrained, strategy: str) -> None:
    """Trained and untrained scales in one batch, or one by one."""
    model, batch = _model(untrained, strategy), tiny_batch()
    for scales in (MIXED, [Scale.parse("a4v2"), MIXED[0], Scale.parse("v5")]):
        together = _label_logits(model, batch, scales)
        for row, scale in enumerate(scales):
            alone = _label_logits(model, row_of(batch, row), [scale])[0]
            torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("untrained", ["pool", "between"])
def test_trained_scales_are_read_as_ever(untrained: Untrained) -> None:
    batch = tiny_batch()
    for text in GRID:
        scales = [Scale.parse(text)] * 3
        expected, found = (_label_logits(_model(how), batch, scales) for how in ("refuse", untrained))
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


@torch.no_grad()
def _audio_tokens(model: AvsrModel, batch: Batch, text: str) -> list[Tensor]:
    """The sound's tokens of each row at a scale, as `embed` makes them."""
    seen: list[list[Tensor]] = []
    fuse = model.fusion.forward

    def recorded(sequences: object, audio: list[Tensor], video: list[Tensor], table: Tensor) -> object:
        seen.append(audio)
        return fuse(sequences, audio, video, table)  # type: ignore[arg-type]

    model.fusion.forward = recorded  # type: ignore[method-assign,assignment]
    scales = [Scale.parse(text)] * len(batch)
    model.embed(model.encode(batch, scales), scales, [[]] * len(batch))
    model.fusion.forward = fuse  # type: ignore[method-assign]
    return seen[0]


@pytest.mark.parametrize("compression", ["average", "stack"])
@pytest.mark.parametrize(("text", "rate"), [("a8", 4), ("a12", 4), ("a48", 16), ("a6", 4), ("a10", 4)])
@torch.no_grad()
def test_pooled_tokens_are_averages_of_the_projected_ones(compression: str, text: str, rate: int) -> None:
    model, batch = _model("pool", compression=compression), tiny_batch(durations_s=(1.31, 1.0, 2.0))
    wanted = Scale.parse(text).audio
    assert wanted is not None
    features = model.encode(batch, [Scale(rate)]).audio
    assert features is not None
    projected = model.rate_projectors()["audio"](features, rate)
    expected = average_tokens(projected, rate, wanted, features.lengths_B // wanted)
    found = _audio_tokens(model, batch, text)
    for row, tokens_KE in enumerate(found):
        length = int(features.lengths_B[row]) // wanted
        assert len(tokens_KE) == length
        torch.testing.assert_close(tokens_KE, expected.values_BTD[row, :length], atol=1e-6, rtol=1e-5)
        if wanted % rate == 0:
            pooled = average(projected.rows([row]), wanted // rate).values_BTD[0]
            torch.testing.assert_close(tokens_KE, pooled[:length], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_between_compresses_first_and_blends_the_projectors() -> None:
    model, batch = _model("between"), tiny_batch()
    features = model.encode(batch, [Scale(4)]).audio
    assert features is not None
    compressed = average(features, 8).values_BTD
    at_rate = model.rate_projectors()["audio"].at_rate
    expected = (at_rate["4"](compressed) + at_rate["16"](compressed)) / 2  # 8 is in the middle as factors go
    for row, tokens_KE in enumerate(_audio_tokens(model, batch, "a8")):
        torch.testing.assert_close(tokens_KE, expected[row, : len(tokens_KE)], atol=1e-6, rtol=1e-5)


def test_between_stacks_is_refused() -> None:
    model, batch = _model("between", compression="stack"), tiny_batch()
    with pytest.raises(ValueError, match="stacked features can't be read at rate 8"):
        _label_logits(model, batch, [Scale.parse("a8")] * 3)


@pytest.mark.parametrize("untrained", ["pool", "between"])
@torch.no_grad()
def test_the_adapters_are_those_of_the_stand_in(untrained: Untrained) -> None:
    """Changing them changes a scale's logits; changing those of other scales does not."""
    model, batch = _model(untrained, "ss"), tiny_batch()
    scale = Scale.parse("a8")
    before = _label_logits(model, batch, [scale] * 3)
    own = list(model.grid).index(Scale.parse("a4"))
    for adapter, changes in [(other, False) for other in range(len(GRID)) if other != own] + [(own, True)]:
        for layer in model.adapters.layers.values():
            layer.up_AOR[adapter] += 0.1
        after = _label_logits(model, batch, [scale] * 3)
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True)) != changes


def test_too_short_a_row_is_refused_at_the_rate_that_was_asked_for() -> None:
    model, batch = _model("pool"), tiny_batch(durations_s=(1.31, 0.3, 2.0))
    with pytest.raises(ValueError, match="too short: 15 audio features give no token at rate 20"):
        _label_logits(model, batch, [Scale.parse("a20")] * 3)


@pytest.mark.parametrize("untrained", ["pool", "between"])
def test_through_the_engine(untrained: Untrained) -> None:
    """Decoding at an untrained scale, in a batch or alone; each reading writes a text of its own."""
    examples = tiny_examples()
    engine = Engine(tiny_model("mss", scales=GRID), device="cpu", dtype=torch.float32)
    encoded = engine.encode(examples)
    scale = Scale.parse("a8v3")
    with pytest.raises(ValueError, match="a8v3 was not trained"):
        engine.decode(encoded, scale)
    engine.model.untrained = untrained
    assert engine.usable(encoded, scale) == [0, 1, 2]
    texts = engine.decode(encoded, scale)
    assert texts == [engine.decode(engine.encode([example]), scale)[0] for example in examples]
    assert any(texts)
    assert texts != engine.decode(encoded, Scale.parse("a4v2"))


def test_shared_and_blended_projectors_read_every_trained_scale() -> None:
    """A grid of many rates with one projector for sound, and two for lips."""
    base = tiny_config(scales=["a4", "a6", "a16", "v1", "v3", "v5", "a6v3"])
    projector = ProjectorConfig(hidden=48, audio_rates=(4,), video_rates=(1, 5))
    config = replace(base, projector=projector)
    torch.manual_seed(0)
    model = AvsrModel(config, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), tiny_video_encoder())
    assert {name: at.rates for name, at in model.rate_projectors().items()} == {"audio": (4,), "video": (1, 5)}
    scales = [Scale.parse(text) for text in ("a6v3", "v3", "a16")]
    batch = tiny_batch()
    together = _label_logits(model, batch, scales)
    for row, scale in enumerate(scales):
        alone = _label_logits(model, row_of(batch, row), [scale])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-5)
    prediction = model(model.encode(batch, scales), scales, TEXTS[:3])
    torch.autograd.backward(prediction.logits_BLV.square().mean())
    gradients = {n: p.grad for n, p in model.projectors.named_parameters()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
