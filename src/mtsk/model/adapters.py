"""LoRA as one bank of low-rank adapters on chosen linear layers of the LLM, selected per row of the batch.

The three strategies of Cappellazzo et al. 2025 (arXiv 2503.06362), section 3.3, differ only in which adapters a scale
uses: MS one shared, SS its own, MSS the shared and its own, their deltas added. Omni-AVSR (arXiv 2511.07253) has one
per task (T), and that beside a shared one (ST). So a strategy is a table from scale to adapter numbers, and a batch may
mix scales.

Whether an adapter is plain LoRA or DoRA decides the class of its layer, once, when the bank is built.

Letters: A adapters, B rows, C adapters that a row uses, S sequence, I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtsk.config import LoraConfig
from mtsk.scale import Scale, ScaleGrid

# Strategy -> for a scale the names of the adapters that it uses. Scales that name the same share it.
_STRATEGIES: dict[str, Callable[[Scale], tuple[str, ...]]] = {
    "ms": lambda _: ("shared",),
    "ss": lambda scale: (str(scale),),
    "mss": lambda scale: ("shared", str(scale)),
    "t": lambda scale: (scale.task,),
    "st": lambda scale: ("shared", scale.task),
}


def adapter_table(strategy: str, grid: ScaleGrid) -> dict[Scale, tuple[int, ...]]:
    """Which adapters each scale uses; adapter 0 is the shared one where there is one."""
    if strategy not in _STRATEGIES:
        raise ValueError(f"adapter strategy {strategy!r}; allowed: {', '.join(_STRATEGIES)}")
    named = {scale: _STRATEGIES[strategy](scale) for scale in grid}
    names = dict.fromkeys(name for used in named.values() for name in used)
    number = {name: i for i, name in enumerate(names)}
    return {scale: tuple(number[name] for name in used) for scale, used in named.items()}


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
        self.scale = config.delta_scale
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
        return self._adapted(out_BSO, delta_BSO, index_BC)

    def _adapted(self, out_BSO: Tensor, delta_BSO: Tensor, _: Tensor) -> Tensor:
        return out_BSO + delta_BSO

    def prepare(self, indices: Iterable[int]) -> None:
        """Called when a selection begins, with the adapters that it uses: the place for work that rows share."""

    @torch.no_grad()
    def merged_weight(self) -> Tensor | None:
        """(O, I) with the delta of the only adapter; None if there are several, or a delta is not all that it does."""
        if len(self.down_ARI) != 1:
            return None
        delta_OI = self.up_AOR[0].float() @ self.down_ARI[0].float()
        return (self.base.weight.float() + self.scale * delta_OI).to(self.base.weight.dtype)


class DoraLinear(LoraLinear):
    """DoRA (Liu et al. 2024, arXiv 2402.09353): an adapter also learns the norm of each output's weights, and the delta
    only turns them.

    With magnitude m, weight W and an adapter's delta D, the weights of output o are `m[o] (W + D)[o] / |(W + D)[o]|`.
    As in section 4.3 the norm gets no gradient. It belongs to an adapter, not to a row or a token, so it is taken once,
    when a selection begins. Dropout acts on the delta alone; in peft also on what the magnitude adds.
    """

    def __init__(self, base: nn.Linear, num_adapters: int, config: LoraConfig, selection: _Selection) -> None:
        super().__init__(base, num_adapters, config, selection)
        norm_O = base.weight.detach().float().norm(dim=1)
        self.magnitude_AO = nn.Parameter(norm_O.repeat(num_adapters, 1))
        self.norm_AO: Tensor
        self.register_buffer("norm_AO", norm_O.repeat(num_adapters, 1), persistent=False)

    def merged_weight(self) -> Tensor | None:
        """None: the magnitude turns the outputs too."""
        return None

    @torch.no_grad()
    def prepare(self, indices: Iterable[int]) -> None:
        """Takes the norms of these adapters' weights, in full precision, one adapter after the other to save memory."""
        weight_OI = self.base.weight.float()
        for i in indices:
            with torch.autocast(weight_OI.device.type, enabled=False):
                turned_OI = weight_OI.addmm(self.up_AOR[i].float(), self.down_ARI[i].float(), alpha=self.scale)
            # A row of zeros has magnitude 0 and stays zero.
            self.norm_AO[i] = turned_OI.norm(dim=1).clamp_min(torch.finfo(self.norm_AO.dtype).tiny)

    def _adapted(self, out_BSO: Tensor, delta_BSO: Tensor, index_B1: Tensor) -> Tensor:
        # The bias is not scaled. Written as a change of the plain sum, so that a fresh adapter changes nothing at all.
        turned_BSO = out_BSO + delta_BSO
        gain_B1O = self.magnitude_AO[index_B1] / self.norm_AO[index_B1]
        change_B1O = (gain_B1O - 1).to(turned_BSO.dtype)
        return turned_BSO + change_B1O * (turned_BSO - self._bias)

    @property
    def _bias(self) -> Tensor | float:
        return 0.0 if self.base.bias is None else self.base.bias


_LAYERS: dict[str, type[LoraLinear]] = {"lora": LoraLinear, "dora": DoraLinear}


class AdapterBank:
    """All adapters of an LLM. Replaces the target layers of the given module by `LoraLinear` in place.

    Args:
        llm: the module whose layers are adapted.
        config: targets are names of linear layers, such as `q_proj` or `down_proj`.
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
                layer = _LAYERS[config.variant](module, num_adapters, config, self._selection)
                llm.get_submodule(name.rpartition(".")[0]).register_module(target, layer)
                self.layers[name] = layer
        missing = set(config.targets) - {name.rpartition(".")[2] for name in self.layers}
        if missing:
            raise ValueError(f"the LLM has no linear layer named {', '.join(sorted(missing))}")

    @property
    def is_shared(self) -> bool:
        """Whether all scales use the same adapters, so that rows can't differ in them."""
        return len(set(self._table.values())) == 1

    def parameters(self) -> list[nn.Parameter]:
        """The trainable weights of all adapters."""
        return [weight for layer in self.layers.values() for weight in layer.parameters(recurse=False)]

    @contextmanager
    def select(self, scales: Sequence[Scale], device: torch.device | str) -> Iterator[None]:
        """Within, row i of the LLM's input is adapted for `scales[i]`. A backward that recomputes activations must run
        inside too, and a change of weights outside.

        Raises:
            ValueError: naming the trained scales, if one was not trained.
        """
        rows = [self._table[self._grid.require(scale)] for scale in scales]
        index_BC = torch.tensor(rows, device=device)
        for layer in self.layers.values():
            layer.prepare({i for row in rows for i in row})
        previous, self._selection.index_BC = self._selection.index_BC, index_BC
        try:
            yield
        finally:
            self._selection.index_BC = previous
