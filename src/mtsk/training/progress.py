"""Where a stage stands, on disk: weights, optimiser moments and the number of steps done, in one safetensors file.

Nothing is pickled, and a write replaces the file in one move, so an interruption leaves the previous state.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_progress(
    path: Path, modules: nn.Module, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, num_done: int
) -> None:
    """Writes the state after `num_done` steps.

    Args:
        modules: its trained parameters and all buffers are saved.
        parameters: what the optimiser trains, by name within `modules`.
    """
    tensors: dict[str, Tensor] = {f"buffer.{n}": b.contiguous() for n, b in _saved_buffers(modules).items()}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"num_done": str(num_done)})
    temporary.replace(path)


def load_progress(
    path: Path, modules: nn.Module, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> int:
    """Restores what `save_progress` wrote; returns the number of steps done, 0 if there is no file.

    Raises:
        ValueError: if the file holds other parameters than these, by name or shape.
    """
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        saved = {k.removeprefix("weight."): file.get_slice(k).get_shape() for k in keys if k.startswith("weight.")}
        if saved != {name: list(parameter.shape) for name, parameter in parameters.items()}:
            raise ValueError(
                f"{path} holds other parameters than this configuration trains on this data; use another folder"
            )
        with torch.no_grad():
            for name, buffer in _saved_buffers(modules).items():
                buffer.copy_(file.get_tensor(f"buffer.{name}"))
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
                if f"step.{name}" in keys:
                    optimizer.state[parameter] = {
                        moment: file.get_tensor(f"{moment}.{name}").to("cpu" if moment == "step" else parameter.device)
                        for moment in _MOMENTS
                    }
        return int(file.metadata()["num_done"])


def _saved_buffers(modules: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to the state dict."""
    names = set(modules.state_dict())
    return {name: buffer for name, buffer in modules.named_buffers() if name in names}
