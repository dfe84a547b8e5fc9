"""What all voices share: the sound of a sentence with its words' times, and how it is to be said."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtsk.types import Word


@dataclass(frozen=True)
class Speech:
    """What a voice said."""

    waveform: NDArray[np.float32]
    """(N,), mono, in [-1, 1] or a little beyond."""
    sample_rate_hz: int
    words: tuple[Word, ...]
    """Those of the sentence, in its spelling, in order."""


@dataclass(frozen=True)
class Manner:
    """How a sentence is said, as far as the voice itself can."""

    speed: float = 1.0
    """Above 1 is faster."""
    pitch: float = 1.0
    """Factor of its mean; 1 is the voice's own. Voices that have no such setting leave it."""
    melody: float = 1.0
    """Factor of its spread; small is monotonous."""
    pauses: tuple[int, ...] = ()
    """Words after which there is a short pause, counted from 0."""

    def punctuated(self, words: Sequence[str]) -> list[str]:
        """The words, those before a pause with a comma and the last one with a full stop."""
        marks = {place: "," for place in self.pauses} | {len(words) - 1: "."}
        return [word + marks.get(place, "") for place, word in enumerate(words)]


def load_library(names: Sequence[str], install: str) -> ctypes.CDLL:
    """The first of some shared libraries that is there.

    Args:
        names: file names, as the systems call it.
        install: how to get it.

    Raises:
        ValueError: if there is none, saying how to get it.
    """
    for name in names:
        try:
            return ctypes.CDLL(name, mode=os.RTLD_GLOBAL)
        except OSError:
            continue
    raise ValueError(f"the library {names[0]} is missing: {install}")
