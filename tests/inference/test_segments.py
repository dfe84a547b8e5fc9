"""Where long recordings are cut."""

import itertools
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtsk.inference.segments import MAX_SEGMENT_S, SegmentInput, SegmentRules, segment_stream
from mtsk.media.mouth import Crop, Sighting
from mtsk.media.stream import MediaPiece, stream_media
from mtsk.media.vad import SpeechDetector
from mtsk.types import SAMPLE_RATE_HZ
from tests.inference.ear import Ear
from tests.media.regions import speech_regions
from tests.shared import shared_data

# Segments of what is decoded piece by piece.


def _recording(stretches: list[tuple[float, float]], seed: int = 0) -> NDArray[np.float32]:
    """Loud and soft in turns, each of a length in seconds."""
    rng = np.random.default_rng(seed)
    parts = [
        level * rng.uniform(0.6, 1.0, round(length_s * SAMPLE_RATE_HZ))
        for stretch in stretches
        for level, length_s in zip((0.5, 0.001), stretch, strict=True)
    ]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32)


_CROPS = [(np.full((96, 96), index, np.uint8), Sighting(index % 3)) for index in range(252)]


def _crops(first: int, end: int) -> tuple[Crop, ...]:
    """Each crop carries its number."""
    return tuple(_CROPS[index % 252] for index in range(first, end))


def _pieces(sound: NDArray[np.float32], num_frames: int, piece_frames: int) -> list[MediaPiece]:
    """Sound and crops in pieces; either may end first."""
    size = piece_frames * 640
    total = max(len(sound), num_frames * 640)
    pieces = []
    for start in range(0, total, size):
        waveform = sound[start : start + size]
        crops = _crops(start // 640, min(num_frames, start // 640 + piece_frames))
        duration_s = max(len(waveform) / SAMPLE_RATE_HZ, len(crops) / 25)
        pieces.append(MediaPiece(start / SAMPLE_RATE_HZ, duration_s, waveform, crops, num_faces=2))
    return pieces


def _told(segments: Iterable[SegmentInput]) -> list[tuple[object, ...]]:
    return [
        (
            segment.start_s, segment.end_s, segment.speech_s,
            None if segment.waveform is None else segment.waveform.tobytes(),
            None if segment.mouth is None else (segment.mouth.crops_THW.tobytes(), segment.mouth.num_detected),
        )
        for segment in segments
    ]  # fmt: skip


lengths = st.one_of(st.floats(0.05, 3.0), st.floats(0.05, 0.6), st.floats(5.0, 20.0))
recordings = st.lists(st.tuples(lengths, lengths), max_size=6)


@settings(max_examples=25, deadline=None)
@given(recordings, st.integers(1, 60), st.sampled_from(["sound", "both", "longer video"]), st.booleans())
def test_segments_of_a_stream(
    stretches: list[tuple[float, float]], piece_frames: int, kind: str, keep_silence: bool
) -> None:
    sound = _recording(stretches)
    num_frames = {"sound": 0, "both": -(-len(sound) // 640), "longer video": len(sound) // 640 + 300}[kind]
    total = max(len(sound), num_frames * 640)
    rules = SegmentRules(keep_silence=keep_silence)
    segments = list(segment_stream(_pieces(sound, num_frames, piece_frames), Ear(), rules))
    edges_s = [edge for segment in segments for edge in (segment.start_s, segment.end_s)]
    assert edges_s == sorted(edges_s)  # in order and disjoint
    assert all(0 < segment.end_s - segment.start_s <= MAX_SEGMENT_S + 1e-9 for segment in segments)
    assert not edges_s or (edges_s[0] >= 0.0 and edges_s[-1] <= total / SAMPLE_RATE_HZ)
    # All that is speech is covered, and counted.
    ear = Ear()
    speech = speech_regions(np.concatenate([ear.feed(sound), ear.finish()]))
    speech = [(start, min(end, total / SAMPLE_RATE_HZ)) for start, end in speech]
    total_speech_s = sum(end - start for start, end in speech)
    assert sum(segment.speech_s for segment in segments) == pytest.approx(total_speech_s, abs=1e-6)
    covered_s = sum(
        max(0.0, min(end, segment.end_s) - max(start, segment.start_s)) for start, end in speech for segment in segments
    )
    assert covered_s == pytest.approx(total_speech_s, abs=1e-6)
    # Sound and lips are those of their times.
    for segment in segments:
        start, end = round(segment.start_s * SAMPLE_RATE_HZ), round(segment.end_s * SAMPLE_RATE_HZ)
        assert start % 640 == 0
        expected = sound[start:end]
        np.testing.assert_array_equal(np.zeros(0) if segment.waveform is None else segment.waveform, expected)
        crops = [crop[0, 0] for crop, _ in _crops(start // 640, min(num_frames, -(-end // 640)))]
        assert ([] if segment.mouth is None else segment.mouth.crops_THW[:, 0, 0].tolist()) == crops
        assert keep_silence or segment.speech_s > 0
    if keep_silence and total:
        assert edges_s[0] == 0.0
        assert edges_s[-1] == total / SAMPLE_RATE_HZ
        assert edges_s[1:-1:2] == edges_s[2::2]  # without a gap
    # However it arrives.
    for other in (3, 10_000):
        again = segment_stream(_pieces(sound, num_frames, other), Ear(), rules)
        assert _told(again) == _told(segments)


def test_a_short_recording_is_whole_or_nothing() -> None:
    for duration_s in (3.0, MAX_SEGMENT_S):
        sound = _recording([(0.5, 2.0)])
        sound = np.concatenate([sound, np.zeros(round(duration_s * SAMPLE_RATE_HZ) - len(sound), np.float32)])
        (segment,) = segment_stream(_pieces(sound, 30, 25), Ear())
        assert (segment.start_s, segment.end_s) == (0.0, duration_s)
        np.testing.assert_array_equal(segment.waveform, sound)
        assert segment.mouth is not None
        assert segment.mouth.num_frames == 30
        assert (segment.mouth.num_detected, segment.mouth.num_faces) == (10, 2)
        assert segment.speech_s == pytest.approx(0.5, abs=0.04)
        silence = np.zeros_like(sound)
        assert list(segment_stream(_pieces(silence, 30, 25), Ear())) == []
        (kept,) = segment_stream(_pieces(silence, 30, 25), Ear(), SegmentRules(keep_silence=True))
        assert (kept.end_s, kept.speech_s) == (duration_s, 0.0)


def test_two_short_stretches_of_a_short_recording_are_one_segment() -> None:
    (segment,) = segment_stream(_pieces(_recording([(1.0, 4.0), (1.0, 4.0)]), 0, 25), Ear())
    assert (segment.start_s, segment.end_s) == (0.0, 10.0)
    assert segment.mouth is None
    assert segment.speech_s == pytest.approx(2.0, abs=0.1)


def test_long_pauses_are_left_out_and_short_ones_are_not() -> None:
    sound = _recording([(2.0, 0.5), (2.0, 5.0), (3.0, 20.0)])
    first, second = segment_stream(_pieces(sound, 0, 25), Ear())
    assert (first.start_s, first.end_s) == pytest.approx((0.0, 4.7), abs=0.08)
    assert (second.start_s, second.end_s) == pytest.approx((9.3, 12.7), abs=0.08)


def test_too_much_is_cut_at_the_longest_pause() -> None:
    """Of the second half: the pauses are at 5-5.9, 10-10.7 and 14-14.3 s."""
    sound = _recording([(5.0, 0.9), (4.1, 0.7), (3.3, 0.3), (12.0, 3.0)])
    first, second = segment_stream(_pieces(sound, 0, 25), Ear())
    assert (first.start_s, first.end_s) == pytest.approx((0.0, 10.2), abs=0.08)
    assert (second.start_s, second.end_s) == pytest.approx((10.5, 26.5), abs=0.08)


def test_without_a_pause_in_the_second_half_one_before_will_do() -> None:
    sound = _recording([(5.0, 0.6), (14.0, 3.0)])
    first, second = segment_stream(_pieces(sound, 0, 25), Ear())
    assert (first.end_s, second.start_s) == pytest.approx((5.2, 5.4), abs=0.08)


def test_without_any_pause_the_quietest_moment_is_cut() -> None:
    sound = _recording([(30.0, 2.0)])
    start = round(11.1 * SAMPLE_RATE_HZ)
    sound[start : start + 6400] *= 0.6  # speech still, of 0.4 s
    first, second = itertools.islice(segment_stream(_pieces(sound, 0, 25), Ear()), 2)
    assert first.end_s == second.start_s
    assert 11.1 < first.end_s < 11.5


def test_a_little_too_much_leaves_no_tiny_rest() -> None:
    first, second = segment_stream(_pieces(_recording([(17.0, 3.0)]), 0, 25), Ear())
    assert second.end_s - second.start_s >= 4.0
    assert first.end_s == second.start_s


@pytest.mark.parametrize("num_frames", [401, 1000, 2001])
def test_lips_alone_are_kept_whole_and_cut_as_ever(num_frames: int) -> None:
    segments = list(segment_stream(_pieces(np.zeros(0, np.float32), num_frames, 25), None))
    edges_s = [segments[0].start_s, *(segment.end_s for segment in segments)]
    expected_s, duration_s = [0.0], num_frames / 25
    while duration_s - expected_s[-1] > MAX_SEGMENT_S:
        expected_s.append(min(expected_s[-1] + MAX_SEGMENT_S, duration_s - MAX_SEGMENT_S / 4))
    assert edges_s == pytest.approx([*expected_s, duration_s], abs=0.04)
    assert all(segment.waveform is None and segment.mouth is not None for segment in segments)


def test_a_hole_in_sound_and_crops_is_filled() -> None:
    """What a file gave too late is missing from the pieces."""
    pieces = _pieces(_recording([(8.0, 0.5)]), 200, 25)
    pieces[3] = replace(pieces[3], waveform=np.zeros(0, np.float32))
    pieces[5] = replace(pieces[5], crops=())
    (segment,) = segment_stream(pieces, Ear())
    assert segment.waveform is not None
    assert segment.mouth is not None
    assert not segment.waveform[48_000:64_000].any()
    assert segment.waveform[64_000:64_010].all()
    assert not segment.mouth.crops_THW[125:150].any()
    assert segment.mouth.crops_THW[150, 0, 0] == 150


def _endless(num_pieces: int, given: list[int]) -> Iterator[MediaPiece]:
    """Speech of 3 s and pauses of 0.4 s, with lips."""
    sound = _recording([(3.0, 0.4)] * 5)
    for index in range(num_pieces):
        given.append(index)
        yield MediaPiece(float(index), 1.0, sound[index % 17 * 16_000 :][:16_000], _crops(0, 25), 1)


@pytest.mark.parametrize("keep_silence", [False, True])
def test_a_segment_comes_when_its_end_is_certain(keep_silence: bool) -> None:
    given: list[int] = []
    for segment in segment_stream(_endless(120, given), Ear(), SegmentRules(keep_silence=keep_silence)):
        assert len(given) - segment.end_s < 14.0
        assert len(given) - segment.start_s <= 22.0


@pytest.mark.parametrize(("level", "keep_silence"), [(1.0, False), (1.0, True), (0.0, False), (0.0, True)])
def test_memory_does_not_grow(level: float, keep_silence: bool) -> None:
    """Twenty minutes of sound and two of lips: 77 and 28 MB, of which some 25 s are held."""

    def pieces(num_pieces: int, num_crops: int) -> Iterator[MediaPiece]:
        for piece in _endless(num_pieces, []):
            crops = tuple((crop.copy(), seen) for crop, seen in piece.crops[:num_crops])
            yield replace(piece, waveform=np.float32(level) * piece.waveform, crops=crops)

    for num_pieces, num_crops in ((1200, 0), (120, 25)):
        tracemalloc.start()
        for segment in segment_stream(pieces(num_pieces, num_crops), Ear(), SegmentRules(keep_silence=keep_silence)):
            assert segment.end_s - segment.start_s <= MAX_SEGMENT_S + 1e-9
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 18e6


def test_a_recording_with_the_network(tmp_path: Path) -> None:
    """From a file to segments: read speech, between and around it silence."""
    files = sorted((shared_data("librispeech") / "test-other").glob("*.flac"))[:4]
    silence = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
    parts = [silence]
    for file in files:
        parts += [soundfile.read(file, dtype="float32")[0], silence]
    soundfile.write(tmp_path / "long.flac", np.concatenate(parts), SAMPLE_RATE_HZ)
    segments = list(segment_stream(stream_media(tmp_path / "long.flac", tracker=None), SpeechDetector()))
    assert len(segments) >= 4
    ends_s = np.cumsum([len(part) / SAMPLE_RATE_HZ for part in parts])
    for silence_end_s in ends_s[::2]:  # no segment reaches far into a silence
        middle_s = silence_end_s - 1.5
        assert not any(segment.start_s < middle_s < segment.end_s for segment in segments)
    said_s = sum(len(part) for part in parts[1::2]) / SAMPLE_RATE_HZ
    assert sum(segment.end_s - segment.start_s for segment in segments) > 0.85 * said_s


@pytest.mark.parametrize("values", [{"max_s": 1.0}, {"padding_s": 0.5}, {"padding_s": -0.1}])
def test_rules_must_make_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="given"):
        SegmentRules(**values)
