"""Random changes of a training example, the same for the same generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mtsk.config import AugmentConfig
from mtsk.data.noise import Babble, mix_at_snr
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Example, Word

_SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // VIDEO_FPS
_GREY = 128.0


def augment(example: Example, config: AugmentConfig, babble: Babble | None, rng: np.random.Generator) -> Example:
    """A changed copy of an example.

    In this order: speed, shift (both of sound, lips and words together); of the lips place, mirror image, contrast
    and frozen stretches; of the sound level, babble and silent stretches. Sound and lips are changed from streams of
    their own, so the lips come out the same with or without sound, and the other way round.

    Args:
        example: left as it is.
        config: how much.
        babble: None adds none, whatever `config.noise_prob` says.
        rng: decides everything.
    """
    both_rng, lips_rng, sound_rng = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=3))
    rate = 1.0 + both_rng.uniform(-config.speed, config.speed)
    max_shift = int(config.shift_s * VIDEO_FPS)
    shift = int(both_rng.integers(-max_shift, max_shift, endpoint=True))
    if example.words:  # never cut into the first word
        shift = max(shift, -int(example.words[0].start_s / rate * VIDEO_FPS))

    waveform, mouth = example.waveform, example.mouth
    if waveform is not None:
        waveform = change_sound_time(waveform, rate, shift)
        waveform = _change_sound(waveform, config, babble, sound_rng)
    if mouth is not None:
        frames = lip_frames(len(mouth), rate, shift)
        mouth = _change_lips(mouth, frames, config, lips_rng)
    num_samples = 0 if waveform is None else len(waveform)
    num_frames = 0 if mouth is None else len(mouth)
    duration_s = max(num_samples / SAMPLE_RATE_HZ, num_frames / VIDEO_FPS)
    words = change_word_times(example.words, rate, shift, duration_s)
    return replace(example, waveform=waveform, mouth=mouth, words=words)


def change_sound_time(waveform: NDArray[np.float32], rate: float, shift_frames: int) -> NDArray[np.float32]:
    """Runs the sound `rate` times as fast (linear interpolation; the pitch goes along), then moves its start.

    Args:
        waveform: (N,).
        rate: above 1 is faster.
        shift_frames: video frames of silence put before it; negative: cut off. At least one sample is left.
    """
    num_samples = max(1, round(len(waveform) / rate))
    positions = np.arange(num_samples) * rate
    left = np.minimum(positions.astype(np.int64), len(waveform) - 1)
    right = np.minimum(left + 1, len(waveform) - 1)
    share = (positions - left).astype(np.float32)
    share[left == right] = 0.0
    faster = np.asarray(waveform[left] * (1.0 - share) + waveform[right] * share, dtype=np.float32)
    shift = shift_frames * _SAMPLES_PER_FRAME
    if shift >= 0:
        return np.concatenate([np.zeros(shift, dtype=np.float32), faster])
    return faster[min(-shift, num_samples - 1) :]


def lip_frames(num_frames: int, rate: float, shift_frames: int) -> NDArray[np.int64]:
    """Which frame to show at each step, for lips that run `rate` times as fast and start `shift_frames` later.

    The first frame is held before the start; negative shifts cut frames off, but the last.
    """
    num_faster = max(1, round(num_frames / rate))
    frames = np.minimum(((np.arange(num_faster) + 0.5) * rate).astype(np.int64), num_frames - 1)
    if shift_frames >= 0:
        return np.concatenate([np.full(shift_frames, frames[0]), frames])
    return frames[min(-shift_frames, num_faster - 1) :]


def change_word_times(words: tuple[Word, ...], rate: float, shift_frames: int, duration_s: float) -> tuple[Word, ...]:
    """Word times that follow, clipped to [0, duration_s]."""
    shift_s = shift_frames / VIDEO_FPS

    def moved(time_s: float) -> float:
        return min(max(time_s / rate + shift_s, 0.0), duration_s)

    return tuple(Word(word.text, moved(word.start_s), moved(word.end_s)) for word in words)


def masks(num_steps: int, steps_per_s: int, longest_s: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Stretches (start, end) in steps, one for each second, of random place and length up to `longest_s`."""
    longest = round(longest_s * steps_per_s)
    if longest < 1 or num_steps < 1:
        return []
    num_masks = max(1, round(num_steps / steps_per_s))
    starts = rng.integers(num_steps, size=num_masks)
    lengths = rng.integers(longest, size=num_masks, endpoint=True)
    return [(int(start), int(min(start + length, num_steps))) for start, length in zip(starts, lengths, strict=True)]


def _change_sound(
    waveform: NDArray[np.float32], config: AugmentConfig, babble: Babble | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    peak = float(np.abs(waveform).max())
    gain = 10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20)
    waveform = waveform * np.float32(min(gain, 1.0 / peak) if peak > 0 else 1.0)
    noisy = rng.random() < config.noise_prob
    if babble is not None and noisy and config.snr_db:
        snr_db = float(rng.choice(np.array(config.snr_db)))
        waveform = mix_at_snr(waveform, babble.draw(len(waveform), rng), snr_db)
    for start, end in masks(len(waveform), SAMPLE_RATE_HZ, config.audio_mask_s, rng):
        waveform[start:end] = 0.0
    return waveform


def _change_lips(
    mouth: NDArray[np.uint8], frames: NDArray[np.int64], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """All moves are one gather: which frame, which lines, which columns."""
    limit = config.mouth_shift_px
    move_y, move_x = rng.integers(-limit, limit, size=2, endpoint=True)
    rows = np.clip(np.arange(mouth.shape[1]) - move_y, 0, mouth.shape[1] - 1)
    columns = np.clip(np.arange(mouth.shape[2]) - move_x, 0, mouth.shape[2] - 1)
    if rng.random() < config.flip_prob:
        columns = columns[::-1]
    contrast, brightness = rng.uniform(-config.mouth_contrast, config.mouth_contrast, size=2)
    greys = np.arange(256)
    table = np.clip((greys - _GREY) * (1 + contrast) + _GREY * (1 + brightness), 0, 255).round().astype(np.uint8)
    frames = frames.copy()
    for start, end in masks(len(frames), VIDEO_FPS, config.video_mask_s, rng):
        frames[start:end] = frames[max(start - 1, 0)]
    moved = mouth[frames].take(rows, axis=1).take(columns, axis=2)
    return np.asarray(table.take(moved), dtype=np.uint8)
