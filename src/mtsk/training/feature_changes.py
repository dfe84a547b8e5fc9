"""Random changes of frozen features, for variety that a cache of a few views can't have.

Letters: B rows, T steps, D channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mtsk.config import FeatureChangesConfig
from mtsk.model.avsr import Encoded
from mtsk.scale import FEATURE_S
from mtsk.types import Features

_TINY = 1e-5


def changed(encoded: Encoded, config: FeatureChangesConfig) -> Encoded:
    """The features of sound with masks and mixed voices, drawn anew from torch's generator; lips stay as they are."""
    asked = config.voice_prob or config.mask_s
    if not asked or encoded.audio is None or not int(encoded.audio.lengths_B.max()):
        return encoded
    values_BTD, lengths_B = encoded.audio.values_BTD, encoded.audio.lengths_B
    steps_T = torch.arange(values_BTD.shape[1], device=values_BTD.device)
    is_real_BT1 = (steps_T < lengths_B[:, None])[..., None]
    if config.voice_prob:
        values_BTD = _mix_voices(values_BTD, is_real_BT1, config.voice_prob)
    if config.mask_s:
        is_real_BT1 = is_real_BT1 & ~_masks(lengths_B, steps_T, config.mask_s)[..., None]
    return replace(encoded, audio=Features(values_BTD * is_real_BT1, lengths_B))


def _mix_voices(values_BTD: Tensor, is_real_BT1: Tensor, prob: float) -> Tensor:
    """Some rows get mean and spread, per channel over time, between their own and those of a row that is drawn
    (MixStyle, Zhou et al. 2021): what does not change within a recording is the voice, the room and the microphone."""
    dtype, values_BTD = values_BTD.dtype, values_BTD.float()
    num_B11 = is_real_BT1.sum(dim=1, keepdim=True).clamp(min=1)
    mean_B1D = (values_BTD * is_real_BT1).sum(dim=1, keepdim=True) / num_B11
    spread_B1D = ((values_BTD - mean_B1D).square() * is_real_BT1).sum(dim=1, keepdim=True).div(num_B11).sqrt() + _TINY
    device, num_rows = values_BTD.device, len(values_BTD)
    # A row without sound has no voice to give.
    other_B = torch.randperm(num_rows, device=device)
    other_B = torch.where(is_real_BT1.any(dim=1)[other_B, 0], other_B, torch.arange(num_rows, device=device))
    share_B11 = torch.rand(num_rows, 1, 1, device=device) * (torch.rand(num_rows, 1, 1, device=device) < prob)
    mixed_mean, mixed_spread = (s + share_B11 * (s[other_B] - s) for s in (mean_B1D, spread_B1D))
    return ((values_BTD - mean_B1D) * (mixed_spread / spread_B1D) + mixed_mean).to(dtype)


def _masks(lengths_B: Tensor, steps_T: Tensor, mask_s: float) -> Tensor:
    """(B, T), true within one stretch for each second, of up to so long."""
    longest = mask_s / FEATURE_S["audio"]
    num_masks = max(1, round(int(lengths_B.max()) * FEATURE_S["audio"]))
    start_BM = torch.rand(len(lengths_B), num_masks, device=lengths_B.device) * len(steps_T)
    size_BM = torch.rand(len(lengths_B), num_masks, device=lengths_B.device) * longest
    after_BMT = steps_T - start_BM[..., None]
    return ((after_BMT >= 0) & (after_BMT < size_BM[..., None])).any(dim=1)
