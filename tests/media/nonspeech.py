"""Ten kinds of sound without speech, made of numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mtsk.types import SAMPLE_RATE_HZ

Values = NDArray[np.float64]
_RATE = SAMPLE_RATE_HZ


def _noise(power: float, level: float) -> Callable[[Values], Values]:
    """Noise whose amplitude falls with this power of the frequency."""

    def make(time_s: Values) -> Values:
        spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(time_s)))
        sound = np.fft.irfft(spectrum / np.maximum(1, np.arange(len(spectrum))) ** power, len(time_s))
        return np.asarray(level * sound / sound.std())

    return make


def _hum(time_s: Values) -> Values:
    """Mains with harmonics."""
    return np.asarray(0.1 * sum(np.sin(2 * np.pi * 50 * k * time_s) / k for k in range(1, 9)))


def _clicks(time_s: Values) -> Values:
    sound = np.zeros(len(time_s))
    decay = 0.5 * np.exp(-np.arange(200) / 30)
    for start in np.random.default_rng(1).integers(0, len(sound) - 200, 3 * len(sound) // _RATE):
        sound[start : start + 200] += decay
    return sound


def _sweep(time_s: Values) -> Values:
    return np.asarray(0.2 * np.sin(2 * np.pi * (80 * time_s + 3920 / (2 * time_s[-1]) * time_s**2)))


def _chords(time_s: Values) -> Values:
    """Music: four chords of tones that die away, one a second."""
    sound = np.zeros(len(time_s))
    for index, start in enumerate(range(0, len(sound), _RATE)):
        time_on_s = time_s[: min(2 * _RATE, len(sound) - start)]
        for ratio in (1.0, 1.26, 1.5):
            for harmonic in range(1, 6):
                tone = np.sin(2 * np.pi * (220, 174.6, 261.6, 196)[index % 4] * ratio * harmonic * time_on_s)
                sound[start : start + len(tone)] += 0.05 / harmonic * tone * np.exp(-2 * time_on_s * harmonic**0.5)
    return sound


def _drums(time_s: Values) -> Values:
    """Music: a kick, a snare, and a hat four times a second."""
    rng = np.random.default_rng(2)
    sound = np.zeros(len(time_s))
    for index, start in enumerate(range(0, len(sound), _RATE // 4)):
        time_on_s = time_s[: min(3000, len(sound) - start)]
        beat = 0.1 * rng.standard_normal(len(time_on_s)) * np.exp(-90 * time_on_s)
        if index % 4 == 0:
            beat += (
                0.5 * np.sin(2 * np.pi * (50 * time_on_s + 4 - 4 * np.exp(-30 * time_on_s))) * np.exp(-18 * time_on_s)
            )
        elif index % 4 == 2:
            beat += 0.3 * rng.standard_normal(len(time_on_s)) * np.exp(-25 * time_on_s)
        sound[start : start + len(beat)] += beat
    return sound


def _made(make: Callable[[Values], Values]) -> Callable[[float], NDArray[np.float32]]:
    def clip(duration_s: float) -> NDArray[np.float32]:
        sound = make(np.arange(round(duration_s * _RATE)) / _RATE)
        return np.clip(sound, -1.0, 1.0).astype(np.float32)

    return clip


NONSPEECH = {
    name: _made(make)
    for name, make in {
        "digital silence": _noise(0.0, 0.0),
        "very soft noise": _noise(0.0, 1e-4),
        "white noise": _noise(0.0, 0.1),
        "pink noise": _noise(0.5, 0.1),
        "brown noise": _noise(1.0, 0.1),
        "hum": _hum,
        "clicks": _clicks,
        "sine sweep": _sweep,
        "chords": _chords,
        "drums": _drums,
    }.items()
}
"""By name: functions of the duration in seconds that make float32 (N,) in [-1, 1] at 16 kHz."""
