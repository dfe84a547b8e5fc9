"""Padding: which steps are real, and making the others zero. Letters: B rows, T steps, D channels."""

from __future__ import annotations

import torch
from torch import Tensor


def inside(lengths_B: Tensor, num_steps: int) -> Tensor:
    """(B, T) bool, true where a step belongs to the row."""
    return torch.arange(num_steps, device=lengths_B.device) < lengths_B[:, None]


def zero_beyond(values_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """The values with zeros beyond each row's length, whatever was there."""
    return values_BTD.masked_fill(~inside(lengths_B, values_BTD.shape[1])[..., None], 0.0)


def additive_mask(lengths_B: Tensor, values_BTD: Tensor) -> Tensor | None:
    """(B, 1, T, T) for scaled dot-product attention, very negative at padded keys; None where nothing is padded."""
    num_steps = values_BTD.shape[1]
    if bool((lengths_B == num_steps).all()):
        return None
    blocked_BT = ~inside(lengths_B, num_steps)
    lowest = torch.finfo(values_BTD.dtype).min
    mask_B1T = torch.zeros_like(blocked_BT, dtype=values_BTD.dtype).masked_fill(blocked_BT, lowest)[:, None]
    return mask_B1T[:, None].expand(-1, 1, num_steps, -1)
