"""Faces in a picture: mediapipe's short-range detector (BlazeFace, arXiv:1907.05047) and its 468-point mesh
(arXiv:1907.06724), run with LiteRT; anchors, decoding, suppression and regions of interest in numpy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from mtsk.media.alignment import apply, rotate_scale, warp

_DETECTOR_SIZE_PX = 128
_DETECTOR_GRIDS = ((16, 2), (8, 6))  # cells per side, anchors per cell: stride 8 once, stride 16 three times
_MESH_SIZE_PX = 192
_MIN_SCORE = 0.5
_MAX_OVERLAP = 0.3  # intersection over union from which two boxes are one face
_ROI_MARGIN = 1.5  # side of the mesh's input over the longer side of the face's box
_TILES_PER_SIDE = 3
_MIN_TILED_SIDE_PX = 256
_EYES = (33, 263)  # outer corners: the viewer's left, the viewer's right


@dataclass(frozen=True)
class Face:
    """A detected face in pixels of its picture: the box, and the eyes (the viewer's left one first)."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    eyes_22: NDArray[np.float64]

    @property
    def size_px(self) -> float:
        """The longer side of the box."""
        return max(self.x1 - self.x0, self.y1 - self.y0)

    @property
    def centre_2(self) -> NDArray[np.float64]:
        """The centre of the box, (x, y)."""
        return np.array([(self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2])


class FaceDetector:
    """Finds faces that fill at least about a twelfth of the picture. Not safe to share between threads."""

    def __init__(self, model: Path) -> None:
        self._network = _Network(model)
        self._anchors_A2 = _anchors()

    def detect(self, image: NDArray[np.uint8], *, num_wanted: int = 1) -> list[Face]:
        """Faces in an RGB picture (H, W, 3), the largest first.

        The detector sees 128 x 128 pixels. Where the whole picture shows fewer faces than wanted, overlapping tiles
        of half its size are searched too.
        """
        height, width = image.shape[:2]
        side = max(height, width)
        faces = self._detect_square(image, (width - side) / 2, (height - side) / 2, side)
        if len(faces) < num_wanted and side >= _MIN_TILED_SIDE_PX:
            tile = side / 2
            for x0 in _tile_starts(width, tile):
                for y0 in _tile_starts(height, tile):
                    faces += self._detect_square(image, x0, y0, tile)
            faces = _suppress(faces)
        return sorted(faces, key=lambda face: -face.size_px)

    def _detect_square(self, image: NDArray[np.uint8], x0: float, y0: float, side: float) -> list[Face]:
        """Faces within one square of the picture, which may reach beyond it (black)."""
        scale = side / _DETECTOR_SIZE_PX
        patch = warp(image, np.array([[scale, 0, x0], [0, scale, y0]]), _DETECTOR_SIZE_PX)
        outputs = self._network.run(patch.astype(np.float32) / 127.5 - 1.0)
        logits_A, raw_AC = outputs["classificators"].ravel(), outputs["regressors"][0].astype(np.float64)
        kept = np.flatnonzero(_sigmoid(logits_A) >= _MIN_SCORE)
        # Box centre, box size and six key points (the first two are the eyes), in pixels relative to the anchor.
        anchors_A12 = self._anchors_A2[kept, None, :] * _DETECTOR_SIZE_PX
        points_AK2 = raw_AC[kept].reshape(len(kept), 8, 2)
        points_AK2[:, [0, *range(2, 8)]] += anchors_A12
        points_AK2 = points_AK2 * scale
        offset = np.array([x0, y0])
        faces = []
        for index, points_K2 in zip(kept, points_AK2, strict=True):
            (x, y), (width, height) = points_K2[0] + offset, points_K2[1]
            left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            score = float(_sigmoid(logits_A[index]))
            faces.append(Face(left, top, right, bottom, score, points_K2[2:4] + offset))
        return _suppress(faces)


class FaceMesh:
    """Places 468 points on one face of known whereabouts. Not safe to share between threads."""

    def __init__(self, model: Path) -> None:
        self._network = _Network(model)

    def locate(self, image: NDArray[np.uint8], roi_23: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Points in pixels of the RGB picture (468, 2), and the probability that the region shows a face."""
        patch = warp(image, roi_23, _MESH_SIZE_PX)
        outputs = sorted(self._network.run(patch.astype(np.float32) / 255.0).values(), key=lambda values: values.size)
        score, points = outputs[0], outputs[1].reshape(-1, 3)[:, :2].astype(np.float64)
        return apply(roi_23, points), float(_sigmoid(score.ravel()[0]))


def roi_of_face(face: Face) -> NDArray[np.float64]:
    """The mesh's input for a detected face: 2x3, maps its pixels to those of the picture."""
    return _roi(face.centre_2, face.size_px, face.eyes_22[1] - face.eyes_22[0])


def roi_of_points(points_K2: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mesh's input for the next picture, from the points on this one."""
    low, high = points_K2.min(axis=0), points_K2.max(axis=0)
    return _roi((low + high) / 2, float((high - low).max()), points_K2[_EYES[1]] - points_K2[_EYES[0]])


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """LiteRT greets on the stderr of the process, which Python does not see, and has no setting for it."""
    try:
        stderr = os.dup(2)
    except OSError:  # the process was started without one
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


class _Network:
    """A tflite model with one image as its input, on one thread."""

    def __init__(self, path: Path) -> None:
        with _silent_stderr():
            self._interpreter = Interpreter(model_path=str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = {output["name"]: output["index"] for output in self._interpreter.get_output_details()}

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, image[None])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}


def _roi(centre_2: NDArray[np.float64], size_px: float, eye_line_2: NDArray[np.float64]) -> NDArray[np.float64]:
    angle_rad = float(np.arctan2(eye_line_2[1], eye_line_2[0]))
    linear = rotate_scale(angle_rad, size_px * _ROI_MARGIN / _MESH_SIZE_PX)
    half = np.full(2, _MESH_SIZE_PX / 2)
    return np.column_stack([linear, centre_2 - linear @ half])


def _anchors() -> NDArray[np.float64]:
    """Centres of the 896 anchors in [0, 1], (896, 2)."""
    grids = []
    for cells, per_cell in _DETECTOR_GRIDS:
        middles = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(middles, middles, indexing="ij")
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), per_cell, axis=0))
    return np.concatenate(grids)


def _tile_starts(extent: int, tile: float) -> list[float]:
    if extent <= tile:
        return [(extent - tile) / 2]
    return [(extent - tile) * index / (_TILES_PER_SIDE - 1) for index in range(_TILES_PER_SIDE)]


def _suppress(faces: list[Face]) -> list[Face]:
    """Of boxes that overlap, the one with the highest score."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_overlap(face, other) < _MAX_OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Face, b: Face) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    area = (a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - width * height
    return width * height / area


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), dtype=np.float32)
