"""The guess of the noise: it rises with the ratio, and does not depend on the level."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mtsk.data.noise import mix_at_snr
from mtsk.inference.snr import estimate_snr_db
from mtsk.types import SAMPLE_RATE_HZ


def _speech(seed: int) -> NDArray[np.float32]:
    """Bursts with pauses between them, in a quiet room."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.permutation([0.0, 0.0, 0.1, 0.3, 0.5, 1.0, 0.8, 0.2, 0.6, 0.0]), SAMPLE_RATE_HZ // 4)
    return np.asarray((loudness + 0.003) * rng.normal(0, 0.1, len(loudness)), np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_more_noise_gives_less(seed: int) -> None:
    speech = _speech(seed)
    noise = np.random.default_rng(seed + 100).normal(0, 0.1, len(speech)).astype(np.float32)
    guesses = [estimate_snr_db(mix_at_snr(speech, noise, snr_db)) for snr_db in (30.0, 15.0, 5.0, 0.0, -5.0)]
    assert guesses == sorted(guesses, reverse=True)
    assert guesses[0] > 20 > 15 > guesses[2]


def test_the_level_makes_no_difference() -> None:
    speech = _speech(0)
    assert estimate_snr_db(speech * np.float32(0.2)) == pytest.approx(estimate_snr_db(speech), abs=0.01)


def test_silence_and_short_sounds_give_nothing() -> None:
    for num_samples in (0, 1, 100, 8000):
        assert estimate_snr_db(np.zeros(num_samples, np.float32)) == 0.0
    assert estimate_snr_db(np.full(100, 0.5, np.float32)) == 0.0
    loud_once = np.zeros(SAMPLE_RATE_HZ, np.float32)
    loud_once[: SAMPLE_RATE_HZ // 2] = 1.0
    assert estimate_snr_db(loud_once) == pytest.approx(100.0)
