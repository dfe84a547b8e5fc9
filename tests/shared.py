"""Where the recordings for development lie: beside the repository, or where MTSK_SHARED says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """A folder of the shared data; the test is skipped where it is absent, as it is for most users."""
    root = Path(os.environ.get("MTSK_SHARED", Path(__file__).parents[2] / "shared"))
    folder = root / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder} (MTSK_SHARED says where)")
    return folder
