"""What happens to a sentence after it was said: sizes, word times, and what is drawn."""

from dataclasses import replace

import numpy as np
import pytest

from mtsk.data.spoken.variation import (
    NOISE_SLOPES,
    SPEED,
    TRACT,
    Variation,
    band_pass,
    coloured_noise,
    draw_manner,
    draw_variation,
    resample,
    reverberate,
    vary,
)
from mtsk.data.spoken.voices import Speech
from mtsk.types import SAMPLE_RATE_HZ, Word

QUIET = Variation(lead_s=0.2, trail_s=0.3, floor_db=-100.0)


def bursts(sample_rate_hz: int = 22050) -> Speech:
    """Two words, each a tone, with quiet between them."""
    time_s = np.arange(2 * sample_rate_hz) / sample_rate_hz
    words = (Word("one", 0.4, 0.8), Word("two", 1.0, 1.6))
    inside = sum(((time_s >= word.start_s) & (time_s < word.end_s)).astype(float) for word in words)
    return Speech((0.5 * inside * np.sin(2 * np.pi * 400 * time_s)).astype(np.float32), sample_rate_hz, words)


def loud(waveform: np.ndarray) -> list[tuple[float, float]]:
    """Where stretches of sound start and end, in s."""
    energy = np.convolve(waveform**2, np.ones(160) / 160, "same")
    edges = np.flatnonzero(np.diff((energy > 0.2 * energy.max()).astype(int), prepend=0, append=0)) / SAMPLE_RATE_HZ
    return list(zip(edges[::2], edges[1::2], strict=True))


def main_frequency_hz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE_HZ)[spectrum.argmax()])


@pytest.mark.parametrize("tract", [0.87, 1.0, 1.15])
@pytest.mark.parametrize("sample_rate_hz", [16000, 22050, 24000])
def test_words_stay_on_their_sound_and_tones_move_with_the_tract(tract, sample_rate_hz):
    waveform, words = vary(bursts(sample_rate_hz), replace(QUIET, tract=tract))
    assert waveform.dtype == np.float32
    for word, (start_s, end_s) in zip(words, loud(waveform), strict=True):
        assert (word.start_s, word.end_s) == pytest.approx((start_s, end_s), abs=0.012)
    assert words[0].end_s - words[0].start_s == pytest.approx(0.4 / tract)
    assert main_frequency_hz(waveform) == pytest.approx(400 * tract, rel=0.01)


def test_the_voices_own_quiet_gives_way_to_the_asked_for():
    waveform, words = vary(bursts(), QUIET)
    assert words[0].start_s == pytest.approx(0.2 + 0.05, abs=1e-3)
    assert len(waveform) / SAMPLE_RATE_HZ - words[-1].end_s == pytest.approx(0.3 + 0.15, abs=1e-3)


def test_a_room_rings_after_the_words_and_moves_none_of_them():
    dry, words = vary(bursts(), QUIET)
    wet, wet_words = vary(bursts(), replace(QUIET, room=(0.6, 3.0)))
    assert wet_words == words
    assert len(wet) == len(dry)
    first = round(words[0].start_s * SAMPLE_RATE_HZ)
    assert np.abs(wet[: first - 80]).max() < 1e-3  # nothing comes before the direct sound
    after = slice(round((words[0].end_s + 0.03) * SAMPLE_RATE_HZ), round((words[0].end_s + 0.1) * SAMPLE_RATE_HZ))
    assert np.square(wet[after]).mean() > 100 * np.square(dry[after]).mean()


def test_a_room_keeps_direct_sound_over_reverberation():
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[100] = 1.0
    for direct_db in (-2.0, 14.0):
        heard = reverberate(click, 0.4, direct_db, np.random.default_rng(0)).astype(float)
        assert heard[100] == pytest.approx(1.0, abs=1e-3)
        assert -10 * np.log10(np.square(heard[101:]).sum()) == pytest.approx(direct_db, abs=2.0)
        assert np.square(heard[6500:]).sum() < 1e-4


def test_noise_has_the_asked_ratio_to_the_speech():
    speech = bursts()
    for colour in NOISE_SLOPES:
        plain, _ = vary(speech, QUIET)
        noisy, _ = vary(speech, replace(QUIET, noise=(colour, 10.0)))
        gain = np.dot(noisy, plain) / np.dot(plain, plain)
        noise = noisy / gain - plain
        assert 10 * np.log10(np.square(plain).mean() / np.square(noise).mean()) == pytest.approx(10.0, abs=0.6)


def test_colours_fall_with_the_frequency():
    slopes = {}
    for colour in NOISE_SLOPES:
        power = np.abs(np.fft.rfft(coloured_noise(2**16, colour, np.random.default_rng(0)))) ** 2
        low, high = power[4096:8192].mean(), power[16384:32768].mean()  # 1-2 and 4-8 kHz: two octaves apart
        slopes[colour] = 10 * np.log10(low / high) / 2
    assert slopes["white"] == pytest.approx(0.0, abs=0.3)
    assert slopes["pink"] == pytest.approx(3.0, abs=0.3)
    assert slopes["brown"] == pytest.approx(6.0, abs=0.4)


def test_a_band_keeps_what_is_in_it():
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for hz, kept in ((100, 0.0), (1000, 1.0), (6000, 0.0)):
        tone = np.sin(2 * np.pi * hz * time_s).astype(np.float32)
        assert np.dot(band_pass(tone, 300, 3400), tone) / np.dot(tone, tone) == pytest.approx(kept, abs=0.02)


def test_level_is_as_asked_and_peaks_are_never_cut():
    for level_db in (-30.0, -22.0):
        waveform, _ = vary(bursts(), replace(QUIET, level_db=level_db))
        assert 20 * np.log10(np.sqrt(np.square(waveform).mean())) == pytest.approx(level_db, abs=0.01)
    waveform, _ = vary(bursts(), replace(QUIET, level_db=0.0))
    assert np.abs(waveform).max() == pytest.approx(0.99, abs=1e-4)


def test_resampling_keeps_a_tone_and_drops_what_would_alias():
    time_s = np.arange(24000) / 24000
    tone = (np.sin(2 * np.pi * 1000 * time_s) * np.hanning(24000)).astype(np.float32)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000) * np.hanning(16000)
    np.testing.assert_allclose(resample(tone, 16000), expected, atol=1e-3)
    high = (np.sin(2 * np.pi * 9000 * time_s) * np.hanning(24000)).astype(np.float32)
    assert np.abs(resample(high, 16000)).max() < 1e-3


def test_draws_are_the_same_for_the_same_key_and_stay_in_their_ranges():
    assert draw_variation(np.random.default_rng(3)) == draw_variation(np.random.default_rng(3))
    drawn = [draw_variation(np.random.default_rng(seed)) for seed in range(2000)]
    assert len(set(drawn)) == 2000
    assert all(TRACT[0] <= one.tract <= TRACT[1] for one in drawn)
    assert all(0.05 <= edge_s <= 0.5 for one in drawn for edge_s in (one.lead_s, one.trail_s))
    assert all(-30 <= one.level_db <= -14 for one in drawn)
    for field, share in (("room", 0.4), ("noise", 0.3), ("band_hz", 0.15)):
        assert np.mean([getattr(one, field) is not None for one in drawn]) == pytest.approx(share, abs=0.04)
    rooms = [one.room for one in drawn if one.room is not None]
    assert min(t60_s for t60_s, _ in rooms) >= 0.15
    assert max(t60_s for t60_s, _ in rooms) <= 0.8


def test_the_tempo_that_is_heard_stays_in_its_range_whatever_the_tract():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        tract = draw_variation(rng).tract
        manner = draw_manner(9, tract, (1, 4, 8), rng)
        assert SPEED[0] - 0.001 <= manner.speed * tract <= SPEED[1] + 0.001
        assert set(manner.pauses) <= {1, 4}  # after the last word there is none


def test_the_same_variation_of_the_same_speech_is_the_same_sound():
    variation = replace(QUIET, room=(0.3, 5.0), noise=("pink", 20.0), band_hz=(300.0, 3400.0), seed=4)
    first, _ = vary(bursts(), variation)
    second, _ = vary(bursts(), variation)
    np.testing.assert_array_equal(first, second)
    other, _ = vary(bursts(), replace(variation, seed=5))
    assert np.abs(first - other).max() > 1e-3
