"""Contact sheets: mouth crops on one picture, for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def contact_sheet(crops_THW: NDArray[np.uint8], path: str | Path, *, num_columns: int = 15, every: int = 1) -> None:
    """Writes a PNG with crops in the order of time, line by line.

    Args:
        crops_THW: uint8 (T, H, W), grey.
        path: the picture to write.
        num_columns: crops per line.
        every: shows each `every`-th crop.

    Raises:
        ValueError: if there are no crops, or a count is below 1.
    """
    if crops_THW.ndim != 3 or not len(crops_THW):
        raise ValueError(f"a contact sheet needs crops of shape (T, H, W) with T >= 1, not {crops_THW.shape}")
    if num_columns < 1 or every < 1:
        raise ValueError(f"num_columns and every are 1 or more, not {num_columns} and {every}")
    shown = crops_THW[::every]
    num_columns = min(num_columns, len(shown))
    num_rows = -(-len(shown) // num_columns)
    _, height, width = shown.shape
    cells = np.zeros((num_rows * num_columns, height, width), np.uint8)
    cells[: len(shown)] = shown
    sheet = cells.reshape(num_rows, num_columns, height, width).swapaxes(1, 2)
    Image.fromarray(np.ascontiguousarray(sheet).reshape(num_rows * height, num_columns * width)).save(
        path, format="PNG"
    )
