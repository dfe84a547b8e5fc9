"""Changes: repeatable, and sound, lips and word times stay together."""

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsk.config import AugmentConfig
from mtsk.data.augment import augment, change_sound_time, change_word_times, lip_frames
from mtsk.data.noise import Babble
from mtsk.types import Example, Word
from tests.data.conftest import random_example

NONE = AugmentConfig(
    noise_prob=0, gain_db=0, speed=0, shift_s=0, mouth_shift_px=0, mouth_contrast=0, flip_prob=0, video_mask_s=0
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(a: Example, b: Example) -> bool:
    return (
        np.array_equal(a.waveform, b.waveform)  # type: ignore[arg-type]
        and np.array_equal(a.mouth, b.mouth)  # type: ignore[arg-type]
        and (a.id, a.text, a.words) == (b.id, b.text, b.words)
    )


@pytest.fixture
def babble(tmp_path):
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.flac", 0.1 * rng(index).standard_normal(50_000), 16_000)
    return Babble([tmp_path / f"{index}.flac" for index in range(3)])


def test_same_generator_same_result(babble):
    example, config = random_example(), AugmentConfig(noise_prob=0.5, audio_mask_s=0.2)
    for seed in range(5):
        assert same(augment(example, config, babble, rng(seed)), augment(example, config, babble, rng(seed)))
    assert not same(augment(example, config, babble, rng(0)), augment(example, config, babble, rng(1)))
    assert same(example, random_example())  # the original is untouched


def test_no_changes_leave_everything_as_it_is():
    example = random_example()
    assert same(augment(example, NONE, None, rng()), example)


def test_lips_do_not_depend_on_the_presence_of_sound_nor_sound_on_lips():
    whole = random_example()
    lips, sound = dataclasses.replace(whole, waveform=None), dataclasses.replace(whole, mouth=None)
    changed = augment(whole, AugmentConfig(), None, rng())
    np.testing.assert_array_equal(augment(lips, AugmentConfig(), None, rng()).mouth, changed.mouth)
    np.testing.assert_array_equal(augment(sound, AugmentConfig(), None, rng()).waveform, changed.waveform)
    assert augment(lips, AugmentConfig(), None, rng()).waveform is None
    assert augment(sound, AugmentConfig(), None, rng()).mouth is None


@settings(deadline=None)
@given(st.floats(0.85, 1.15), st.integers(-4, 4), st.integers(10, 60), st.integers(5, 15))
def test_words_stay_on_their_sound_and_lips(rate, shift, start_frame, num_frames):
    """A word is marked by loud samples and bright frames; after the change they lie where the word times say."""
    end_frame = start_frame + num_frames
    sound, lips = np.zeros(48_000, np.float32), np.zeros(75)
    sound[start_frame * 640 : end_frame * 640] = 1.0
    lips[start_frame:end_frame] = 1.0
    sound = change_sound_time(sound, rate, shift)
    lips = lips[lip_frames(75, rate, shift)]
    (word,) = change_word_times((Word("x", start_frame / 25, end_frame / 25),), rate, shift, len(sound) / 16_000)
    loud = np.flatnonzero(sound > 0.5) / 16_000
    assert loud[0] == pytest.approx(word.start_s, abs=0.001)
    assert loud[-1] == pytest.approx(word.end_s, abs=0.001)
    bright = np.flatnonzero(lips)
    assert bright[0] / 25 == pytest.approx(word.start_s, abs=0.041)
    assert (bright[-1] + 1) / 25 == pytest.approx(word.end_s, abs=0.041)
    assert len(lips) / 25 == pytest.approx(len(sound) / 16_000, abs=0.021)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_words_of_changed_examples_are_ordered_within_and_whole(seed):
    example = dataclasses.replace(random_example(), words=(Word("a", 0.02, 0.5), Word("b", 2.7, 2.98)))
    config = AugmentConfig(speed=0.1, shift_s=0.2, noise_prob=0)
    changed = augment(example, config, None, rng(seed))
    assert changed.waveform is not None
    assert changed.mouth is not None
    duration_s = max(len(changed.waveform) / 16_000, len(changed.mouth) / 25)
    times = [time_s for word in changed.words for time_s in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= duration_s
    ratio = (changed.words[0].end_s - changed.words[0].start_s) / 0.48  # not cut into
    assert 1 / 1.1 - 1e-6 <= ratio <= 1 / 0.9 + 1e-6


@pytest.mark.parametrize(("num_samples", "num_frames"), [(1, 1), (700, 2), (16_000, None), (None, 1)])
def test_short_examples_keep_something(num_samples, num_frames):
    rng_ = rng()
    waveform = None if num_samples is None else rng_.standard_normal(num_samples).astype(np.float32)
    mouth = None if num_frames is None else rng_.integers(0, 255, (num_frames, 96, 96), dtype=np.uint8)
    for seed in range(20):
        changed = augment(Example("x", waveform, mouth), AugmentConfig(shift_s=1.0, audio_mask_s=0.1), None, rng(seed))
        assert waveform is None or (changed.waveform is not None and len(changed.waveform) >= 1)
        assert mouth is None or (changed.mouth is not None and len(changed.mouth) >= 1)


def test_noise_comes_as_often_as_asked_and_sound_stays_in_range(babble):
    example = random_example(num_frames=None)
    clean = [augment(example, config_with(noise_prob=0.0), babble, rng(seed)) for seed in range(100)]
    noisy = [augment(example, config_with(noise_prob=0.3), babble, rng(seed)) for seed in range(100)]
    num_changed = sum(not np.array_equal(a.waveform, b.waveform) for a, b in zip(clean, noisy, strict=True))  # type: ignore[arg-type]
    assert 15 <= num_changed <= 45
    assert all(np.abs(changed.waveform).max() <= 1.0 + 1e-6 for changed in noisy)  # type: ignore[arg-type]


def config_with(**values: Any) -> AugmentConfig:
    return AugmentConfig(**{"speed": 0.0, "shift_s": 0.0, **values})


def test_masks_freeze_lips_and_silence_sound():
    example = random_example()
    changed = augment(example, AugmentConfig(**{**vars(NONE), "video_mask_s": 0.4, "audio_mask_s": 0.4}), None, rng(3))
    assert changed.mouth is not None
    assert changed.waveform is not None
    num_frozen = sum(np.array_equal(a, b) for a, b in zip(changed.mouth, changed.mouth[1:], strict=False))
    assert 3 <= num_frozen <= 30
    assert 1000 <= (changed.waveform == 0).sum() <= 3 * 0.4 * 16_000


def test_mirror_and_moved_place():
    example = random_example()
    assert example.mouth is not None
    mirrored = augment(example, AugmentConfig(**{**vars(NONE), "flip_prob": 1.0}), None, rng())
    np.testing.assert_array_equal(mirrored.mouth, example.mouth[:, :, ::-1])
    moved = augment(example, AugmentConfig(**{**vars(NONE), "mouth_shift_px": 4}), None, rng()).mouth
    assert moved is not None
    found = [
        (y, x)
        for y in range(-4, 5)
        for x in range(-4, 5)
        if np.array_equal(moved[:, 4 + y : 92 + y, 4 + x : 92 + x], example.mouth[:, 4:92, 4:92])
    ]
    assert len(found) == 1
    assert found[0] != (0, 0)


def test_is_fast(babble):
    example, config = random_example(), AugmentConfig(noise_prob=1.0)
    augment(example, config, babble, rng())
    seconds = []
    for seed in range(20):
        start = time.perf_counter()
        augment(example, config, babble, rng(seed))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02  # 0.006 alone; the least of many, as other processes may disturb
