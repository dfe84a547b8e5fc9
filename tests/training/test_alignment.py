"""Forced alignment: the path against all paths, the sound detector on known sound, and word times against GRID's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsk.checkpoints.sources import is_cached
from mtsk.data.corpora.grid import parse_align
from mtsk.media import load_media
from mtsk.training.alignment import WhisperAligner, active_hops, monotone_path
from tests.shared import shared_data


def _score(match_NT: np.ndarray, begins: tuple[int, ...]) -> float:
    bounds = [*begins, match_NT.shape[1]]
    return float(sum(match_NT[n, begin:end].sum() for n, (begin, end) in enumerate(itertools.pairwise(bounds))))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 5))
def test_no_path_is_better(seed: int, num_tokens: int, num_more: int) -> None:
    num_steps = num_tokens + num_more
    match_NT = np.random.default_rng(seed).normal(size=(num_tokens, num_steps)).astype(np.float32)
    begins = monotone_path(match_NT)
    assert begins[0] == 0
    assert (np.diff(begins) > 0).all()
    every = [(0, *inner) for inner in itertools.combinations(range(1, num_steps), num_tokens - 1)]
    best = max(_score(match_NT, begins) for begins in every)
    assert _score(match_NT, tuple(begins.tolist())) == pytest.approx(best, abs=1e-4)


def _bursts(noise: float) -> np.ndarray:
    """2 s with sound from 0.5 to 0.9 s and from 1.3 to 1.7 s."""
    rng = np.random.default_rng(0)
    waveform = noise * rng.normal(size=32_000)
    for begin in (8_000, 20_800):
        waveform[begin : begin + 6_400] += 0.1 * rng.normal(size=6_400)
    return waveform.astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.01])
def test_sound_is_where_it_is(noise: float) -> None:
    active = active_hops(_bursts(noise))
    assert len(active) == 200
    edges = np.flatnonzero(np.diff(active.astype(int)))
    np.testing.assert_allclose(edges, [50, 90, 130, 170], atol=4)


def test_steady_sound_is_all_active() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    assert active_hops(noise).all()
    assert active_hops(np.zeros(16_000, np.float32)).all()


needs_whisper = pytest.mark.skipif(not is_cached("whisper-base"), reason="whisper-base is not cached: `make weights`")


@pytest.fixture(scope="module")
def aligner() -> WhisperAligner:
    return WhisperAligner()


def _errors_s(aligner: WhisperAligner, num_clips: int) -> np.ndarray:
    """Found minus true, for the start and the end of each word of the first clips of GRID's dev split."""
    folder = shared_data("grid")
    errors = []
    for name in json.loads((folder / "s1_splits.json").read_text())["dev"][:num_clips]:
        true = parse_align((folder / "s1" / f"{name}.align").read_text())
        waveform = load_media(folder / "s1" / f"{name}.mp4", tracker=None).waveform
        assert waveform is not None
        found = aligner.align(waveform, " ".join(word.text for word in true).upper())
        assert [word.text for word in found] == [word.text.upper() for word in true]
        assert all(word.start_s < word.end_s for word in found)
        assert all(first.end_s <= second.start_s for first, second in itertools.pairwise(found))
        errors += [(f.start_s - t.start_s, f.end_s - t.end_s) for f, t in zip(found, true, strict=True)]
    return np.array(errors)


@pytest.mark.weights
@needs_whisper
def test_word_times_of_a_few_clips(aligner: WhisperAligner) -> None:
    errors_s = np.abs(_errors_s(aligner, 4))
    assert errors_s.mean() < 0.06
    assert np.median(errors_s) < 0.045


@pytest.mark.slow
@pytest.mark.weights
@needs_whisper
def test_word_times_of_the_dev_split(aligner: WhisperAligner) -> None:
    errors_s = _errors_s(aligner, 40)
    for kind, values in (("starts", errors_s[:, 0]), ("ends", errors_s[:, 1]), ("all", errors_s)):
        size_ms = 1e3 * np.abs(values)
        print(
            f"{kind}: mean |error| {size_ms.mean():.0f} ms, median {np.median(size_ms):.0f} ms, "
            f"within 50 ms {np.mean(size_ms <= 50):.0%}, within 100 ms {np.mean(size_ms <= 100):.0%}"
        )
    assert np.abs(errors_s).mean() < 0.05


@pytest.mark.weights
@needs_whisper
def test_words_keep_off_the_pause(aligner: WhisperAligner) -> None:
    """A pause put between two clips belongs to no word."""
    folder = shared_data("grid")
    names = json.loads((folder / "s1_splits.json").read_text())["dev"][1:3]
    true = [parse_align((folder / "s1" / f"{name}.align").read_text()) for name in names]
    clips = [load_media(folder / "s1" / f"{name}.mp4", tracker=None).waveform for name in names]
    assert clips[0] is not None
    assert clips[1] is not None
    found = aligner.align(np.concatenate(clips), " ".join(word.text for words in true for word in words))  # type: ignore[arg-type]
    offset_s = len(clips[0]) / 16_000
    assert len(found) == 12
    assert found[5].end_s == pytest.approx(true[0][-1].end_s, abs=0.15)
    assert found[6].start_s == pytest.approx(offset_s + true[1][0].start_s, abs=0.15)


@pytest.mark.weights
@needs_whisper
def test_limits(aligner: WhisperAligner) -> None:
    assert aligner.align(np.zeros(1600, np.float32), "  ") == ()
    with pytest.raises(ValueError, match="up to 30"):
        aligner.align(np.zeros(16_000 * 30 + 1, np.float32), "hello")
    with pytest.raises(ValueError, match=r"text of 12 tokens given for 0\.20 s; at most 10 fit"):
        aligner.align(np.zeros(3200, np.float32), "a b c d e f g h i j k l")
    (word,) = aligner.align(np.zeros(8000, np.float32), "hello")
    assert (word.start_s, word.end_s) == (0, 0.5)
