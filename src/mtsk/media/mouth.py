"""Frames to mouth crops: a face is detected once, followed by its landmarks, and cut out level and at one scale."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
        follower = self._follower()
        cutter = _Cutter()
        last: NDArray[np.uint8] | None = None
        for image in frames:
            if image is not last:  # a still picture, or a hole in the video, repeats the same array
                points = follower.find(image)
                grey = np.asarray(Image.fromarray(image).convert("L"))
                last = image
            cutter.push(grey, points, follower.scene)
        crops = cutter.finish()
        return MouthTrack(
            crops_THW=np.stack(crops) if crops else np.zeros((0, MOUTH_SIZE_PX, MOUTH_SIZE_PX), np.uint8),
            num_detected=cutter.num_detected,
            num_interpolated=cutter.num_interpolated,
            num_missing=len(crops) - cutter.num_detected - cutter.num_interpolated,
            num_faces=follower.num_faces,
        )

    def _follower(self) -> Follower:
        return _MeshFollower(self._detector, self._mesh, self.face)


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


class _Cutter:
    """Bridges gaps, smooths the places over time, and cuts; holds the frames whose place is not settled yet."""

    def __init__(self) -> None:
        self._waiting: deque[NDArray[np.uint8]] = deque()  # grey frames without a crop yet
        self._places: list[NDArray[np.float64]] = []  # settled points per frame, (K + 1, 2)
        self._scenes: list[int] = []
        self._num_open = 0  # latest frames, not settled: the gap that is open
        self._gave_up = False  # that gap is too long
        self._crops: list[NDArray[np.uint8]] = []
        self.num_detected = 0
        self.num_interpolated = 0

    def push(self, grey: NDArray[np.uint8], points: NDArray[np.float64] | None, scene: int) -> None:
        """Takes the next frame and what was found on it."""
        self._waiting.append(grey)
        if points is None:
            self._num_open += 1
            if self._gave_up or self._num_open > _MAX_GAP_FRAMES:
                self._gave_up = True
                self._hold_last()
        else:
            self._bridge(points, scene)
            self._settle(points, scene)
            self._gave_up = False
            self.num_detected += 1
        self._cut(final=False)

    def finish(self) -> list[NDArray[np.uint8]]:
        """All crops, one per frame."""
        if self.num_detected:
            self.num_interpolated += self._num_open
        self._hold_last()
        self._cut(final=True)
        assert not self._waiting
        return self._crops

    def _settle(self, points: NDArray[np.float64], scene: int) -> None:
        self._places.append(points)
        self._scenes.append(scene)

    def _hold_last(self) -> None:
        """Settles a gap that is too long, or does not end, at the last place; nowhere if there was none."""
        last, scene = (self._places[-1], self._scenes[-1]) if self.num_detected else (_NOWHERE, -1)
        for _ in range(self._num_open):
            self._settle(last, scene)
        self._num_open = 0

    def _bridge(self, points: NDArray[np.float64], scene: int) -> None:
        """Settles the frames of a short gap that ends now, on a line between the places before and after."""
        same_scene = self.num_detected > 0 and scene == self._scenes[-1]
        before = self._places[-1] if same_scene else points
        for index in range(1, self._num_open + 1):
            weight = index / (self._num_open + 1)
            self._settle((1 - weight) * before + weight * points, scene)
        self.num_interpolated += self._num_open
        self._num_open = 0

    def _cut(self, *, final: bool) -> None:
        ready = len(self._places) - (0 if final else _SMOOTHING_RADIUS_FRAMES)
        while len(self._crops) < ready:
            grey, place = self._waiting.popleft(), self._smoothed(len(self._crops))
            if len(place):
                self._crops.append(warp(grey, crop_placement(place[:-1], place[-1]), MOUTH_SIZE_PX))
            else:
                self._crops.append(np.zeros((MOUTH_SIZE_PX, MOUTH_SIZE_PX), np.uint8))

    def _smoothed(self, frame: int) -> NDArray[np.float64]:
        """The Gaussian mean of the places around a frame, within its scene."""
        first = max(0, frame - _SMOOTHING_RADIUS_FRAMES)
        near = [
            index
            for index in range(first, min(len(self._places), frame + _SMOOTHING_RADIUS_FRAMES + 1))
            if self._scenes[index] == self._scenes[frame]
        ]
        weights = np.exp(-0.5 * ((np.array(near) - frame) / _SMOOTHING_SIGMA_FRAMES) ** 2)
        return np.tensordot(weights / weights.sum(), np.stack([self._places[index] for index in near]), 1)
