"""Layers that let each feature hear its neighbours, before compression. Not in the paper, whose projectors read every
group of features alone: with a small language model there is little else to put sounds together to words.

Letters: B rows, T steps, D channels, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from mtsk.config import ContextConfig
from mtsk.model.attention import attention
from mtsk.model.masking import additive_mask, zero_beyond
from mtsk.types import Features


class Context(nn.Module):
    """Pre-norm transformer layers with a depthwise convolution; fresh ones change nothing.

    Args:
        dim: channels of a feature, before and after; a multiple of the number of heads.
    """

    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        if dim % config.num_heads:
            raise ValueError(f"projector.audio_context.num_heads is {config.num_heads}; allowed are divisors of {dim}")
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.layers = nn.ModuleList(_Layer(dim, config) for _ in range(config.num_layers))

    def forward(self, features: Features) -> Features:
        """(B, T, D) -> (B, T, D), zero beyond each row's length."""
        if features.values_BTD.shape[1] == 0:  # torch convolves no empty rows
            return features
        values_BTD, lengths_B = self.norm(features.values_BTD), features.lengths_B
        mask_B1TT = additive_mask(lengths_B, values_BTD)
        for layer in self.layers:
            values_BTD = layer(values_BTD, lengths_B, mask_B1TT)
        return Features(zero_beyond(values_BTD, lengths_B), lengths_B)


class _Layer(nn.Module):
    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self._num_heads = config.num_heads
        self.attention_norm, self.conv_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.conv = nn.Conv1d(dim, dim, config.kernel, padding="same", groups=dim)
        self.mix = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, config.hidden)
        self.down = nn.Linear(config.hidden, dim)
        self.dropout = nn.Dropout(config.dropout)
        for last in (self.out, self.mix, self.down):  # so that the layer starts as the identity
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, values_BTD: Tensor, lengths_B: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        values_BTD = values_BTD + self.dropout(self._attend(self.attention_norm(values_BTD), mask_B1TT))
        inside_BTD = zero_beyond(self.conv_norm(values_BTD), lengths_B)
        values_BTD = values_BTD + self.dropout(self.mix(functional.silu(self._convolve(inside_BTD))))
        hidden = functional.gelu(self.up(self.mlp_norm(values_BTD)))
        result_BTD: Tensor = values_BTD + self.dropout(self.down(hidden))
        return result_BTD

    def _convolve(self, values_BTD: Tensor) -> Tensor:
        # In two dimensions and with channels last, as they lie: ten times as fast on a processor.
        values_BD1T, weight_D11K = values_BTD.transpose(1, 2)[:, :, None], self.conv.weight[:, :, None]
        groups = len(weight_D11K)
        convolved_BD1T = functional.conv2d(values_BD1T, weight_D11K, self.conv.bias, padding="same", groups=groups)
        return convolved_BD1T[:, :, 0].transpose(1, 2)

    def _attend(self, values_BTD: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self._num_heads, -1)).transpose(1, 2) for part in self.qkv(values_BTD).chunk(3, dim=-1)
        )
        mask_B1TT = None if mask_B1TT is None else mask_B1TT.to(query.dtype)
        attended_BHTD = attention(query, key, value, mask_B1TT)
        out: Tensor = self.out(attended_BHTD.transpose(1, 2).flatten(2))
        return out


def no_context(features: Features) -> Features:
    """What a projector without context reads."""
    return features
