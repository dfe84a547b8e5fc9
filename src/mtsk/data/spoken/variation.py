"""What makes few voices sound like many talkers in many places: vocal tracts, rooms, microphones, noise, loudness.

Everything is numpy. Word times follow, and the direct sound stays where it is in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtsk.data.spoken.voices import Manner, Speech
from mtsk.types import SAMPLE_RATE_HZ, Word

Floats = NDArray[np.float32]

SPEED = (0.85, 1.2)
TRACT = (0.87, 1.15)
NOISE_SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}
"""Colour -> how fast its amplitude falls with the frequency, as a power."""

_ROOM_PROB, _NOISE_PROB, _BAND_PROB = 0.4, 0.3, 0.15
_BEFORE_S, _AFTER_S = 0.05, 0.15  # of the voice's own quiet, kept around the words
_SLOPE_OCTAVES = 0.3  # of the edges of a band


@dataclass(frozen=True)
class Variation:
    """What happens to a sentence after it was said. What is not drawn is None."""

    tract: float = 1.0
    """Factor of all frequencies, formants and pitch: above 1 is a smaller head."""
    room: tuple[float, float] | None = None
    """Its reverberation time in s, and direct sound over reverberation in dB."""
    noise: tuple[str, float] | None = None
    """Its colour, one of `NOISE_SLOPES`, and the signal-to-noise ratio in dB."""
    band_hz: tuple[float, float] | None = None
    """What a microphone or telephone lets through."""
    lead_s: float = 0.1
    trail_s: float = 0.1
    floor_db: float = -60.0
    """Of the noise that is always there, relative to the speech."""
    level_db: float = -22.0
    """Of the whole, relative to full scale (root mean square); less where peaks would be cut."""
    seed: int = 0
    """Of the noises and the room."""


def draw_manner(num_words: int, tract: float, breaks: tuple[int, ...], rng: np.random.Generator) -> Manner:
    """How to say a sentence.

    Args:
        num_words: of the sentence.
        tract: of the variation that follows; the voice speaks faster or slower by so much, as that undoes it.
        breaks: words after which a pause may be.
        rng: decides everything.
    """
    speed = float(np.exp(rng.uniform(*np.log(SPEED)))) / tract
    pitch, melody = (float(np.exp(rng.uniform(*np.log(ends)))) for ends in ((0.8, 1.3), (0.6, 1.7)))
    pause_prob = rng.choice((0.0, 0.06, 0.15))
    pauses = tuple(place for place in breaks if place < num_words - 1 and rng.random() < pause_prob)
    return Manner(round(speed, 3), round(pitch, 3), round(melody, 3), pauses)


def draw_variation(rng: np.random.Generator) -> Variation:
    """What happens to a sentence after it was said."""
    tract = float(np.exp(rng.uniform(*np.log(TRACT))))
    room = (round(rng.uniform(0.15, 0.8), 3), round(rng.uniform(-2.0, 14.0), 1))
    noise = (str(rng.choice(list(NOISE_SLOPES))), round(rng.uniform(10.0, 35.0), 1))
    telephone = (round(rng.uniform(200.0, 400.0)), round(rng.uniform(3000.0, 3800.0)))
    muffled = (round(rng.uniform(20.0, 80.0)), round(rng.uniform(2500.0, 6000.0)))
    band_hz = telephone if rng.random() < 0.5 else muffled
    has_room, has_noise, has_band = rng.random(3) < (_ROOM_PROB, _NOISE_PROB, _BAND_PROB)
    lead_s, trail_s = rng.uniform(0.05, 0.5, size=2).round(3)
    return Variation(
        tract=round(tract, 4),
        room=room if has_room else None,
        noise=noise if has_noise else None,
        band_hz=band_hz if has_band else None,
        lead_s=float(lead_s),
        trail_s=float(trail_s),
        floor_db=round(rng.uniform(-75.0, -45.0), 1),
        level_db=round(rng.uniform(-30.0, -14.0), 1),
        seed=int(rng.integers(2**32)),
    )


def vary(speech: Speech, variation: Variation) -> tuple[Floats, tuple[Word, ...]]:
    """The sound as it is heard, and when the words are.

    Args:
        speech: what a voice said, at any sample rate.
        variation: what happens to it.

    Returns:
        (N,) in [-1, 1] at 16 kHz, and the words, which lie in it.
    """
    rng = np.random.default_rng(variation.seed)
    waveform, words = _cut(_resized(speech, variation.tract), variation.lead_s, variation.trail_s)
    speech_rms = _rms(waveform)
    if variation.room is not None:
        waveform = reverberate(waveform, *variation.room, rng)
    if variation.noise is not None:
        colour, snr_db = variation.noise
        waveform = waveform + coloured_noise(len(waveform), colour, rng) * speech_rms * _amplitude(-snr_db)
    waveform = waveform + coloured_noise(len(waveform), "pink", rng) * speech_rms * _amplitude(variation.floor_db)
    if variation.band_hz is not None:
        waveform = band_pass(waveform, *variation.band_hz)
    peak, rms = float(np.abs(waveform).max(initial=1e-9)), max(_rms(waveform), 1e-9)
    return np.asarray(waveform * min(_amplitude(variation.level_db) / rms, 0.99 / peak), dtype=np.float32), words


def resample(waveform: Floats, num_samples: int) -> Floats:
    """Stretches or shrinks a waveform to another number of samples, without aliasing (by its spectrum).

    Args:
        waveform: (N,); quiet at its ends, as the end runs into the start.
        num_samples: of the result.
    """
    spectrum = np.fft.rfft(waveform)
    size = num_samples // 2 + 1
    spectrum = np.pad(spectrum[:size], (0, max(0, size - len(spectrum))))
    return np.asarray(np.fft.irfft(spectrum, num_samples) * (num_samples / len(waveform)), dtype=np.float32)


def reverberate(waveform: Floats, t60_s: float, direct_db: float, rng: np.random.Generator) -> Floats:
    """The waveform in a room: noise that dies away, after the direct sound, which stays as it is.

    Args:
        waveform: (N,); the result is as long.
        t60_s: when the reverberation has fallen by 60 dB.
        direct_db: direct sound over reverberation.
        rng: draws the room.
    """
    time_s = np.arange(int(t60_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / t60_s)
    first_echo_s = rng.uniform(0.002, 0.012)
    tail[time_s < first_echo_s] = 0.0
    tail *= (rng.random(len(tail)) < np.clip(time_s / 0.05, 0.01, 1.0)) / np.sqrt(np.clip(time_s / 0.05, 0.01, 1.0))
    response = band_pass(np.asarray(tail, np.float32), 100.0, rng.uniform(3000.0, 7500.0))  # walls swallow high tones
    response *= _amplitude(-direct_db) / max(float(np.sqrt(np.square(response).sum())), 1e-9)
    response[0] = 1.0
    return _convolved(waveform, response)


def coloured_noise(num_samples: int, colour: str, rng: np.random.Generator) -> Floats:
    """Noise with a root mean square of 1, of one of `NOISE_SLOPES`."""
    frequencies = np.fft.rfftfreq(num_samples)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    floor = 50 / SAMPLE_RATE_HZ  # the slope starts here, or everything would be below what can be heard
    spectrum *= np.maximum(frequencies, floor) ** -NOISE_SLOPES[colour] * (frequencies > 0)
    noise = np.fft.irfft(spectrum, num_samples)
    return np.asarray(noise / max(_rms(noise), 1e-9), dtype=np.float32)


def band_pass(waveform: Floats, low_hz: float, high_hz: float) -> Floats:
    """Keeps a band, with edges of a third of an octave and without a shift in time."""
    frequencies_hz = np.maximum(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE_HZ), 1.0)
    octaves = np.minimum(np.log2(frequencies_hz / low_hz), np.log2(high_hz / frequencies_hz))
    gain = 1 / (1 + np.exp(-np.clip(octaves / (_SLOPE_OCTAVES / 4), -40, 40)))
    return np.asarray(np.fft.irfft(np.fft.rfft(waveform) * gain, len(waveform)), dtype=np.float32)


def _resized(speech: Speech, tract: float) -> Speech:
    """At 16 kHz, all frequencies times `tract`."""
    num_samples = max(1, round(len(speech.waveform) * SAMPLE_RATE_HZ / speech.sample_rate_hz / tract))
    words = tuple(Word(word.text, word.start_s / tract, word.end_s / tract) for word in speech.words)
    return Speech(resample(speech.waveform, num_samples), SAMPLE_RATE_HZ, words)


def _cut(speech: Speech, lead_s: float, trail_s: float) -> tuple[Floats, tuple[Word, ...]]:
    """The words with little of the voice's own quiet around them, and silence before and after."""
    duration_s = len(speech.waveform) / SAMPLE_RATE_HZ
    first = round(max(0.0, speech.words[0].start_s - _BEFORE_S) * SAMPLE_RATE_HZ)
    end = round(min(duration_s, speech.words[-1].end_s + _AFTER_S) * SAMPLE_RATE_HZ)
    lead, trail = round(lead_s * SAMPLE_RATE_HZ), round(trail_s * SAMPLE_RATE_HZ)
    waveform = np.pad(speech.waveform[first:end], (lead, trail))
    shift_s, limit_s = (lead - first) / SAMPLE_RATE_HZ, len(waveform) / SAMPLE_RATE_HZ
    words = tuple(
        Word(word.text, max(0.0, word.start_s + shift_s), min(limit_s, word.end_s + shift_s)) for word in speech.words
    )
    return waveform, words


def _convolved(waveform: Floats, response: Floats) -> Floats:
    size = len(waveform) + len(response) - 1
    size = 1 << (size - 1).bit_length()
    product = np.fft.rfft(waveform, size) * np.fft.rfft(response, size)
    return np.asarray(np.fft.irfft(product, size)[: len(waveform)], dtype=np.float32)


def _rms(waveform: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0


def _amplitude(level_db: float) -> float:
    return float(10 ** (level_db / 20))
