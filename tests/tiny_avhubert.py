"""Tiny AV-HuBERTs: shapes, and random weights as they are published."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from mtsk.model.avhubert import AvHubertEncoder, AvHubertShape

TINY = AvHubertShape(
    num_layers=2, width=32, ffn_width=48, num_heads=4, position_kernel=8, position_groups=4, crop_px=32
)
POST_NORM = replace(TINY, norm_first=False)


@functools.cache
def published(shape: AvHubertShape, seed: int = 0) -> dict[str, Tensor]:
    """Random weights as fairseq names them, with convolutional positions that are not small."""
    rng = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, value in AvHubertEncoder(shape).state_dict().items():
        drawn = torch.randn(value.shape, generator=rng)
        if name.endswith("num_batches_tracked"):
            state[name] = value
        elif name.endswith("running_var"):
            state[name] = drawn.abs() + 0.5
        elif value.ndim == 1 and name.endswith("weight"):
            state[name] = 1 + 0.3 * drawn  # far from 1, so that a missing normalisation shows
        else:
            state[name] = drawn * (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.3 * drawn
    first = "feature_extractor_video.resnet.frontend3D.0.weight"
    state[first] = state[first].unsqueeze(1)
    direction = state.pop("encoder.pos_conv.0.weight")
    state["encoder.pos_conv.0.weight_v"] = direction
    state["encoder.pos_conv.0.weight_g"] = 1 + torch.rand(1, 1, direction.shape[2], generator=rng)
    return state
