"""The AV-HuBERT lip encoder: a ResNet-18 per frame, then a transformer over time; frozen, with optional adapters.

Source: Shi et al. 2022 (arXiv 2201.02184). Modules have the names of the published weights, which others' checkpoints
use too (`mtsk.checkpoints.avhubert` converts them). The branch for sound is left out: its half of the input is zero.

Letters: B rows, T frames, H and W pixels, P real frames of all rows together, D channels, N heads, K channels of a
head, R rank, F channels inside of the feed-forward block.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mtsk.config import AvHubertConfig, from_dict
from mtsk.model.attention import attention
from mtsk.model.masking import additive_mask, inside, zero_beyond
from mtsk.model.video_encoder import PIXEL_MEAN, PIXEL_STD, VideoEncoder
from mtsk.types import MOUTH_SIZE_PX, Features

MODEL_TYPE = "avhubert"  # in the `config.json` of converted weights
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_REACH = 2  # frames on either side that the first convolution sees
_CHUNK = 256  # frames that go through the ResNet at once: bounds the memory, some 0.4 GB in float32


@dataclass(frozen=True)
class AvHubertShape:
    """Sizes and settings; the defaults are those of the Large model."""

    num_layers: int = 24
    width: int = 1024
    ffn_width: int = 4096
    num_heads: int = 16
    norm_first: bool = True
    """Normalise before attention and feed-forward, and once at the end; else after them, and once at the start."""
    position_kernel: int = 128
    position_groups: int = 16
    crop_px: int = 88
    """Side of the square in the middle of a mouth crop that is looked at."""
    pixel_mean: float = PIXEL_MEAN
    pixel_std: float = PIXEL_STD

    def __post_init__(self) -> None:
        counts = ("num_layers", "width", "ffn_width", "num_heads", "position_kernel", "position_groups", "crop_px")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 1 or more")
        for name in ("num_heads", "position_groups"):
            if self.width % getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}; allowed are divisors of the width {self.width}")
        if self.crop_px > MOUTH_SIZE_PX:
            raise ValueError(f"crop_px is {self.crop_px}; mouth crops have {MOUTH_SIZE_PX}")
        if self.pixel_std <= 0:
            raise ValueError(f"pixel_std is {self.pixel_std}; allowed is above 0")


class AvHubertEncoder(VideoEncoder):
    """Mouth crops -> features, 25 a second; frozen, always in evaluation mode, inputs of any length.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: AvHubertShape) -> None:
        super().__init__()
        width = shape.width
        self.dim = width
        self.shape = shape
        self.feature_extractor_video = nn.Sequential(
            OrderedDict(resnet=_resnet(), proj=nn.Linear(_STAGES[-1], width)),
        )
        self.layer_norm = nn.LayerNorm(2 * width)
        self.post_extract_proj = nn.Linear(2 * width, width)
        self.encoder = _Transformer(shape)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, config: AvHubertConfig, folder: Path) -> AvHubertEncoder:
        """Reads converted weights, in float32, and adds fresh adapters if the configuration wants any.

        Raises:
            ValueError: naming the file, if the folder holds something else.
        """
        shape = read_shape(folder / CONFIG_FILE)
        try:
            tensors = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / WEIGHTS_FILE} can't be read: {error}") from error
        with torch.device("meta"):  # nothing is drawn that the file replaces
            encoder = cls(shape)
        misfits = encoder.misfits(tensors)
        if misfits:
            raise ValueError(
                f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {len(misfits)} tensors, such as {misfits[0]}"
            )
        floats = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        encoder.load_state_dict(floats, assign=True)
        if config.lora_rank is not None:
            encoder.add_adapters(config.lora_rank, config.lora_alpha)
        return encoder

    def misfits(self, tensors: dict[str, Tensor]) -> list[str]:
        """Names of weights that are missing, unknown, or of another shape than the encoder's."""
        odd = {(name, value.shape) for name, value in tensors.items()}
        odd ^= {(name, value.shape) for name, value in self.state_dict().items()}
        return sorted({name for name, _ in odd})

    def add_adapters(self, rank: int, alpha: float) -> None:
        """Adds a trainable low-rank delta, at first zero, to the query and value projection of every layer.

        Args:
            rank: of each delta; the authors of Llama-MTSK use 64.
            alpha: the delta is scaled by alpha / rank; the authors' scale is 2.
        """
        like = self.layer_norm.weight
        for module in self.modules():
            if isinstance(module, _Attention):
                module.q_lora, module.v_lora = (
                    LowRank(self.dim, rank, alpha / rank).to(like.device, like.dtype) for _ in range(2)
                )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable weights by name; empty without adapters."""
        prefixes = [f"{name}." for name, module in self.named_modules() if isinstance(module, LowRank)]
        return {name: p for name, p in self.named_parameters() if name.startswith(tuple(prefixes))}

    def train(self, mode: bool = True) -> AvHubertEncoder:
        """Stays in evaluation mode: the encoder is frozen, and the adapters have no dropout."""
        del mode
        return super().train(False)

    def forward(self, mouth_BTHW: Tensor, num_frames_B: Tensor) -> Features:
        """See `VideoEncoder`. The square in the middle is looked at; no grey values beyond a row's length are."""
        if not num_frames_B.any():
            return Features(self.layer_norm.weight.new_zeros(len(num_frames_B), 0, self.dim), num_frames_B)
        pixels_BTHW = self._normalize(mouth_BTHW[:, : int(num_frames_B.max())])
        # Zero after normalising, as at the ends of a recording: the first convolution looks beyond the last frame.
        pixels_BTHW = pixels_BTHW * inside(num_frames_B, pixels_BTHW.shape[1])[..., None, None]
        return Features(zero_beyond(self.encode(pixels_BTHW, num_frames_B), num_frames_B), num_frames_B)

    def encode(self, pixels_BTHW: Tensor, num_frames_B: Tensor) -> Tensor:
        """(B, T, D) from normalised pixels, any values beyond a row's length.

        Args:
            pixels_BTHW: float, already cropped; the two frames beyond a row's length are seen by its last frames, so
                they have to be zero if the row shall be as if alone.
            num_frames_B: (B,) int64, of at least one row above 0.
        """
        frames_BTD = self._frames(pixels_BTHW, num_frames_B)
        # Zeros for the sound, first; they count in the statistics of the normalisation.
        both_BTD = torch.cat((torch.zeros_like(frames_BTD), frames_BTD), dim=-1)
        hidden_BTD = zero_beyond(self.post_extract_proj(self.layer_norm(both_BTD)), num_frames_B)
        encoded_BTD: Tensor = self.encoder(hidden_BTD, num_frames_B)
        return encoded_BTD

    def _normalize(self, mouth_BTHW: Tensor) -> Tensor:
        size, margin = self.shape.crop_px, (MOUTH_SIZE_PX - self.shape.crop_px) // 2
        middle = slice(margin, margin + size)
        grey = mouth_BTHW[..., middle, middle].float() / 255.0
        return ((grey - self.shape.pixel_mean) / self.shape.pixel_std).to(self.layer_norm.weight.dtype)

    @torch.no_grad()
    def _frames(self, pixels_BTHW: Tensor, num_frames_B: Tensor) -> Tensor:
        """(B, T, D): each real frame, seen with its neighbours, on its own; zero beyond a row's length."""
        real_BT = inside(num_frames_B, pixels_BTHW.shape[1])
        around_BTHW = functional.pad(pixels_BTHW, (0, 0, 0, 0, _REACH, _REACH))
        offsets = torch.arange(2 * _REACH + 1, device=pixels_BTHW.device)
        row_P, time_P = real_BT.nonzero(as_tuple=True)
        chunks = [
            self.feature_extractor_video(around_BTHW[row[:, None], time[:, None] + offsets])
            for row, time in zip(torch.split(row_P, _CHUNK), torch.split(time_P, _CHUNK), strict=True)
        ]
        frames_PD = torch.cat(chunks)
        frames_BTD = frames_PD.new_zeros(*real_BT.shape, self.dim)
        frames_BTD[real_BT] = frames_PD
        return frames_BTD


def read_shape(path: Path) -> AvHubertShape:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    found = values.pop("model_type", None) if isinstance(values, dict) else None
    if found != MODEL_TYPE:
        raise ValueError(f"{path} has model_type {found!r}; converted AV-HuBERT weights have {MODEL_TYPE!r}")
    try:
        return from_dict(AvHubertShape, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# The ResNet-18, from a frame with its neighbours as channels to one vector.

_STAGES = (64, 128, 256, 512)  # channels


def _resnet() -> nn.Sequential:
    first = _STAGES[0]
    # Published as a 3-D convolution; over one channel it is a 2-D one that has the neighbours in time as channels.
    frontend = nn.Sequential(
        nn.Conv2d(2 * _REACH + 1, first, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(first),
        nn.PReLU(first),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    before = first
    for i, channels in enumerate(_STAGES, start=1):
        stages[f"layer{i}"] = nn.Sequential(_Block(before, channels), _Block(channels, channels))
        before = channels
    trunk = nn.Sequential(OrderedDict(**stages, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
    return nn.Sequential(OrderedDict(frontend3D=frontend, trunk=trunk))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a residual; halves height and width where the channels grow."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        stride = 1 if before == channels else 2
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.PReLU(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            shortcut = nn.Conv2d(before, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x_PDHW: Tensor) -> Tensor:
        hidden_PDHW = self.relu1(self.bn1(self.conv1(x_PDHW)))
        out_PDHW: Tensor = self.relu2(self.bn2(self.conv2(hidden_PDHW)) + self.downsample(x_PDHW))
        return out_PDHW


# The transformer.


class _Transformer(nn.Module):
    """Convolutional positions, then layers that normalise either before or after their parts."""

    def __init__(self, shape: AvHubertShape) -> None:
        super().__init__()
        kernel = shape.position_kernel
        conv = nn.Conv1d(shape.width, shape.width, kernel, padding=kernel // 2, groups=shape.position_groups)
        self.pos_conv = nn.Sequential(conv)
        self.norm_first = shape.norm_first
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.layer_norm = nn.LayerNorm(shape.width)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """The input has to be zero beyond each row's length; the output is not."""
        # An even kernel gives one step too many: the last.
        position_BTD = self.pos_conv(x_BTD.transpose(1, 2))[..., : x_BTD.shape[1]].transpose(1, 2)
        x_BTD = x_BTD + functional.gelu(position_BTD)
        if not self.norm_first:
            x_BTD = self.layer_norm(x_BTD)
        mask = additive_mask(lengths_B, x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        return self.layer_norm(x_BTD) if self.norm_first else x_BTD


class _Layer(nn.Module):
    """Self-attention and feed-forward, each with a residual."""

    def __init__(self, shape: AvHubertShape) -> None:
        super().__init__()
        self.norm_first = shape.norm_first
        self.self_attn = _Attention(shape.width, shape.num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(shape.width)
        self.fc1 = nn.Linear(shape.width, shape.ffn_width)
        self.fc2 = nn.Linear(shape.ffn_width, shape.width)
        self.final_layer_norm = nn.LayerNorm(shape.width)

    def forward(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm_first:
            x_BTD = x_BTD + self.self_attn(self.self_attn_layer_norm(x_BTD), mask)
            return x_BTD + self._feed_forward(self.final_layer_norm(x_BTD))
        x_BTD = self.self_attn_layer_norm(x_BTD + self.self_attn(x_BTD, mask))
        out_BTD: Tensor = self.final_layer_norm(x_BTD + self._feed_forward(x_BTD))
        return out_BTD

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = functional.gelu(self.fc1(x_BTD))
        out_BTD: Tensor = self.fc2(hidden_BTF)
        return out_BTD


class _Attention(nn.Module):
    """Multi-head self-attention, with low-rank deltas on query and value if there are any."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.q_lora: LowRank | None = None
        self.v_lora: LowRank | None = None

    def forward(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        query_BTD, key_BTD, value_BTD = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.q_lora is not None:
            query_BTD = query_BTD + self.q_lora(x_BTD)
        if self.v_lora is not None:
            value_BTD = value_BTD + self.v_lora(x_BTD)
        query_BNTK, key_BNTK, value_BNTK = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query_BTD, key_BTD, value_BTD)
        )
        mixed_BNTK = attention(query_BNTK, key_BNTK, value_BNTK, mask)
        out_BTD: Tensor = self.out_proj(mixed_BNTK.transpose(1, 2).flatten(2))
        return out_BTD


class LowRank(nn.Module):
    """One low-rank delta: scale * up(down(x)), at first zero."""

    def __init__(self, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down_RD = nn.Parameter(torch.empty(rank, width))
        self.up_DR = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down_RD, a=math.sqrt(5))
        self.scale = scale

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.scale * functional.linear(functional.linear(x_BTD, self.down_RD), self.up_DR)
