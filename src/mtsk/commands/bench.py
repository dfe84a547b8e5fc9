"""`mtsk bench`: measures this machine."""

from __future__ import annotations

import mtsk
from mtsk.checkpoints.sources import face_models
from mtsk.inference.profile import profile_path
from mtsk.inference.profiling import measure_profile


def run(model: str, *, calibrate: bool) -> int:
    """Measures, and prints and stores what was found.

    Raises:
        ValueError: if there is no such model, or nothing was asked for.
    """
    if not calibrate:
        raise ValueError("nothing to measure; --calibrate times the stages of the model for budgets in milliseconds")
    return run_calibrate(model)


def run_calibrate(model: str) -> int:
    """Stores a profile of this machine for `--budget-ms`.

    Raises:
        ValueError: if there is no such model.
        OSError: if it can't be written.
    """
    folder = mtsk.model_folder(model)
    engine = mtsk.load(folder)
    profile = measure_profile(engine, face_models() if engine.grid.video_rates else None)
    path = profile_path(folder, profile.machine)
    profile.save(path)
    print(", ".join(f"{name} {value}" for name, value in profile.machine.items()))
    for name, stage in profile.stages.items():
        print(f"  {name:<14} {stage.fixed_ms:8.2f} ms + {stage.position_ms:7.3f} ms for each position")
    print(f"stored in {path}")
    return 0
