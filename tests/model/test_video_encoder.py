"""The compact lip encoder: each row as if alone, padding without effect, statistics over real frames only."""

import copy

import pytest
import torch
from torch import nn

from mtsk.model.video_encoder import CompactVideoEncoder
from mtsk.types import Features
from tests.tiny import VIDEO_CONFIG, row_of, tiny_batch, tiny_video_encoder, with_garbage

REACH = 1 + 2 * sum(VIDEO_CONFIG.dilations)  # frames on either side that a feature can see


def _encode(encoder: CompactVideoEncoder, mouth: torch.Tensor, num_frames: torch.Tensor) -> Features:
    with torch.no_grad():
        features: Features = encoder(mouth, num_frames)
    return features


def test_a_row_is_as_if_alone() -> None:
    batch, encoder = tiny_batch(), tiny_video_encoder()
    together = _encode(encoder, batch.mouth_BTHW, batch.num_frames_B)
    assert together.lengths_B.tolist() == [30, 19, 47]
    assert together.values_BTD.shape == (3, 47, encoder.dim)
    for row, length in enumerate(together.lengths_B.tolist()):
        one = row_of(batch, row)
        alone = _encode(encoder, one.mouth_BTHW, one.num_frames_B)
        torch.testing.assert_close(together.values_BTD[row, :length], alone.values_BTD[0], atol=1e-5, rtol=0)
        assert not together.values_BTD[row, length:].any()


def test_what_lies_beyond_a_row_is_not_seen() -> None:
    batch, encoder = tiny_batch(), tiny_video_encoder()
    noisy = with_garbage(batch)
    clean, dirty = (_encode(encoder, one.mouth_BTHW, one.num_frames_B) for one in (batch, noisy))
    torch.testing.assert_close(clean.values_BTD, dirty.values_BTD, atol=1e-6, rtol=0)


def test_statistics_in_training_are_of_real_frames() -> None:
    """In training mode, padding changes neither the output nor what is remembered."""
    batch, first = tiny_batch(), tiny_video_encoder().train()
    for module in first.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    second = copy.deepcopy(first)
    noisy = with_garbage(batch)
    clean = _encode(first, batch.mouth_BTHW, batch.num_frames_B)
    dirty = _encode(second, noisy.mouth_BTHW, noisy.num_frames_B)
    torch.testing.assert_close(clean.values_BTD, dirty.values_BTD, atol=1e-5, rtol=0)
    fresh = dict(tiny_video_encoder().named_buffers())
    for (name, one), other in zip(first.named_buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, fresh[name]), f"{name} did not move in training"


@pytest.mark.parametrize("changed", [0, 20])
def test_a_feature_sees_its_neighbourhood_alone(changed: int) -> None:
    batch, encoder = tiny_batch(), tiny_video_encoder()
    one = row_of(batch, 2)
    other = one.mouth_BTHW.clone()
    other[0, changed] = 255 - other[0, changed]
    before, after = (_encode(encoder, mouth, one.num_frames_B).values_BTD[0] for mouth in (one.mouth_BTHW, other))
    moved = (before - after).abs().amax(dim=1) > 1e-6
    expected = (torch.arange(47) - changed).abs() <= REACH
    assert moved.tolist() == expected.tolist()


def test_rows_without_lips() -> None:
    encoder = tiny_video_encoder()
    mixed = tiny_batch(num_frames=(5, None, 1))
    features = _encode(encoder, mixed.mouth_BTHW, mixed.num_frames_B)
    assert features.lengths_B.tolist() == [5, 0, 1]
    assert bool(torch.isfinite(features.values_BTD).all())
    nothing = tiny_batch(num_frames=(None, None, None))
    features = _encode(encoder, nothing.mouth_BTHW, nothing.num_frames_B)
    assert features.values_BTD.shape == (3, 0, encoder.dim)


def test_half_precision_sees_the_same() -> None:
    batch = tiny_batch()
    exact = _encode(tiny_video_encoder(), batch.mouth_BTHW, batch.num_frames_B).values_BTD
    encoder = tiny_video_encoder().to(torch.bfloat16)
    rounded = _encode(encoder, batch.mouth_BTHW, batch.num_frames_B).values_BTD
    assert rounded.dtype == torch.bfloat16
    assert float(nn.functional.cosine_similarity(exact.flatten(), rounded.float().flatten(), dim=0)) > 0.995


def test_brightness_is_normalised() -> None:
    """A crop of the mean grey is zero for the network, as padding is."""
    encoder = tiny_video_encoder()
    grey = torch.full((1, 3, 96, 96), round(0.421 * 255), dtype=torch.uint8)
    assert float(encoder._normalize(grey).abs().max()) < 0.02
