"""A detector of speech for clips that hold none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtsk.media.vad import WINDOW_SAMPLES, SpeechDetector


class Ear(SpeechDetector):
    """Stands in for the network: windows with a peak above `level` are speech."""

    level = 0.25

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._rest = np.zeros(0, np.float32)

    def feed(self, samples_N: NDArray[np.float32]) -> NDArray[np.float32]:
        self._rest = np.concatenate([self._rest, samples_N])
        size = len(self._rest) // WINDOW_SAMPLES * WINDOW_SAMPLES
        windows, self._rest = self._rest[:size].reshape(-1, WINDOW_SAMPLES), self._rest[size:]
        return np.asarray(np.abs(windows).max(axis=1, initial=0) > self.level, np.float32)

    def finish(self) -> NDArray[np.float32]:
        return self.feed(np.zeros(-len(self._rest) % WINDOW_SAMPLES, np.float32))


class FineEar(Ear):
    """All that is not silent is speech."""

    level = 0.001
