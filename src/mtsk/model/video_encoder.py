"""The lip encoder: mouth crops -> 25 features a second. `VideoEncoder` is what every lip encoder offers.

Letters: B rows, T frames, H and W pixels, P real frames of all rows together, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtsk.config import CompactVideoConfig
from mtsk.model.masking import inside, zero_beyond
from mtsk.types import Features

PIXEL_MEAN, PIXEL_STD = 0.421, 0.165  # of grey mouth crops in [0, 1] (AV-HuBERT, arXiv 2201.02184)


class VideoEncoder(nn.Module, ABC):
    """Mouth crops -> one feature per frame, each row as if alone."""

    dim: int  # channels of a feature

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What training makes of it, by name: all of it, unless it is a base model."""
        return dict(self.named_parameters())

    @abstractmethod
    def forward(self, mouth_BTHW: Tensor, num_frames_B: Tensor) -> Features:
        """Encodes uint8 crops of 96 x 96 grey pixels at 25 frames a second."""


class CompactVideoEncoder(VideoEncoder):
    """A convolutional lip encoder that trains from scratch in minutes on a laptop.

    Each frame, with its two neighbours as channels, goes through three 2-D convolutions; dilated 1-D convolutions then
    look along time. Normalising by batch statistics happens over real frames only.
    """

    _CROP_TOP, _CROP_HEIGHT = 15, 66  # the lips with some cheek; chin and nose are left out
    _INPUT_SIZE = (44, 64)

    def __init__(self, config: CompactVideoConfig) -> None:
        super().__init__()
        first, second, third = config.channels
        self.dim = config.width
        self.frontend = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(second, third, 3, padding=1, bias=False),
            nn.BatchNorm2d(third),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(third * 5 * 8, config.width),
            nn.Dropout(config.dropout),
        )
        self.temporal = nn.ModuleList(_TemporalBlock(config.width, d, config.dropout) for d in config.dilations)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, mouth_BTHW: Tensor, num_frames_B: Tensor) -> Features:
        """See `VideoEncoder`."""
        if not num_frames_B.any():
            return Features(self.norm.weight.new_zeros(len(num_frames_B), 0, self.dim), num_frames_B)
        frames_BTHW = self._normalize(mouth_BTHW[:, : int(num_frames_B.max())])
        real_BT = inside(num_frames_B, frames_BTHW.shape[1])
        frames_BTHW = frames_BTHW * real_BT[..., None, None]
        around_BTHW = functional.pad(frames_BTHW, (0, 0, 0, 0, 1, 1))
        triples_BT3HW = torch.stack((around_BTHW[:, :-2], frames_BTHW, around_BTHW[:, 2:]), dim=2)
        triples_P3HW = triples_BT3HW[real_BT].contiguous(memory_format=torch.channels_last)
        hidden_PD = self.frontend(triples_P3HW)
        hidden_BTD = hidden_PD.new_zeros(*real_BT.shape, self.dim)
        hidden_BTD[real_BT] = hidden_PD
        for block in self.temporal:
            hidden_BTD = block(hidden_BTD, num_frames_B)
        return Features(zero_beyond(self.norm(hidden_BTD), num_frames_B), num_frames_B)

    def _normalize(self, mouth_BTHW: Tensor) -> Tensor:
        # In float32: processors have no antialiased resizing in lower precision.
        lips = mouth_BTHW[..., self._CROP_TOP : self._CROP_TOP + self._CROP_HEIGHT, :].float() / 255.0
        small = functional.interpolate(lips, self._INPUT_SIZE, mode="bilinear", antialias=True, align_corners=False)
        return ((small - PIXEL_MEAN) / PIXEL_STD).to(self.norm.weight.dtype)


class _TemporalBlock(nn.Module):
    """Residual: normalise, dilated convolution over time, ReLU, mix channels."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        normed_BTD = zero_beyond(self.norm(x_BTD), lengths_B)
        mixed_BTD = functional.relu(self.conv(normed_BTD.transpose(1, 2)).transpose(1, 2))
        out_BTD: Tensor = x_BTD + self.dropout(self.mix(mixed_BTD))
        return out_BTD
