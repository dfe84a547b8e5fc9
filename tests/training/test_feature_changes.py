"""Masks on features, and voices that mix."""

import pytest
import torch

from mtsk.config import FeatureChangesConfig
from mtsk.model.avsr import Encoded
from mtsk.training.feature_changes import changed
from mtsk.types import Features

LENGTHS = [300, 120, 0]


def _encoded() -> Encoded:
    torch.manual_seed(0)
    values_BTD = torch.randn(3, 300, 16) * torch.tensor([1.0, 3.0, 1.0])[:, None, None] + torch.arange(3)[:, None, None]
    lengths_B = torch.tensor(LENGTHS)
    values_BTD *= (torch.arange(300) < lengths_B[:, None])[..., None]
    return Encoded(Features(values_BTD, lengths_B), Features(torch.ones(3, 5, 2), torch.tensor([5, 5, 5])))


def _audio(encoded: Encoded) -> torch.Tensor:
    assert encoded.audio is not None
    return encoded.audio.values_BTD


def test_without_changes_they_stay_as_they_are() -> None:
    before = _encoded()
    after = changed(before, FeatureChangesConfig())
    assert after is before


def test_masks_are_of_the_asked_size() -> None:
    before, after = _audio(_encoded()), _audio(changed(_encoded(), FeatureChangesConfig(mask_s=0.4)))
    is_kept_BT = (after == before).all(dim=2)
    assert bool((is_kept_BT | (after == 0).all(dim=2)).all()), "a step stays, or is nothing"
    masked_T = (~is_kept_BT[0]).long()
    # Six masks of 0 to 20 steps: about a fifth, less what they have in common.
    assert 0.05 < float(masked_T.float().mean()) < 0.4
    assert 1 <= int((masked_T.diff() == 1).sum()) <= 6


def test_a_voice_goes_towards_another_of_the_batch() -> None:
    before = _audio(_encoded())
    for seed in range(20):
        torch.manual_seed(seed)
        encoded = _encoded()
        torch.manual_seed(seed)
        after = _audio(changed(encoded, FeatureChangesConfig(voice_prob=1.0)))
        assert not after[0, 300:].any()
        assert not after[1, 120:].any()
        assert not after[2].any(), "a row without sound gets none"
        row, length = after[0], LENGTHS[0]
        mean, spread = row.mean(), row.std(dim=0).mean()
        assert before[0].mean() - 0.1 <= mean <= before[1, :120].mean() + 0.1
        assert before[0].std(dim=0).mean() - 0.1 <= spread <= before[1, :120].std(dim=0).mean() + 0.1
        if abs(float(mean - before[0].mean())) > 0.2:
            break
    else:
        pytest.fail("no voice was mixed")
    # What is said stays: every channel is the same but for its mean and spread.
    together = torch.corrcoef(torch.stack((row[:length, 3], before[0, :length, 3])))
    assert float(together[0, 1]) > 0.999


def test_half_precision_stays_and_does_not_overflow() -> None:
    values_BTD = (torch.randn(2, 1500, 8) * 10).half()
    encoded = Encoded(Features(values_BTD, torch.tensor([1500, 900])), None)
    after = _audio(changed(encoded, FeatureChangesConfig(0.2, 1.0)))
    assert after.dtype == torch.float16
    assert bool(after.isfinite().all())


def test_a_batch_without_sound_stays() -> None:
    silent = Encoded(Features(torch.zeros(2, 0, 4), torch.tensor([0, 0])), None)
    assert changed(silent, FeatureChangesConfig(0.3, 0.5)) is silent
    assert changed(Encoded(None, None), FeatureChangesConfig(0.3, 0.5)).audio is None
