"""How noisy a recording is, from its sound alone: a guess of the signal-to-noise ratio, without a model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtsk.types import SAMPLE_RATE_HZ

_WINDOW_S, _HOP_S = 0.05, 0.01
_QUIET, _LOUD = 0.1, 0.9  # shares of the windows: pauses between words, and vowels
_FLOOR = 1e-10  # power: below it is dither
_MAX_DB = 100.0


def estimate_snr_db(waveform_N: NDArray[np.float32]) -> float:
    """How much louder the loud moments are than the quiet ones, in dB, from 0 to 100.

    Speech has pauses, and noise fills them. What is measured is no true ratio but rises with it: babble at 5, 0 and
    -5 dB gives about 13, 9 and 7, a quiet room 20 and more. Louder or softer recordings give the same.

    Args:
        waveform_N: 16 kHz. One shorter than 50 ms is one window, which gives 0.
    """
    window, hop = round(_WINDOW_S * SAMPLE_RATE_HZ), round(_HOP_S * SAMPLE_RATE_HZ)
    total_N = np.concatenate([[0.0], np.cumsum(np.square(waveform_N, dtype=np.float64))])
    size = min(window, len(waveform_N))
    if size == 0:
        return 0.0
    starts = np.arange(0, len(waveform_N) - size + 1, hop)
    power = np.maximum((total_N[starts + size] - total_N[starts]) / size, _FLOOR)
    quiet, loud = np.quantile(power, [_QUIET, _LOUD])
    return min(_MAX_DB, 10 * math.log10(loud / quiet))
