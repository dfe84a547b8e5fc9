"""Compression along time: `rate` consecutive features become one. An incomplete last group is dropped.

Source: Cappellazzo et al. 2025 (arXiv 2503.06362), section 3.1. Letters: B rows, T steps, K tokens, R rate, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtsk.model.masking import inside, zero_beyond
from mtsk.types import Features


def average(features: Features, rate: int) -> Features:
    """Mean of each group: (B, T, D) -> (B, T // rate, D). Rates nest: a then b equals a * b."""
    return _grouped(features, rate, lambda groups_BKRD: groups_BKRD.mean(dim=2))


def stack(features: Features, rate: int) -> Features:
    """Each group side by side on the channels, in time order: (B, T, D) -> (B, T // rate, rate * D)."""
    return _grouped(features, rate, lambda groups_BKRD: groups_BKRD.flatten(2))


def average_tokens(tokens: Features, rate: int, wanted_rate: int, num_tokens_B: Tensor) -> Features:
    """Tokens of one rate averaged further along time, into those of a coarser rate: the training-free baseline.

    Each coarse token is the mean of the tokens that it covers, by the share of its time that each has; where the rates
    divide, this is plain average pooling. (B, K, D) -> (B, K', D).

    Args:
        tokens: of `rate`.
        wanted_rate: at least `rate`.
        num_tokens_B: coarse tokens of each row, so many as the features have at `wanted_rate`.
    """
    num_fine, num_coarse = tokens.values_BTD.shape[1], int(num_tokens_B.max())
    device = tokens.values_BTD.device
    starts_K = torch.arange(num_coarse, device=device)[:, None] * (wanted_rate / rate)
    fine_K = torch.arange(num_fine, device=device)[None]
    ends = torch.minimum(starts_K + wanted_rate / rate, fine_K + 1)
    shares_KK = (ends - torch.maximum(starts_K, fine_K)).clamp(min=0)
    # The last coarse token of a row may reach past its last fine one.
    shares_BKK = shares_KK * inside(tokens.lengths_B, num_fine)[:, None]
    shares_BKK = shares_BKK / shares_BKK.sum(dim=2, keepdim=True).clamp(min=1e-9)
    averaged_BKD = shares_BKK.to(tokens.values_BTD.dtype) @ tokens.values_BTD
    return Features(zero_beyond(averaged_BKD, num_tokens_B), num_tokens_B)


def _grouped(features: Features, rate: int, merge: Callable[[Tensor], Tensor]) -> Features:
    if rate < 1:
        raise ValueError(f"a compression rate is a whole number from 1 up, not {rate}")
    num_tokens = features.values_BTD.shape[1] // rate
    num_rows, _, dim = features.values_BTD.shape
    groups_BKRD = features.values_BTD[:, : num_tokens * rate].reshape(num_rows, num_tokens, rate, dim)
    lengths_B = features.lengths_B // rate
    return Features(zero_beyond(merge(groups_BKRD), lengths_B), lengths_B)


@dataclass(frozen=True)
class Compressor:
    """A way to compress, and how much wider it makes the features."""

    compress: Callable[[Features, int], Features]
    width: Callable[[int, int], int]  # (channels, rate) -> channels after compression


COMPRESSORS: dict[Literal["average", "stack"], Compressor] = {
    "average": Compressor(average, lambda dim, _: dim),
    "stack": Compressor(stack, lambda dim, rate: dim * rate),
}
