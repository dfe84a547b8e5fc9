"""Planar geometry of faces: patches cut along a similarity, the least-squares similarity, and the mean face.

Letters: K points, H and W pixels. A similarity is a 2x3 matrix that maps (x, y, 1) of one picture to (x, y) of
another. Coordinates are continuous: the centre of the first pixel lies at (0.5, 0.5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtsk.types import MOUTH_SIZE_PX

# Points of the 468-point mesh that speech hardly moves: eye corners, bridge and base of the nose.
STABLE_POINTS = (33, 133, 362, 263, 168, 6, 197, 195, 5, 2, 98, 327)
# Where they lie on the mean face, in pixels of a mouth crop relative to the middle of the lips. The mean of the four
# talkers of GRID at hand, made symmetric and scaled to a mouth 48 px wide, half of the crop as in LRS and AV-HuBERT.
MEAN_FACE_K2: NDArray[np.float64] = np.array(
    [
        (-42.1, -71.2), (-16.5, -70.1), (16.5, -70.1), (42.1, -71.2), (0.0, -75.9), (0.0, -68.6),
        (0.0, -61.6), (0.0, -55.0), (0.0, -47.9), (0.0, -25.5), (-16.3, -27.2), (16.3, -27.2),
    ]
)  # fmt: skip
# The outer lip contour.
LIP_POINTS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)


def rotate_scale(angle_rad: float, scale: float) -> NDArray[np.float64]:
    """The 2x2 matrix that turns by an angle (clockwise on the screen, where y points down) and scales."""
    cos, sin = scale * np.cos(angle_rad), scale * np.sin(angle_rad)
    return np.array([[cos, -sin], [sin, cos]])


def similarity_between(source_K2: NDArray[np.floating], target_K2: NDArray[np.floating]) -> NDArray[np.float64]:
    """The 2x3 similarity (rotation, scale, shift; no mirror) that brings source nearest to target in least squares.

    In the plane Umeyama's solution (IEEE TPAMI 13(4), 1991) without reflection is a division of complex numbers.

    Raises:
        ValueError: if all source points coincide.
    """
    source = source_K2[:, 0] + 1j * source_K2[:, 1]
    target = target_K2[:, 0] + 1j * target_K2[:, 1]
    centred = source - source.mean()
    spread = float((np.abs(centred) ** 2).sum())
    if spread == 0.0:
        raise ValueError("the source points coincide, which determines no similarity")
    factor = (centred.conj() * (target - target.mean())).sum() / spread
    shift = target.mean() - factor * source.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def apply(matrix_23: NDArray[np.float64], points_K2: NDArray[np.floating]) -> NDArray[np.float64]:
    """The points in the other picture, (K, 2)."""
    return np.asarray(points_K2 @ matrix_23[:, :2].T + matrix_23[:, 2], dtype=np.float64)


def crop_placement(
    stable_K2: NDArray[np.floating], mouth_2: NDArray[np.floating], size_px: int = MOUTH_SIZE_PX
) -> NDArray[np.float64]:
    """Where a mouth crop lies in the picture: turned and scaled like the mean face, centred on the mouth.

    Args:
        stable_K2: the `STABLE_POINTS` in the picture.
        mouth_2: the middle of the lips in the picture.
        size_px: height and width of the crop.

    Returns:
        2x3, maps coordinates of the crop to coordinates of the picture.
    """
    linear = similarity_between(MEAN_FACE_K2, stable_K2)[:, :2] * (MOUTH_SIZE_PX / size_px)
    return np.column_stack([linear, mouth_2 - linear @ np.full(2, size_px / 2)])


def warp(image: NDArray[np.uint8], to_image_23: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """Cuts a square patch, bilinear; what lies outside of the image is black.

    Args:
        image: (H, W) grey or (H, W, 3) RGB.
        to_image_23: maps coordinates of the patch to coordinates of the image.
        size_px: height and width of the patch.

    Returns:
        uint8 (size_px, size_px) or (size_px, size_px, 3).
    """
    patch_shape = (size_px, size_px, *image.shape[2:])
    corners = apply(to_image_23, np.array([[0, 0], [size_px, 0], [0, size_px], [size_px, size_px]], dtype=np.float64))
    limit = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(corners.min(axis=0)) - 2, 0, limit).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 2, 0, limit).astype(int)
    if (high <= low).any():
        return np.zeros(patch_shape, dtype=np.uint8)
    region = Image.fromarray(np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]))
    matrix = to_image_23.copy()
    matrix[:, 2] -= low
    # Bilinear sampling skips pixels when it shrinks by more than 2: average blocks of pixels first.
    factor = int(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if factor >= 2:
        region = region.reduce(factor)
        matrix = matrix / factor
    patch = region.transform(
        (size_px, size_px), Image.Transform.AFFINE, tuple(matrix.ravel().tolist()), Image.Resampling.BILINEAR
    )
    return np.asarray(patch, dtype=np.uint8).reshape(patch_shape)
