"""Landmarks that others found, 68 a frame in the order of iBUG and dlib, in place of our own face tracker.

Such files come with LRS2, LRS3 and VoxCeleb2 as auto-avsr prepares them: a pickled list with an array (68, 2), or None,
for each frame. A pickle is a program: here it may make NumPy arrays, and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtsk.media.alignment import MEAN_FACE_K2, STABLE_POINTS, apply, similarity_between
from mtsk.media.mouth import Follower, MouthTracker, is_elsewhere
from mtsk.types import FaceModels

NUM_POINTS = 68
# Points of the 68 -> the same places of the 468-point mesh: corners of the eyes, root and base of the nose.
_SAME_PLACES = {36: 33, 39: 133, 42: 362, 45: 263, 27: 168, 31: 98, 33: 2, 35: 327}
_STABLE = list(_SAME_PLACES)
_MEAN_STABLE_K2 = MEAN_FACE_K2[[STABLE_POINTS.index(point) for point in _SAME_PLACES.values()]]
_OUTER_LIPS = slice(48, 60)
_PIXEL_CENTRE = 0.5  # these count from the centre of the first pixel, and we from its corner

_ARRAY_MAKERS = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def read_landmarks(path: Path) -> tuple[NDArray[np.float64] | None, ...]:
    """The points (68, 2) of each frame in pixels, x first; None where no face was found.

    Args:
        path: a pickled list (`.pkl`), or an array (T, 68, 2) as `.npy` or as the only one in an `.npz`, with NaN in
            frames without a face.

    Raises:
        ValueError: if it is no such file, or a pickle that wants more than arrays.
        OSError: if it can't be read.
    """
    try:
        frames = _load(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it happens upon
        raise ValueError(f"{path}: no landmarks can be read from it ({str(error) or type(error).__name__})") from None
    return tuple(_checked(frame, path, number) for number, frame in enumerate(frames))


class LandmarkTracker(MouthTracker):
    """Cuts mouths out where supplied landmarks are, at the scale and place that our own tracker would choose.

    Args:
        landmarks: from `read_landmarks`, for each picture that the file holds; those beyond have no face.
    """

    def __init__(self, landmarks: Sequence[NDArray[np.float64] | None]) -> None:
        super().__init__(_no_models)
        self._landmarks = landmarks

    def _follower(self) -> Follower:
        return _SuppliedFollower(self._landmarks)


class _SuppliedFollower:
    """Takes the landmarks of a file, picture after picture."""

    def __init__(self, landmarks: Sequence[NDArray[np.float64] | None]) -> None:
        self._waiting = iter(landmarks)
        self._last: NDArray[np.float64] | None = None
        self.scene = 0
        self.num_faces = int(any(points is not None for points in landmarks))

    def find(self, image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """See `Follower`."""
        del image  # what is on it is known
        points = next(self._waiting, None)
        if points is None:
            return None
        if self._last is not None and is_elsewhere(points, self._last):
            self.scene += 1
        self._last = points
        return stable_points(points)


def stable_points(points_68: NDArray[np.floating]) -> NDArray[np.float64]:
    """What the crop is placed by: the stable points of the mesh, where the mean face has them once it lies on this
    face, and as the last row the middle of the lips (K + 1, 2).

    Raises:
        ValueError: if all points coincide.
    """
    points = points_68 + _PIXEL_CENTRE
    to_picture = similarity_between(_MEAN_STABLE_K2, points[_STABLE])
    return np.vstack([apply(to_picture, MEAN_FACE_K2), points[_OUTER_LIPS].mean(axis=0)])


def _no_models() -> FaceModels:
    raise AssertionError("supplied landmarks need no face models")


def _load(path: Path) -> Sequence[Any]:
    if path.suffix in (".npy", ".npz"):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [None if np.isnan(frame).any() else frame for frame in loaded]
        with loaded:
            if len(loaded.files) != 1:
                raise ValueError(f"it holds the arrays {loaded.files}; one is allowed")
            return [None if np.isnan(frame).any() else frame for frame in loaded[loaded.files[0]]]
    with path.open("rb") as file:
        frames = _Unpickler(file, encoding="latin1").load()
    if isinstance(frames, np.ndarray | list | tuple):
        return list(frames)
    raise ValueError(f"it holds a {type(frames).__name__}; a list with 68 points or None for each frame is allowed")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ARRAY_MAKERS:
            raise pickle.UnpicklingError(f"it wants {module}.{name}; allowed are NumPy arrays and lists")
        return super().find_class(module, name)


def _checked(frame: Any, path: Path, number: int) -> NDArray[np.float64] | None:
    if frame is None:
        return None
    try:
        points = np.asarray(frame, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.shape != (NUM_POINTS, 2) or not np.isfinite(points).all() or not np.ptp(points, axis=0).any():
        raise ValueError(f"{path}, frame {number}: expected {NUM_POINTS} points (x, y), got shape {points.shape}")
    return points
