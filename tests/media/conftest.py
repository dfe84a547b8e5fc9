"""A clip of a person who talks."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtsk.media import MouthTracker
from mtsk.types import FaceModels
from tests.media.clips import load_frames
from tests.shared import shared_data


@pytest.fixture(scope="session")
def talking_clip() -> Path:
    """The first clip of the examples; where there are none, of the shared part of GRID."""
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.mp4"))
    return examples[0] if examples else sorted((shared_data("grid") / "s1").glob("*.mp4"))[0]


@pytest.fixture(scope="session")
def talking_frames(talking_clip: Path) -> list[NDArray[np.uint8]]:
    """Its first second of frames, RGB."""
    return load_frames(talking_clip)[:25]


@pytest.fixture
def tracker(face_models: FaceModels) -> MouthTracker:
    return MouthTracker(face_models)
