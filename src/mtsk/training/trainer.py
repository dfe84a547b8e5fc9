"""One loop for every stage of training: batch, loss and gradients, step, log, save; resumed to the bit."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from mtsk.config import OptimConfig
from mtsk.training.optim import ParameterGroup, build_optimizer, set_rates
from mtsk.training.progress import load_progress, save_progress
from mtsk.types import Batch


class Stage(Protocol):
    """What the loop needs of a stage."""

    name: str
    optim: OptimConfig

    @property
    def modules(self) -> nn.Module:
        """What is saved: trained parameters and buffers."""

    def groups(self) -> list[ParameterGroup]:
        """What is trained, named as in `modules`."""

    def batches(self, start_step: int) -> Iterator[Batch]:
        """The batches of the steps from `start_step` on."""

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """Adds the gradients of one step; returns what to log, losses and `tokens` among it."""

    def validate(self) -> dict[str, float]:
        """Figures on the development split, at the end."""


@dataclass(frozen=True)
class Run:
    """Where a run writes, how it computes and what it is seeded with."""

    out_dir: Path
    accelerator: Accelerator
    seed: int
    save_every: int
    stop_after: int | None = None  # for tests: end each stage's loop after so many steps, saved, as if interrupted
    features_dir: Path | None = None  # of cached features and word times, which runs may share; None: in `out_dir`

    def seed_step(self, stage: str, step: int) -> None:
        """Seeds what the step draws (dropout), so that it does not depend on the steps before."""
        key = f"{self.seed} {stage} {step} {self.accelerator.process_index}"
        torch.manual_seed(zlib.crc32(key.encode()))


def run_stage(stage: Stage, run: Run) -> bool:
    """Trains a stage from where its file in the run's folder says; returns whether it is complete.

    A complete stage is only loaded.
    """
    groups = stage.groups()
    parameters = {name: p for group in groups for name, p in group.parameters.items()}
    optimizer = build_optimizer(groups, stage.optim)
    path = run.out_dir / "stages" / f"{stage.name}.safetensors"
    num_done = load_progress(path, stage.modules, parameters, optimizer)
    num_steps = stage.optim.num_steps
    if num_done >= num_steps:
        return True
    writer = None
    if run.accelerator.is_main_process:
        writer = SummaryWriter(run.out_dir / "tensorboard" / stage.name, purge_step=num_done)
    line = _LiveLine(stage.name, num_steps, num_done)
    last = num_steps if run.stop_after is None else min(num_steps, num_done + run.stop_after)
    for step, batch in zip(range(num_done, last), stage.batches(num_done), strict=False):
        run.seed_step(stage.name, step)
        set_rates(optimizer, step, stage.optim)
        figures = stage.backward(batch, step)
        reduce_gradients(list(parameters.values()), run.accelerator)
        norm = nn.utils.clip_grad_norm_(parameters.values(), stage.optim.clip_norm)
        if not torch.isfinite(norm):
            raise ValueError(f"{stage.name}: the gradients of step {step} are not finite; lower the learning rate")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if writer is not None:
            for name, value in {**figures, "gradient_norm": float(norm)}.items():
                writer.add_scalar(f"{stage.name}/{name}", value, step)
            line.show(step + 1, figures)
            if (step + 1) % run.save_every == 0 or step + 1 == last:
                save_progress(path, stage.modules, parameters, optimizer, step + 1)
    if last < num_steps:
        if writer is not None:
            writer.close()
        return False
    share_buffers(stage.modules, run.accelerator)
    if writer is not None:
        figures = stage.validate()
        for name, value in figures.items():
            writer.add_scalar(f"{stage.name}/dev_{name}", value, num_steps)
        line.close(figures)
        writer.close()
    run.accelerator.wait_for_everyone()
    return True


def reduce_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Adds the gradients of all processes, in one flat exchange; losses are already over the global token count.

    Wrapping the model for data parallelism would synchronise at every scale's backward, and skip adapters that a step
    does not use. A parameter that no process used keeps no gradient, so that the optimiser leaves it alone.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    flat = accelerator.reduce(torch.cat([used, *(g.flatten() for g in gradients)]), reduction="sum")
    num_users, *parts = flat.split([len(parameters), *(p.numel() for p in parameters)])
    for parameter, its_users, part in zip(parameters, num_users.tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter) if its_users else None


@torch.no_grad()
def share_buffers(modules: nn.Module, accelerator: Accelerator) -> None:
    """Gives all processes the main one's buffers (batch statistics), which are those that are saved."""
    if accelerator.num_processes > 1:
        for buffer in modules.buffers():
            buffer.copy_(broadcast(buffer.contiguous()))


class _LiveLine:
    """One line that says how the stage goes: losses, tokens per second, time left. It is rewritten on a terminal, and
    printed now and then elsewhere."""

    def __init__(self, name: str, num_steps: int, num_done: int) -> None:
        self._name, self._num_steps, self._first = name, num_steps, num_done
        self._started_s = self._shown_s = time.monotonic()
        self._num_tokens = 0.0
        self._mean: dict[str, float] = {}
        self._terminal = sys.stdout.isatty()

    def show(self, num_done: int, figures: dict[str, float]) -> None:
        self._num_tokens += figures.get("tokens", 0.0)
        for name, value in figures.items():
            self._mean[name] = 0.9 * self._mean.get(name, value) + 0.1 * value
        now_s = time.monotonic()
        last = num_done == self._num_steps
        if now_s - self._shown_s < (0.5 if self._terminal else 15.0) and not last:
            return
        self._shown_s = now_s
        left_s = (now_s - self._started_s) / (num_done - self._first) * (self._num_steps - num_done)
        losses = "  ".join(f"{name} {value:.3f}" for name, value in self._mean.items() if name != "tokens")
        rate = self._num_tokens / (now_s - self._started_s)
        line = f"{self._name} {num_done}/{self._num_steps}  {losses}  {rate:.0f} tok/s  {left_s:.0f} s left"
        if self._terminal:
            print(f"\r{line}\033[K", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)

    def close(self, figures: dict[str, float]) -> None:
        print(f"{self._name} dev  " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
