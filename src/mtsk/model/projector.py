"""Projectors into the LLM's embedding space: one per modality and rate.

Source: Cappellazzo et al. 2025 (arXiv 2503.06362), section 3.1. Letters: B rows, T steps, K tokens, D channels,
E embedding width of the LLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtsk.config import ContextConfig, ProjectorConfig
from mtsk.model.compress import Compressor
from mtsk.model.context import Context, no_context
from mtsk.model.masking import zero_beyond
from mtsk.types import Features


class Projector(nn.Module):
    """Linear, ReLU, Linear, with optional normalisation before and after.

    Args:
        dim: channels of a compressed feature.
        embedding_std: standard deviation of the LLM's input embeddings; the output's gain starts there.
    """

    def __init__(self, dim: int, embedding_dim: int, embedding_std: float, config: ProjectorConfig) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(dim, elementwise_affine=False) if config.input_norm else nn.Identity()
        self.dropout = nn.Dropout(config.input_dropout)
        self.up = nn.Linear(dim, config.hidden)
        self.down = nn.Linear(config.hidden, embedding_dim)
        self.output_norm: nn.Module = nn.Identity()
        if config.output_norm:
            self.output_norm = nn.LayerNorm(embedding_dim)
            nn.init.constant_(self.output_norm.weight, embedding_std)

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, E)."""
        hidden = torch.relu(self.up(self.dropout(self.input_norm(tokens_BKD))))
        projected: Tensor = self.output_norm(self.down(hidden))
        return projected


class RateProjectors(nn.Module):
    """Features of one modality -> LLM embeddings, at any rate that the compressor allows.

    A rate with a projector of its own is read by it, as in the paper. Between two such rates both read, and their
    outputs are blended linearly in the logarithm of the rate; beyond the last one the nearest reads alone.

    Args:
        rates: those with a projector of their own.
        dim: channels of a feature.
        embedding: width and standard deviation of the LLM's input embeddings.
        context: layers that the features go through first.
    """

    def __init__(
        self,
        rates: Iterable[int],
        dim: int,
        compressor: Compressor,
        embedding: tuple[int, float],
        config: ProjectorConfig,
        context: ContextConfig | None = None,
    ) -> None:
        super().__init__()
        self._compressor = compressor
        self.context = None if context is None else Context(dim, context)
        embedding_dim, embedding_std = embedding
        self.at_rate = nn.ModuleDict(
            {str(r): Projector(compressor.width(dim, r), embedding_dim, embedding_std, config) for r in rates}
        )

    @property
    def rates(self) -> tuple[int, ...]:
        """Those with a projector of their own, finest first."""
        return tuple(sorted(int(rate) for rate in self.at_rate))

    def shares(self, rate: int) -> dict[int, float]:
        """Which projectors read at a rate, and the share of each."""
        finer = max((own for own in self.rates if own <= rate), default=self.rates[0])
        coarser = min((own for own in self.rates if own >= rate), default=self.rates[-1])
        if finer >= coarser:
            return {coarser: 1.0} if finer > rate else {finer: 1.0}
        share = math.log(rate / finer) / math.log(coarser / finer)
        return {finer: 1.0 - share, coarser: share}

    def forward(self, features: Features, rate: int) -> Features:
        """Features in context, read at a rate: (B, T, D) -> (B, T // rate, E)."""
        return self.read(self.in_context(features), rate)

    def in_context(self, features: Features) -> Features:
        """What the projectors of all rates read, (B, T, D) as before."""
        return (self.context or no_context)(features)

    def read(self, features: Features, rate: int) -> Features:
        """(B, T, D) in context -> (B, T // rate, E), zero beyond each row's length.

        Raises:
            ValueError: if no projector fits the width of features that are stacked at this rate.
        """
        compressed = self._compressor.compress(features, rate)
        shares = self.shares(rate)
        if any(self._compressor.width(1, own) != self._compressor.width(1, rate) for own in shares):
            raise ValueError(f"stacked features can't be read at rate {rate}; the rates are {self.rates}")
        projected_BKE = sum(share * self.at_rate[str(own)](compressed.values_BTD) for own, share in shares.items())
        assert isinstance(projected_BKE, Tensor)
        return Features(zero_beyond(projected_BKE, compressed.lengths_B), compressed.lengths_B)
