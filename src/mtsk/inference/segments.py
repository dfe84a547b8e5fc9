"""Where to cut a recording that is too long for one pass: at its quietest moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtsk.types import SAMPLE_RATE_HZ

MAX_SEGMENT_S = 16.0  # the longest segments that such models are trained on (arXiv 2503.06362)
_WINDOW_S = 0.2


def cut_points(waveform: NDArray[np.float32] | None, duration_s: float, max_s: float = MAX_SEGMENT_S) -> list[float]:
    """Times in seconds from 0 to the end; neighbours are at most `max_s` apart.

    Each cut lies at the quietest 0.2 s of the second half of what a segment may span; without sound, at its end. What
    follows the last cut lasts at least a quarter of `max_s`: a rest of some frames would be too short for a token.
    """
    points = [0.0]
    while duration_s - points[-1] > max_s:
        low, high = points[-1] + max_s / 2, min(points[-1] + max_s, duration_s - max_s / 4)
        points.append(high if waveform is None else _quietest(waveform, low, high))
    return [*points, duration_s]


def _quietest(waveform: NDArray[np.float32], low_s: float, high_s: float) -> float:
    size = round(_WINDOW_S * SAMPLE_RATE_HZ)
    piece = waveform[round(low_s * SAMPLE_RATE_HZ) : round(high_s * SAMPLE_RATE_HZ)]
    num_windows = len(piece) // size
    if num_windows == 0:
        return high_s
    power = np.square(piece[: num_windows * size].reshape(num_windows, size)).sum(axis=1)
    return low_s + (int(power.argmin()) + 0.5) * _WINDOW_S
