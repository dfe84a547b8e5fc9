"""Numbers computed with the original public code, and the recipe of the weights they were computed with.

The folder lies beside the repository, or where MTSK_SHARED says; a test that needs it is skipped without it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor


def golden_file(name: str) -> Path:
    """A file of the folder; the test is skipped where it is absent."""
    root = Path(os.environ.get("MTSK_SHARED", Path(__file__).parents[2] / "shared"))
    path = root / "reference" / "goldens" / name
    if not path.is_file():
        pytest.skip(f"needs {path} (MTSK_SHARED says where)")
    return path


def golden_module(name: str) -> ModuleType:
    """One of the folder's scripts, imported."""
    path = golden_file(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, Tensor]]:
    """What was run, the arrays that came out, and the weights under their published names."""
    recipe = golden_module("make_weights")
    meta, arrays = recipe.load_golden(golden_file(name))
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in recipe.make_model_state(meta).items()}
    return meta, arrays, state


def golden_video(num_frames: int) -> Tensor:
    """The normalised pixels that went in: (2, T, 88, 88)."""
    pixels_BCTHW: NDArray[np.float32] = golden_module("make_weights").make_video((2, 1, num_frames, 88, 88))
    return torch.from_numpy(pixels_BCTHW)[:, 0]
