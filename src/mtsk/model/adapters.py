"""LoRA as one bank of low-rank adapters on chosen linear layers of the LLM, selected per row of the batch.

The three strategies of Cappellazzo et al. 2025 (arXiv 2503.06362), section 3.3, differ only in which adapters a scale
uses: MS one shared, SS its own, MSS the shared and its own, their deltas added. So a strategy is a table from scale to
adapter numbers, and a batch may mix scales.

Letters: A adapters, B rows, C adapters that a row uses, S sequence, I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtsk.config import LoraConfig
from mtsk.scale import Scale, ScaleGrid


def adapter_table(strategy: str, grid: ScaleGrid) -> dict[Scale, tuple[int, ...]]:
    """Which adapters each scale uses; adapter 0 is the shared one where there is one."""
    scales = list(grid)
    match strategy:
        case "ms":
            return {scale: (0,) for scale in scales}
        case "ss":
            return {scale: (i,) for i, scale in enumerate(scales)}
        case "mss":
            return {scale: (0, i + 1) for i, scale in enumerate(scales)}
    raise ValueError(f"adapter strategy {strategy!r}; allowed: ms, ss, mss")


class _Selection:
    """Which adapters each row uses now; shared by all layers of a bank."""

    index_BC: Tensor | None = None


class LoraLinear(nn.Module):
    """A frozen linear layer plus the selected adapters' scaled delta; no delta outside of a selection."""

    def __init__(self, base: nn.Linear, num_adapters: int, config: LoraConfig, selection: _Selection) -> None:
        super().__init__()
        self.base = base
        self.down_ARI = nn.Parameter(torch.empty(num_adapters, config.rank, base.in_features))
        self.up_AOR = nn.Parameter(torch.zeros(num_adapters, base.out_features, config.rank))
        for down_RI in self.down_ARI:
            nn.init.kaiming_uniform_(down_RI, a=math.sqrt(5))
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.alpha / config.rank
        self._selection = selection

    def forward(self, x_BSI: Tensor) -> Tensor:
        """(B, S, I) -> (B, S, O)."""
        out_BSO: Tensor = self.base(x_BSI)
        index_BC = self._selection.index_BC
        if index_BC is None:
            return out_BSO
        # Side by side along the rank, the chosen adapters' deltas are added by the second product.
        down_BRI = self.down_ARI[index_BC].flatten(1, 2)
        up_BOR = self.up_AOR[index_BC].transpose(1, 2).flatten(2)
        hidden_BSR = self.dropout(x_BSI) @ down_BRI.transpose(1, 2)
        delta_BSO: Tensor = self.scale * (hidden_BSR @ up_BOR.transpose(1, 2))
        return out_BSO + delta_BSO


class AdapterBank:
    """All adapters of an LLM. Replaces the target layers of the given module by `LoraLinear` in place.

    Args:
        llm: the module whose layers are adapted.
        config: targets are names of linear layers, such as `q_proj`.
        grid: the trained scales.

    Raises:
        ValueError: if a target names no linear layer, or the strategy is unknown.
    """

    def __init__(self, llm: nn.Module, config: LoraConfig, grid: ScaleGrid) -> None:
        self._table = adapter_table(config.strategy, grid)
        self._grid = grid
        self._selection = _Selection()
        num_adapters = 1 + max(max(indices) for indices in self._table.values())
        self.layers: dict[str, LoraLinear] = {}
        for name, module in list(llm.named_modules()):
            target = name.rpartition(".")[2]
            if target in config.targets and isinstance(module, nn.Linear):
                layer = LoraLinear(module, num_adapters, config, self._selection)
                llm.get_submodule(name.rpartition(".")[0]).register_module(target, layer)
                self.layers[name] = layer
        missing = set(config.targets) - {name.rpartition(".")[2] for name in self.layers}
        if missing:
            raise ValueError(f"the LLM has no linear layer named {', '.join(sorted(missing))}")

    def parameters(self) -> list[nn.Parameter]:
        """The trainable weights of all adapters."""
        return [weight for layer in self.layers.values() for weight in (layer.down_ARI, layer.up_AOR)]

    @contextmanager
    def select(self, scales: Sequence[Scale], device: torch.device | str) -> Iterator[None]:
        """Within, row i of the LLM's input is adapted for `scales[i]`. A backward that recomputes activations must run
        inside too.

        Raises:
            ValueError: naming the trained scales, if one was not trained.
        """
        index_BC = torch.tensor([self._table[self._grid.require(scale)] for scale in scales], device=device)
        previous, self._selection.index_BC = self._selection.index_BC, index_BC
        try:
            yield
        finally:
            self._selection.index_BC = previous
