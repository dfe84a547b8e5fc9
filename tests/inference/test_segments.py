"""Where long recordings are cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtsk.inference.segments import MAX_SEGMENT_S, cut_points
from mtsk.types import SAMPLE_RATE_HZ

durations = st.floats(0.0, 90.0)


def _noise(duration_s: float, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(duration_s * SAMPLE_RATE_HZ))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(durations, st.sampled_from(["sound", "shorter sound", "no sound"]), st.sampled_from([4.0, MAX_SEGMENT_S]))
def test_segments_cover_everything_and_are_neither_long_nor_tiny(duration_s: float, kind: str, max_s: float) -> None:
    sound_s = duration_s * (0.4 if kind == "shorter sound" else 1.0)
    points = cut_points(None if kind == "no sound" else _noise(sound_s), duration_s, max_s)
    assert points[0] == 0.0
    assert points[-1] == duration_s
    lengths = [end - start for start, end in itertools.pairwise(points)]
    assert max(lengths) <= max_s + 1e-9
    assert all(length > 0 for length in lengths) or points == [0.0, 0.0]
    # A rest of a few frames would be too short for a single token of a coarse scale.
    assert len(lengths) == 1 or min(lengths) >= max_s / 4 - 1e-9
    assert len(lengths) <= duration_s // (max_s / 2) + 1


@settings(max_examples=30, deadline=None)
@given(st.floats(9.0, 15.0), st.floats(21.0, 60.0))
def test_the_cut_lies_in_the_silence(silence_s: float, duration_s: float) -> None:
    waveform = _noise(duration_s)
    start, end = round(silence_s * SAMPLE_RATE_HZ), round((silence_s + 0.5) * SAMPLE_RATE_HZ)
    waveform[start:end] *= 0.001
    points = cut_points(waveform, duration_s)
    assert silence_s <= points[1] <= silence_s + 0.5


def test_short_recordings_stay_whole() -> None:
    assert cut_points(_noise(MAX_SEGMENT_S), MAX_SEGMENT_S) == [0.0, MAX_SEGMENT_S]
    assert cut_points(None, 3.0) == [0.0, 3.0]


@pytest.mark.parametrize("duration_s", [16.04, 17.0, 32.04])
def test_a_little_too_long_leaves_no_tiny_rest(duration_s: float) -> None:
    """Lips alone: one frame more than a segment holds."""
    points = cut_points(None, duration_s)
    assert min(end - start for start, end in itertools.pairwise(points)) >= 4.0


def test_sound_that_stops_early_is_cut_where_there_is_sound_or_at_the_end() -> None:
    points = cut_points(_noise(10.0), 40.0)
    assert 8.0 < points[1] < 10.0
    assert points[2] == points[1] + MAX_SEGMENT_S
