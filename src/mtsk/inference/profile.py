"""How long each stage takes on this machine: what a budget in milliseconds is held against.

A stage takes a fixed time and one for each position that it computes. Both are fitted to some measured runs, stored by
`mtsk bench --calibrate`, and valid for one model, device and precision.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtsk.checkpoints.cache import cache_dir, file_sha256
from mtsk.checkpoints.store import WEIGHTS_FILE
from mtsk.files import write_whole
from mtsk.model.cost import TEXT_TOKENS_PER_SECOND, CostModel
from mtsk.scale import Scale

_FORMAT = 1
_PACKAGES = ("mtsk", "torch", "transformers")
STAGES = ("face", "audio_encoder", "video_encoder", "llm")
HOW = "`mtsk bench --calibrate` measures one"


@dataclass(frozen=True)
class StageTime:
    """Milliseconds of one run of a stage: `fixed_ms + num_positions * position_ms`."""

    fixed_ms: float
    position_ms: float

    def ms(self, num_positions: int) -> float:
        """Of a run with so many positions; 0 without any."""
        return self.fixed_ms + num_positions * self.position_ms if num_positions else 0.0

    @classmethod
    def fit(cls, num_positions: Sequence[int], milliseconds: Sequence[float]) -> StageTime:
        """The line through measured runs, by least squares of the relative errors; neither part is below 0."""
        n, ms = np.array(num_positions, float), np.array(milliseconds, float)
        weights = 1 / ms
        slope, fixed = np.polyfit(n, ms, 1, w=weights) if len(set(num_positions)) > 1 else (0.0, float(np.median(ms)))
        if slope < 0:
            return cls(float(np.average(ms, weights=weights**2)), 0.0)
        if fixed < 0:
            return cls(0.0, float(np.sum(weights**2 * n * ms) / np.sum(weights**2 * n * n)))
        return cls(float(fixed), float(slope))


@dataclass(frozen=True)
class Profile:
    """A measured machine.

    Attributes:
        stages: `face` by frame, `audio_encoder` and `video_encoder` by feature, `llm` by position of one pass.
        machine: processor, threads, device, precision, versions.
    """

    stages: Mapping[str, StageTime]
    machine: Mapping[str, str]

    def ms(self, costs: CostModel, scale: Scale, duration_s: float) -> float:
        """What a recording of so many seconds would take at a scale: faces, encoders, and the LLM with as much text as
        ordinary speech has, a pass for each token. Reading the file is not in it."""
        positions = {name: stage.num_tokens for name, stage in costs.cost(scale, duration_s).stages.items()}
        once = sum(self.stages[name].ms(positions[name]) for name in STAGES if name != "llm")
        num_written = round(duration_s * TEXT_TOKENS_PER_SECOND)
        llm = self.stages["llm"]
        return once + llm.ms(positions["prefill"]) + num_written * llm.ms(1)

    def save(self, path: Path) -> None:
        """Writes it as JSON.

        Raises:
            OSError: if it can't be written.
        """
        plain = {"format": _FORMAT, **asdict(self)}
        write_whole(path, json.dumps(plain, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, machine: Mapping[str, str]) -> Profile:
        """Reads what `save` wrote.

        Raises:
            ValueError: if there is none, or it was measured on another machine, or with other versions.
        """
        try:
            plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            stages = {name: StageTime(**plain["stages"][name]) for name in STAGES}
            found = dict(plain["machine"])
        except FileNotFoundError:
            raise ValueError(f"no profile of this machine for this model yet; {HOW}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no profile ({error}); {HOW}") from error
        other = [name for name in machine if found.get(name) != machine[name]]
        if other:
            changes = ", ".join(f"{name} {found.get(name)} instead of {machine[name]}" for name in other)
            raise ValueError(f"the profile of this machine was measured with {changes}; {HOW} anew")
        return cls(stages, found)


def profile_path(model_folder: Path, machine: Mapping[str, str]) -> Path:
    """Where the profile of a model is, on a device in a precision."""
    name = f"{file_sha256(model_folder / WEIGHTS_FILE)[:16]}_{machine['device']}_{machine['precision']}"
    return cache_dir() / "profiles" / f"{name.replace(':', '-')}.json"


def describe_machine(device: torch.device, precision: str) -> dict[str, str]:
    """What times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": str(device),
        "precision": precision,
        "hardware": name,
        "threads": str(torch.get_num_threads()),
        **{package: version(package) for package in _PACKAGES},
    }


def measure_ms(run: Callable[[], object], clock: Callable[[], float], *, num_runs: int = 3) -> float:
    """Median of some runs, in ms; a first run is not counted.

    Args:
        clock: gives seconds.
    """
    run()
    times = []
    for _ in range(num_runs):
        started_s = clock()
        run()
        times.append(1000 * (clock() - started_s))
    return float(np.median(times))


def _processor() -> str:
    """Its name, where the system tells it, and how many of its cores may be used."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{found[0] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
