"""AdamW over groups of parameters with a schedule of linear warm-up, then cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mtsk.config import OptimConfig


@dataclass(frozen=True)
class ParameterGroup:
    """Named parameters that learn at one peak rate."""

    parameters: dict[str, nn.Parameter]
    lr: float
    decay: bool = True


def adapter_groups(parameters: dict[str, nn.Parameter], lr: float) -> list[ParameterGroup]:
    """Adapters at one rate. Magnitudes of DoRA start far from 0, and are not drawn there."""
    magnitudes = {name: p for name, p in parameters.items() if name.endswith("magnitude_AO")}
    others = {name: p for name, p in parameters.items() if name not in magnitudes}
    groups = [ParameterGroup(others, lr), ParameterGroup(magnitudes, lr, decay=False)]
    return [group for group in groups if group.parameters]


def rate_factor(step: int, config: OptimConfig) -> float:
    """Share of the peak learning rate that step number `step` (from 0) uses."""
    num_warmup = max(1, round(config.num_steps * config.warmup_share))
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, config.num_steps - num_warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.AdamW:
    """An AdamW whose rates `set_rates` sets before every step."""
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters.values()),
                "lr": group.lr,
                "peak_lr": group.lr,
                "weight_decay": config.weight_decay if group.decay else 0.0,
            }
            for group in groups
        ],
        betas=config.betas,
    )


def set_rates(optimizer: torch.optim.Optimizer, step: int, config: OptimConfig) -> None:
    """Sets every group's rate for a step."""
    factor = rate_factor(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
