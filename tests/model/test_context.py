"""Layers before the projectors: the same alone and in a batch, nothing at first, and counted by the cost model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtsk.checkpoints.store import load_model, save_model
from mtsk.config import ContextConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.context import Context, _Layer
from mtsk.scale import Scale
from mtsk.types import Features
from tests.tiny import save_tiny_bases, tiny_config, tiny_llm, tiny_video_encoder, tiny_whisper

DIM = 16
CONFIG = ContextConfig(num_layers=2, num_heads=2, hidden=24, kernel=5)


def _drawn() -> Context:
    torch.manual_seed(0)
    context = Context(DIM, CONFIG).eval()
    for parameter in context.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return context


def _features(lengths: list[int]) -> Features:
    values_BTD = torch.randn(len(lengths), max(lengths), DIM, generator=torch.Generator().manual_seed(1))
    return Features(values_BTD, torch.tensor(lengths))


def test_sound_that_is_too_short_for_a_feature() -> None:
    assert _drawn()(_features([0, 0])).values_BTD.shape == (2, 0, DIM)


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """Whatever stands in the padding."""
    context, features = _drawn(), _features([9, 3, 1, 12])
    together = context(features)
    for row, length in enumerate(features.lengths_B.tolist()):
        alone = context(Features(features.values_BTD[row : row + 1, :length], torch.tensor([length])))
        torch.testing.assert_close(together.values_BTD[row, :length], alone.values_BTD[0], atol=1e-5, rtol=1e-5)
        assert not together.values_BTD[row, length:].any()


def test_every_step_hears_the_others() -> None:
    context, features = _drawn(), _features([12])
    before = context(features).values_BTD
    features.values_BTD[0, 11, 0] += 3.0
    assert bool(((context(features).values_BTD - before)[0].abs().amax(dim=-1) > 0).all())


def test_fresh_layers_only_normalise() -> None:
    features = _features([7, 4])
    found = Context(DIM, CONFIG).eval()(features).values_BTD
    expected = torch.nn.functional.layer_norm(features.values_BTD, (DIM,))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1, :4], expected[1, :4])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads is 3; allowed are divisors of 16"):
        Context(DIM, replace(CONFIG, num_heads=3))


def test_a_checkpoint_has_the_layers(tmp_path: Path) -> None:
    config = tiny_config(sources=save_tiny_bases(tmp_path))
    config = replace(config, projector=replace(config.projector, audio_context=replace(CONFIG, num_heads=4)))
    model = AvsrModel(config, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), tiny_video_encoder())
    names = [name for name in model.trained_parameters() if name.startswith("projectors.audio.context.")]
    assert names
    with torch.no_grad():
        for name in names:
            torch.nn.init.normal_(model.trained_parameters()[name])
    save_model(model, tmp_path / "saved", dtype=torch.float32)
    loaded = load_model(tmp_path / "saved").trained_parameters()
    for name in names:
        torch.testing.assert_close(loaded[name], model.trained_parameters()[name])
    assert Scale(4, 2) in model.grid


def test_the_convolution_is_that_of_its_weights() -> None:
    layer = _Layer(8, ContextConfig(num_layers=1, num_heads=2, hidden=16, kernel=5))
    values_BTD = torch.randn(2, 11, 8)
    expected = layer.conv(values_BTD.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(layer._convolve(values_BTD), expected)
