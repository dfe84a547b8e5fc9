"""Speech is told from what is not speech."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtsk.media import load_media, vad
from mtsk.media.vad import WINDOW_S, WINDOW_SAMPLES, RegionFinder, SpeechDetector, SpeechRules
from mtsk.types import SAMPLE_RATE_HZ
from tests.media.clips import sound_of
from tests.media.nonspeech import NONSPEECH
from tests.media.regions import speech_regions
from tests.shared import shared_data

Sound = NDArray[np.float32]
probabilities = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), max_size=80)


def detected(sound: Sound) -> Sound:
    detector = SpeechDetector()
    return np.concatenate([detector.feed(sound), detector.finish()])


@pytest.fixture(scope="module")
def speech(request: pytest.FixtureRequest) -> Sound:
    return sound_of(load_media(request.getfixturevalue("talking_clip"), tracker=None))


def test_somebody_speaks(speech: Sound) -> None:
    """GRID: silence, six words in some 1.5 s, silence."""
    regions = speech_regions(detected(speech))
    assert 0.8 < sum(end - start for start, end in regions) < 2.5
    assert 0.1 < regions[0][0] < 1.2
    assert 1.3 < regions[-1][1] < 2.9


def test_librispeech_is_speech_nearly_throughout() -> None:
    files = sorted((shared_data("librispeech") / "test-other").glob("*.flac"))[::10]
    shares = []
    for file in files:
        sound = sound_of(load_media(file, tracker=None))
        regions = speech_regions(detected(sound))
        shares.append(sum(end - start for start, end in regions) / (len(sound) / SAMPLE_RATE_HZ))
    assert len(shares) == 5
    assert min(shares) > 0.6


@pytest.mark.parametrize("kind", NONSPEECH)
def test_nobody_speaks(kind: str) -> None:
    assert speech_regions(detected(NONSPEECH[kind](8.0))) == []


def test_how_the_sound_arrives_changes_nothing(speech: Sound) -> None:
    whole, detector = detected(speech), SpeechDetector()
    assert len(whole) == -(-len(speech) // WINDOW_SAMPLES)
    rng = np.random.default_rng(0)
    for longest in (300, 40_000):
        cuts = np.cumsum(rng.integers(0, longest, 2 * len(speech) // longest))
        pieces = np.split(speech, cuts[cuts < len(speech)])
        parts = [detector.feed(piece) for piece in pieces]
        np.testing.assert_array_equal(np.concatenate([*parts, detector.finish()]), whole)


def test_reset_forgets(speech: Sound) -> None:
    detector = SpeechDetector()
    first = detector.feed(speech)
    assert not np.array_equal(detector.feed(speech), first)
    detector.reset()
    np.testing.assert_array_equal(detector.feed(speech), first)
    assert len(SpeechDetector().finish()) == 0


def test_recordings_in_several_threads_share_one_network(speech: Sound) -> None:
    quiet = 0.5 * speech
    expected = [detected(speech), detected(quiet)]
    assert not np.array_equal(expected[0], expected[1])
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(detected, [speech, quiet] * 4), expected * 4, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert vad._session() is vad._session()


def test_the_network_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vad, "_session", vad._session.__wrapped__)  # as in a new process
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="silero-vad"):
        SpeechDetector().feed(np.zeros(SAMPLE_RATE_HZ * 2, np.float32))


@given(probabilities)
def test_regions_follow_the_rules(values: list[float]) -> None:
    rules = SpeechRules()
    regions = speech_regions(values, rules)
    edges = [0.0, *(edge for region in regions for edge in region), len(values) * WINDOW_S]
    assert edges == sorted(edges)
    for start, end in regions:
        assert end - start >= rules.min_speech_s
        first, last = round(start / WINDOW_S), round(end / WINDOW_S) - 1
        assert values[first] >= rules.on
        assert values[last] >= rules.off
    assert all(after[0] - before[1] >= rules.min_silence_s for before, after in itertools.pairwise(regions))
    # A long run of certain speech is never missed.
    run = 0
    for index, value in enumerate(values):
        run = run + 1 if value >= rules.on else 0
        if run * WINDOW_S >= rules.min_speech_s:
            assert any(start <= (index + 0.5) * WINDOW_S <= end for start, end in regions)


@settings(max_examples=30)
@given(probabilities)
def test_regions_are_found_as_soon_as_they_end(values: list[float]) -> None:
    """What was found up to a place does not change by what follows."""
    finder, found = RegionFinder(SpeechRules()), []
    for index, value in enumerate(values):
        region = finder.push(value)
        if region is not None:
            found.append(region)
            start, end = region[0] * WINDOW_S, region[1] * WINDOW_S
            assert speech_regions(values[: index + 1])[-1] == (start, end)
    assert [(a * WINDOW_S, b * WINDOW_S) for a, b in found] == speech_regions(values)[: len(found)]


def test_between_on_and_off_speech_goes_on_but_does_not_begin() -> None:
    assert speech_regions([0.4] * 20) == []
    assert speech_regions([0.6] * 5 + [0.4] * 15) == [(0.0, 20 * WINDOW_S)]
    assert speech_regions([0.6] * 5 + [0.1] + [0.4] * 15) == [(0.0, 5 * WINDOW_S)]


@pytest.mark.parametrize("values", [{"on": 0.3}, {"off": 0.0}, {"min_silence_s": -0.1}, {"min_speech_s": -1.0}])
def test_rules_must_make_sense(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="given"):
        SpeechRules(**values)
