"""Fixtures for all rooms."""

import pytest

from mtsk.checkpoints import sources
from mtsk.types import FaceModels


@pytest.fixture(scope="session")
def face_models() -> FaceModels:
    """The models that find faces, from the cache; tests fetch nothing."""
    if not sources.is_cached("face"):
        pytest.skip("needs the face models in the cache (`make weights` fetches them)")
    return sources.face_models()
