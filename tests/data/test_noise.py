"""Noise: talkers kept apart, levels as asked."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import RecordingSet

from mtsk.data.noise import Babble, mix_at_snr, noise_split, prepare_noise
from tests.data.conftest import tone, write_tones


def test_talkers_of_the_shared_noise_are_disjoint(librispeech_dir, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for path in sorted((librispeech_dir / "train-clean-100").glob("*.flac"))[:20]:
        (src / path.name).symlink_to(path)
    counts = prepare_noise(src, tmp_path, num_workers=0)
    assert sum(counts.values()) == 20
    talkers = {
        split: {
            int(recording.id.split("-")[0])
            for recording in RecordingSet.from_file(tmp_path / f"noise_{split}.jsonl.gz")
        }
        for split in ("train", "test")
    }
    assert all(talker % 2 == 0 for talker in talkers["train"])
    assert all(talker % 2 == 1 for talker in talkers["test"])
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        drawn = Babble.load(tmp_path, split).draw(48_000, rng)
        assert drawn.shape == (48_000,)
        assert drawn.dtype == np.float32
        assert drawn.std() > 0.01


def test_noise_is_prepared_once(tmp_path, monkeypatch):
    src = write_tones(tmp_path / "src", 12)
    counts = prepare_noise(src, tmp_path / "dst", num_workers=0)
    assert counts == {
        split: sum(noise_split(path.stem) == split for path in src.glob("*.wav")) for split in ("train", "test")
    }

    def fail(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr("mtsk.data.noise.load_media", fail)
    assert prepare_noise(src, tmp_path / "dst", num_workers=0) == counts


def test_one_recording_at_a_time_is_that_recording(tmp_path):
    src = write_tones(tmp_path / "src", 12)
    prepare_noise(src, tmp_path / "dst", num_workers=0, num_mixed=1)
    drawn = Babble.load(tmp_path / "dst", "test").draw(4_000, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(drawn * np.hanning(len(drawn))))
    assert spectrum.max() > 20 * np.median(spectrum)  # a tone, not a sum of them
    assert (
        np.square(spectrum[np.abs(np.arange(len(spectrum)) - spectrum.argmax()) <= 3]).sum()
        > 0.95 * np.square(spectrum).sum()
    )
    with pytest.raises(ValueError, match="at least 1"):
        prepare_noise(src, tmp_path / "dst", num_workers=0, num_mixed=0)


def test_noise_needs_both_sets(tmp_path):
    soundfile.write(tmp_path / "2-1-1.flac", tone(), 16_000)
    with pytest.raises(ValueError, match="need some each"):
        prepare_noise(tmp_path, tmp_path / "dst", num_workers=0)
    with pytest.raises(ValueError, match="prepare noise into it first"):
        Babble.load(tmp_path, "test")


def test_unusable_noise_is_left_out_and_named(tmp_path, capsys):
    src = write_tones(tmp_path / "src", 12)
    (src / "2-1-1.flac").write_bytes(b"no sound" * 100)
    soundfile.write(src / "3-1-1.flac", np.zeros(8000), 16_000)
    counts = prepare_noise(src, tmp_path / "dst", num_workers=0)
    said = capsys.readouterr().err
    assert "2 recordings refused" in said
    assert "2-1-1.flac: cannot be read" in said
    assert "3-1-1.flac: there is no sound" in said
    assert sum(counts.values()) == 12
    for split in ("train", "test"):
        recordings = RecordingSet.from_file(tmp_path / "dst" / f"noise_{split}.jsonl.gz")
        assert len(recordings) == counts[split]
        assert not {"2-1-1", "3-1-1"} & set(recordings.ids)


def test_noise_with_nothing_usable_for_one_set(tmp_path):
    soundfile.write(tmp_path / "2-1-1.flac", tone(), 16_000)
    (tmp_path / "3-1-1.flac").write_bytes(b"no sound" * 100)
    with pytest.raises(ValueError, match=r"usable recordings, \{'train': 1, 'test': 0\}"):
        prepare_noise(tmp_path, tmp_path / "dst", num_workers=0)
    assert not list((tmp_path / "dst").glob("noise_*"))


def test_babble_sums_at_equal_level_and_wraps_round(tmp_path):
    rng = np.random.default_rng(1)
    recordings = [0.3 * rng.standard_normal(4000), 0.003 * rng.standard_normal(4000)]
    paths = [tmp_path / f"{index}.flac" for index in range(2)]
    for path, samples in zip(paths, recordings, strict=True):
        soundfile.write(path, samples, 16_000, subtype="PCM_16")
    alone = [Babble([path]).draw(4000, np.random.default_rng(0)) for path in paths]
    assert alone[0].std() == pytest.approx(alone[1].std(), rel=0.01)
    long = Babble(paths).draw(12_000, np.random.default_rng(0))
    np.testing.assert_array_equal(long[:4000], long[4000:8000])
    np.testing.assert_array_equal(long, Babble(paths).draw(12_000, np.random.default_rng(0)))
    assert not np.array_equal(long, Babble(paths).draw(12_000, np.random.default_rng(1)))
    assert long.std() == pytest.approx(np.sqrt(2) * alone[0].std(), rel=0.05)


@given(st.floats(-10, 30), st.floats(0.001, 0.5), st.floats(0.001, 2.0), st.integers(0, 1000))
def test_mix_has_the_ratio_asked_for(snr_db, speech_rms, noise_rms, seed):
    rng = np.random.default_rng(seed)
    speech = (speech_rms * rng.standard_normal(2000)).astype(np.float32)
    noise = (noise_rms * rng.standard_normal(2000)).astype(np.float32)
    mixed = mix_at_snr(speech, noise, snr_db)
    assert mixed.dtype == np.float32
    assert np.abs(mixed).max() <= 1.0 + 1e-6
    # mixed = a * speech + b * noise: the two factors in least squares
    factors, *_ = np.linalg.lstsq(np.stack([speech, noise], axis=1).astype(np.float64), mixed.astype(np.float64))
    powers = factors**2 * [np.mean(speech.astype(np.float64) ** 2), np.mean(noise.astype(np.float64) ** 2)]
    assert 10 * np.log10(powers[0] / powers[1]) == pytest.approx(snr_db, abs=0.02)


def test_mix_without_power_leaves_the_speech():
    speech = tone()
    np.testing.assert_array_equal(mix_at_snr(speech, np.zeros_like(speech), 0.0), speech)
    np.testing.assert_array_equal(mix_at_snr(np.zeros_like(speech), speech, 0.0), np.zeros_like(speech))
    assert len(mix_at_snr(speech[:0], speech[:0], 0.0)) == 0
    with pytest.raises(ValueError, match="equally long"):
        mix_at_snr(speech, speech[1:], 0.0)
