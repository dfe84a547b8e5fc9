"""Frames to mouth crops: a face is detected once, followed by its landmarks, and cut out level and at one scale."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtsk.media.alignment import LIP_POINTS, STABLE_POINTS, crop_placement, warp
from mtsk.media.face import Face, FaceDetector, FaceMesh, roi_of_face, roi_of_points
from mtsk.types import MOUTH_SIZE_PX, VIDEO_FPS, FaceModels

_MIN_FACE_SCORE = 0.5
_MAX_GAP_FRAMES = VIDEO_FPS  # gaps of up to 1 s are bridged
_DETECT_EVERY_FRAMES = 5  # while no face is in sight
_SMOOTHING_RADIUS_FRAMES = 2
_SMOOTHING_SIGMA_FRAMES = 1.0
_NOWHERE: NDArray[np.float64] = np.zeros((0, 2))
_MAX_JUMP_FACES = 1.0  # a face found again further away than its size is where another scene begins


@dataclass(frozen=True)
class MouthTrack:
    """Mouth crops of one face and how they came about. Detected, interpolated and missing add up to all frames.

    Attributes:
        crops_THW: uint8 (T, 96, 96), grey, 25 frames/s.
        num_detected: frames on which the face was seen.
        num_interpolated: frames within gaps of up to 1 s, cut between the places before and after.
        num_missing: frames within longer gaps: cut at the last place known, black before the first.
        num_faces: faces in the picture, as far as the search that found this one saw. 0 if there never was one.
    """

    crops_THW: NDArray[np.uint8]
    num_detected: int
    num_interpolated: int
    num_missing: int
    num_faces: int

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.crops_THW)


class MouthTracker:
    """Cuts mouths out of video. Holds two networks: one tracker per thread or process.

    Args:
        models: where the networks lie, or a function that says so; read at the first video.
        face: which face is followed, by size: 0 is the largest.

    Raises:
        ValueError: if `face` is negative; at the first video, if a model cannot be read.
    """

    def __init__(self, models: FaceModels | Callable[[], FaceModels], *, face: int = 0) -> None:
        if face < 0:
            raise ValueError(f"face counts the faces by size from 0 (the largest), {face} is not allowed")
        self.face = face
        self._find_models = models if callable(models) else lambda: models

    @cached_property
    def _detector(self) -> FaceDetector:
        return FaceDetector(self._find_models().detection)

    @cached_property
    def _mesh(self) -> FaceMesh:
        return FaceMesh(self._find_models().landmarks)

    def track(self, frames: Iterable[NDArray[np.uint8]]) -> MouthTrack:
        """Follows one face through the frames and cuts out its mouth.

        At most about a second of frames is held in memory, as grey.

        Args:
            frames: RGB pictures (H, W, 3) at 25 frames/s, all of one size.

        Returns:
            The crops. Without any face they are black, and `num_detected` is 0.
        """
        stream = self.stream()
        crops = [crop for image in frames for crop in stream.push(image)]
        return track_of([*crops, *stream.finish()], stream.num_faces)

    def stream(self) -> MouthStream:
        """The same for the frames of another video that are handed over one by one."""
        return MouthStream(self._follower())

    def _follower(self) -> Follower:
        return _MeshFollower(self._detector, self._mesh, self.face)


class Sighting(Enum):
    """How the place of a crop is known. See `MouthTrack`."""

    DETECTED = 0
    INTERPOLATED = 1
    MISSING = 2


Crop = tuple[NDArray[np.uint8], Sighting]  # (96, 96)


def track_of(crops: Sequence[Crop], num_faces: int) -> MouthTrack:
    """A track of consecutive crops."""
    counts = Counter(sighting for _, sighting in crops)
    empty = np.zeros((0, MOUTH_SIZE_PX, MOUTH_SIZE_PX), np.uint8)
    return MouthTrack(
        crops_THW=np.stack([crop for crop, _ in crops]) if crops else empty,
        num_detected=counts[Sighting.DETECTED],
        num_interpolated=counts[Sighting.INTERPOLATED],
        num_missing=counts[Sighting.MISSING],
        num_faces=num_faces,
    )


class MouthStream:
    """Follows one face through a video, frame by frame, and cuts out its mouth up to about a second later."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._cutter = _Cutter()
        self._last: NDArray[np.uint8] | None = None
        self._grey: NDArray[np.uint8] | None = None
        self._points: NDArray[np.float64] | None = None

    @property
    def num_faces(self) -> int:
        """Faces in the picture, see `MouthTrack`."""
        return self._follower.num_faces

    def push(self, image: NDArray[np.uint8]) -> list[Crop]:
        """Takes the next frame, RGB (H, W, 3), all of one size. Returns the crops that are settled by it, in order."""
        if image is not self._last:  # a still picture, or a hole in the video, repeats the same array
            self._points = self._follower.find(image)
            self._grey = np.asarray(Image.fromarray(image).convert("L"))
            self._last = image
        assert self._grey is not None
        return self._cutter.push(self._grey, self._points, self._follower.scene)

    def finish(self) -> list[Crop]:
        """The crops that are left."""
        return self._cutter.finish()


class Follower(Protocol):
    """Says where a face is, picture after picture of one video."""

    scene: int
    """Grows where the face is another one, or elsewhere: places are not smoothed across."""
    num_faces: int

    def find(self, image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """The stable points and, as the last row, the middle of the lips (K + 1, 2); None if the face is not seen."""


class _MeshFollower:
    """Which landmarks belong to the chosen face, frame after frame."""

    def __init__(self, detector: FaceDetector, mesh: FaceMesh, rank: int) -> None:
        self._detector = detector
        self._mesh = mesh
        self._rank = rank
        self._roi: NDArray[np.float64] | None = None
        self._last: NDArray[np.float64] | None = None  # landmarks, when the face was last seen
        self._num_lost = 0
        self.scene = 0
        self.num_faces = 0

    def find(self, image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """See `Follower`."""
        points = None if self._roi is None else self._locate(image, self._roi)
        if points is None and self._num_lost % _DETECT_EVERY_FRAMES == 0:
            face = self._choose(self._detector.detect(image, num_wanted=self._rank + 1))
            points = None if face is None else self._locate(image, roi_of_face(face))
            if points is not None and self._is_elsewhere(points):
                self.scene += 1
        if points is None:
            self._roi = None
            self._num_lost += 1
            return None
        self._num_lost = 0
        self._last = points
        self._roi = roi_of_points(points)
        return np.vstack([points[list(STABLE_POINTS)], points[list(LIP_POINTS)].mean(axis=0)])

    def _locate(self, image: NDArray[np.uint8], roi: NDArray[np.float64]) -> NDArray[np.float64] | None:
        points, score = self._mesh.locate(image, roi)
        return points if score >= _MIN_FACE_SCORE else None

    def _choose(self, faces: list[Face]) -> Face | None:
        """The face of the wanted rank; once it was seen, the one that is where it was, if there is any."""
        self.num_faces = max(self.num_faces, len(faces))
        if self._last is not None and faces:
            middle = self._last.mean(axis=0)
            nearest = min(faces, key=lambda face: float(np.linalg.norm(face.centre_2 - middle)))
            if np.linalg.norm(nearest.centre_2 - middle) < _MAX_JUMP_FACES * nearest.size_px:
                return nearest
        return faces[self._rank] if self._rank < len(faces) else None

    def _is_elsewhere(self, points: NDArray[np.float64]) -> bool:
        return self._last is not None and is_elsewhere(points, self._last)


def is_elsewhere(points_K2: NDArray[np.float64], last_K2: NDArray[np.float64]) -> bool:
    """Whether a face is so far from where it was last that it is another one, or another scene."""
    jump = np.linalg.norm(points_K2.mean(axis=0) - last_K2.mean(axis=0))
    return bool(jump > _MAX_JUMP_FACES * float(np.ptp(last_K2, axis=0).max()))


@dataclass(frozen=True)
class _Place:
    """Where the face is on a frame."""

    points: NDArray[np.float64]  # (K + 1, 2), or none
    scene: int
    sighting: Sighting


class _Cutter:
    """Bridges gaps, smooths the places over time, and cuts; holds the frames whose place is not settled yet."""

    def __init__(self) -> None:
        self._waiting: deque[NDArray[np.uint8]] = deque()  # grey frames without a crop yet
        self._places: deque[_Place] = deque()  # settled: of the frames that wait, and of those just before them
        self._num_past = 0  # of these places, those of frames that are cut
        self._num_open = 0  # latest frames, not settled: the gap that is open
        self._gave_up = False  # that gap is too long
        self._seen = False

    def push(self, grey: NDArray[np.uint8], points: NDArray[np.float64] | None, scene: int) -> list[Crop]:
        """Takes the next frame and what was found on it. Returns the crops that are settled by it."""
        self._waiting.append(grey)
        if points is None:
            self._num_open += 1
            if self._gave_up or self._num_open > _MAX_GAP_FRAMES:
                self._gave_up = True
                self._hold_last()
        else:
            self._bridge(points, scene)
            self._places.append(_Place(points, scene, Sighting.DETECTED))
            self._gave_up = False
            self._seen = True
        return self._cut(num_ahead=_SMOOTHING_RADIUS_FRAMES)

    def finish(self) -> list[Crop]:
        """The crops that are left."""
        self._hold_last(Sighting.INTERPOLATED if self._seen else Sighting.MISSING)
        crops = self._cut(num_ahead=0)
        assert not self._waiting
        return crops

    def _hold_last(self, sighting: Sighting = Sighting.MISSING) -> None:
        """Settles a gap that is too long, or does not end, at the last place; nowhere if there was none."""
        last = self._places[-1] if self._seen else _Place(_NOWHERE, -1, sighting)
        self._places.extend([replace(last, sighting=sighting)] * self._num_open)
        self._num_open = 0

    def _bridge(self, points: NDArray[np.float64], scene: int) -> None:
        """Settles the frames of a short gap that ends now, on a line between the places before and after."""
        same_scene = self._seen and scene == self._places[-1].scene
        before = self._places[-1].points if same_scene else points
        for index in range(1, self._num_open + 1):
            weight = index / (self._num_open + 1)
            self._places.append(_Place((1 - weight) * before + weight * points, scene, Sighting.INTERPOLATED))
        self._num_open = 0

    def _cut(self, *, num_ahead: int) -> list[Crop]:
        """Cuts the frames after whose place at least `num_ahead` more are settled."""
        crops: list[Crop] = []
        while self._num_past + num_ahead < len(self._places):
            grey, place = self._waiting.popleft(), self._smoothed(self._num_past)
            if len(place):
                crop = warp(grey, crop_placement(place[:-1], place[-1]), MOUTH_SIZE_PX)
            else:
                crop = np.zeros((MOUTH_SIZE_PX, MOUTH_SIZE_PX), np.uint8)
            crops.append((crop, self._places[self._num_past].sighting))
            if self._num_past == _SMOOTHING_RADIUS_FRAMES:
                self._places.popleft()
            else:
                self._num_past += 1
        return crops

    def _smoothed(self, index: int) -> NDArray[np.float64]:
        """The Gaussian mean of the places around one of them, within its scene."""
        first, scene = max(0, index - _SMOOTHING_RADIUS_FRAMES), self._places[index].scene
        near = [
            other
            for other in range(first, min(len(self._places), index + _SMOOTHING_RADIUS_FRAMES + 1))
            if self._places[other].scene == scene
        ]
        weights = np.exp(-0.5 * ((np.array(near) - index) / _SMOOTHING_SIGMA_FRAMES) ** 2)
        return np.tensordot(weights / weights.sum(), np.stack([self._places[other].points for other in near]), 1)
