"""What an encoder costs, in closed form: two numbers that follow from its layers. A hook for each class of encoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtsk.config import ContextConfig
from mtsk.model.audio_encoder import FFT_SIZE, SAMPLES_PER_FEATURE, WhisperAudioEncoder
from mtsk.model.avhubert import AvHubertEncoder, LowRank
from mtsk.model.context import Context
from mtsk.model.video_encoder import CompactVideoEncoder

_KERNELS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RESIZING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class EncoderShape:
    """What the cost of an encoder depends on: T features cost `T * flops_per_feature + T * T * flops_per_pair`."""

    dim: int  # channels of a feature
    num_parameters: int
    flops_per_feature: int
    flops_per_pair: int = 0
    fixed_features: int | None = None  # so many are always encoded, whatever the length
    max_features: int | None = None

    def flops(self, num_features: int) -> int:
        """For one recording that gives so many features; none is not encoded at all.

        Raises:
            ValueError: if it is longer than the encoder can take.
        """
        if self.max_features is not None and num_features > self.max_features:
            raise ValueError(
                f"{num_features} features of one recording; the encoder takes at most {self.max_features}. "
                "A long recording is cut into segments: add up their costs"
            )
        num = self.num_encoded(num_features)
        return num * self.flops_per_feature + num * num * self.flops_per_pair

    def num_encoded(self, num_features: int) -> int:
        """Features that are computed, those of padding too."""
        return num_features if self.fixed_features is None or num_features == 0 else self.fixed_features


def context_shape(dim: int, config: ContextConfig) -> EncoderShape:
    """What the layers before a projector cost, see `mtsk.model.context`."""
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in Context(dim, config).parameters())
    products = 5 * dim * dim + 2 * dim * config.hidden + config.kernel * dim  # attention, mix; perceptron; convolution
    return EncoderShape(dim, num_parameters, config.num_layers * 2 * products, config.num_layers * 4 * dim)


@functools.singledispatch
def encoder_shape(encoder: nn.Module) -> EncoderShape:
    """What an encoder's cost depends on; may lie on the meta device. Another class of encoder registers its own.

    Raises:
        TypeError: if nobody registered that class.
    """
    raise TypeError(f"the cost of a {type(encoder).__name__} is not known; register it with encoder_shape.register")


@encoder_shape.register
def _(encoder: WhisperAudioEncoder) -> EncoderShape:
    whisper: Any = encoder.encoder
    mel = 2 * encoder.num_bands * (1 + FFT_SIZE // 2)
    # Two mel frames to a feature: the second convolution halves their rate.
    stem = 2 * (mel + 2 * whisper.conv1.weight.numel()) + 2 * whisper.conv2.weight.numel()
    window = encoder.max_samples // SAMPLES_PER_FEATURE
    return EncoderShape(
        dim=encoder.dim,
        num_parameters=num_parameters(whisper),
        flops_per_feature=stem + 2 * _num_kernel_weights(whisper.layers),
        flops_per_pair=4 * encoder.dim * len(whisper.layers),
        fixed_features=window if encoder.window == "30s" else None,
        max_features=window,
    )


@encoder_shape.register
def _(encoder: CompactVideoEncoder) -> EncoderShape:
    frame, _ = chain_flops(encoder.frontend, encoder._INPUT_SIZE)
    return EncoderShape(
        dim=encoder.dim,
        num_parameters=num_parameters(encoder),
        flops_per_feature=frame + 2 * _num_kernel_weights(encoder.temporal),
    )


@encoder_shape.register
def _(encoder: AvHubertEncoder) -> EncoderShape:
    resnet: Any = encoder.feature_extractor_video.resnet
    flops, size = chain_flops(resnet.frontend3D, (encoder.shape.crop_px, encoder.shape.crop_px))
    for block in _blocks(resnet.trunk):
        shortcut, _ = chain_flops(block.downsample.modules(), size)
        inside, size = chain_flops((block.conv1, block.conv2), size)
        flops += inside + shortcut
    rest: tuple[Any, ...] = (encoder.feature_extractor_video.proj, encoder.post_extract_proj, encoder.encoder)
    num_weights = sum(map(_num_kernel_weights, rest))
    num_weights += sum(num_parameters(module) for module in encoder.modules() if isinstance(module, LowRank))
    return EncoderShape(
        dim=encoder.dim,
        num_parameters=num_parameters(encoder),
        flops_per_feature=flops + 2 * num_weights,
        flops_per_pair=4 * encoder.dim * encoder.shape.num_layers,
    )


def _blocks(trunk: nn.Sequential) -> list[Any]:
    return [block for stage in trunk if isinstance(stage, nn.Sequential) for block in stage]


def chain_flops(layers: Iterable[nn.Module], size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Operations of layers that follow each other, for one input of this spatial size, and the size that comes out.

    Convolutions and pooling change the size, a linear layer sees the flattened whole, anything else is free.
    """
    flops = 0
    for layer in layers:
        if isinstance(layer, _RESIZING):
            size = output_size(layer, size)
        if isinstance(layer, _KERNELS):
            num_places = 1 if isinstance(layer, nn.Linear) else math.prod(size)
            flops += 2 * num_places * layer.weight.numel()
    return flops, size


def output_size(layer: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial size after a convolution or pooling."""
    names = ("kernel_size", "stride", "padding", "dilation")
    options = [_per_dimension(getattr(layer, name), len(size)) for name in names]
    return tuple(
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for n, kernel, stride, padding, dilation in zip(size, *options, strict=True)
    )


def _per_dimension(value: int | tuple[int, ...], num_dimensions: int) -> tuple[int, ...]:
    return (value,) * num_dimensions if isinstance(value, int) else value


def num_parameters(module: nn.Module) -> int:
    """Of a module and all within."""
    return sum(weight.numel() for weight in module.parameters())


def _num_kernel_weights(module: nn.Module) -> int:
    """Of linear layers and convolutions, each of which is used once for every step in time."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, _KERNELS))
