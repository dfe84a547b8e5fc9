"""The audio encoder against transformers' own, and each row of a batch against the row alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import WhisperFeatureExtractor

from mtsk.model.audio_encoder import WhisperAudioEncoder, log_mel
from mtsk.types import SAMPLE_RATE_HZ, Batch, Features
from tests.tiny import row_of, tiny_batch, tiny_whisper, with_garbage

LENGTHS = (20_960, 11_777, 32_000)  # 65.5, 36.8 and 100 features


def _waveforms(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    waveform = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform[row, :length] = 0.1 * torch.randn(length, generator=rng)
    return waveform, torch.tensor(lengths)


def _reference_mel(waveform: Tensor, padding: str) -> Tensor:
    extractor_class: Any = WhisperFeatureExtractor  # has no annotations
    extractor = extractor_class(feature_size=80)
    features = extractor(
        waveform.numpy(), sampling_rate=SAMPLE_RATE_HZ, padding=padding, truncation=False, return_tensors="pt"
    )
    mel: Tensor = features.input_features[0]
    return mel


def _reference_encoder(num_features: int) -> Any:
    """Transformers' own encoder for inputs of just this length: the positions cut, nothing else changed."""
    encoder = copy.deepcopy(tiny_whisper().get_encoder())
    encoder.config.max_source_positions = num_features
    encoder.max_source_positions = num_features
    positions = encoder.embed_positions.weight.data[:num_features]
    encoder.embed_positions = torch.nn.Embedding(num_features, positions.shape[1], _weight=positions)
    return encoder


def _encode(window: str, waveform: Tensor, lengths: Tensor) -> Features:
    features: Features = WhisperAudioEncoder(tiny_whisper(), window)(waveform, lengths)
    return features


def _rows(features: Features) -> list[Tensor]:
    return [values[:length] for values, length in zip(features.values_BTD, features.lengths_B.tolist(), strict=True)]


# The spectrogram.


def test_mel_on_30_s_equals_transformers() -> None:
    waveform, lengths = _waveforms()
    padded = torch.nn.functional.pad(waveform, (0, 30 * SAMPLE_RATE_HZ - waveform.shape[1]))
    mel, num_frames = log_mel(padded, torch.full((3,), 30 * SAMPLE_RATE_HZ), 80)
    assert num_frames.tolist() == [3000] * 3
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(mel[row], _reference_mel(waveform[row, :length], "max_length"), atol=1e-4, rtol=0)


def test_mel_on_the_real_length_equals_transformers() -> None:
    waveform, lengths = _waveforms()
    mel, num_frames = log_mel(waveform, lengths, 80)
    assert num_frames.tolist() == [length // 160 for length in LENGTHS]
    for row, (length, frames) in enumerate(zip(LENGTHS, num_frames.tolist(), strict=True)):
        own = mel[row, :, :frames]
        torch.testing.assert_close(own, _reference_mel(waveform[row, :length], "longest"), atol=1e-4, rtol=0)
        # Padded to 30 s, only the frames differ that reach beyond the end.
        padded = _reference_mel(waveform[row, :length], "max_length")[:, :frames]
        torch.testing.assert_close(own[:, :-2], padded[:, :-2], atol=1e-4, rtol=0)
        assert not mel[row, :, frames:].any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=2, max_size=4), st.integers(0, 99))
def test_mel_of_a_row_does_not_depend_on_the_others(lengths: list[int], seed: int) -> None:
    waveform, num_samples = _waveforms((*lengths, 3100), seed)
    mel, num_frames = log_mel(waveform, num_samples, 80)
    for row, length in enumerate(lengths):
        frames = int(num_frames[row])
        if frames:
            alone, _ = log_mel(waveform[row : row + 1, :length], num_samples[row : row + 1], 80)
            torch.testing.assert_close(mel[row, :, :frames], alone[0], atol=1e-4, rtol=0)
        assert not mel[row, :, frames:].any()


# The encoder.


def test_30_s_mode_is_transformers_output_cut() -> None:
    waveform, lengths = _waveforms()
    features = _encode("30s", waveform, lengths)
    assert features.lengths_B.tolist() == [length // 320 for length in LENGTHS]
    for row, own in enumerate(_rows(features)):
        mel = _reference_mel(waveform[row, : LENGTHS[row]], "max_length")
        reference = tiny_whisper().get_encoder()(mel[None]).last_hidden_state[0, : len(own)]
        torch.testing.assert_close(own, reference, atol=2e-4, rtol=0)


def test_real_mode_on_30_s_equals_transformers() -> None:
    waveform, lengths = _waveforms((30 * SAMPLE_RATE_HZ,))
    features = _encode("real", waveform, lengths)
    assert features.lengths_B.tolist() == [1500]
    reference = tiny_whisper().get_encoder()(_reference_mel(waveform[0], "max_length")[None]).last_hidden_state
    torch.testing.assert_close(features.values_BTD, reference, atol=2e-4, rtol=0)


@pytest.mark.parametrize("num_samples", [320, 3200, 32_000])
def test_real_mode_equals_transformers_with_its_positions_cut(num_samples: int) -> None:
    waveform, lengths = _waveforms((num_samples,))
    features = _encode("real", waveform, lengths)
    reference = _reference_encoder(num_samples // 320)(_reference_mel(waveform[0], "longest")[None]).last_hidden_state
    torch.testing.assert_close(features.values_BTD, reference, atol=2e-4, rtol=0)


def test_the_modes_differ() -> None:
    waveform, lengths = _waveforms()
    real, padded = (_encode(window, waveform, lengths).values_BTD for window in ("real", "30s"))
    assert float((real - padded).abs().max()) > 0.1


@pytest.mark.parametrize("window", ["real", "30s"])
def test_a_row_is_as_if_alone(window: str) -> None:
    batch = tiny_batch()
    together = _encode(window, batch.waveform_BN, batch.num_samples_B)
    for row, own in enumerate(_rows(together)):
        one = row_of(batch, row)
        alone = _encode(window, one.waveform_BN, one.num_samples_B)
        torch.testing.assert_close(own, alone.values_BTD[0], atol=1e-5, rtol=0)
        assert not together.values_BTD[row, len(own) :].any()


@pytest.mark.parametrize("window", ["real", "30s"])
def test_what_lies_beyond_a_row_is_not_heard(window: str) -> None:
    batch = tiny_batch()
    noisy = with_garbage(batch)
    clean, dirty = (_encode(window, one.waveform_BN, one.num_samples_B) for one in (batch, noisy))
    assert torch.equal(clean.lengths_B, dirty.lengths_B)
    torch.testing.assert_close(clean.values_BTD, dirty.values_BTD, atol=1e-6, rtol=0)


def _with_silent_row(durations_s: tuple[float | None, ...]) -> Batch:
    return tiny_batch(durations_s=durations_s, num_frames=(5, 5, 5))


@pytest.mark.parametrize("window", ["real", "30s"])
@pytest.mark.parametrize("silent", [None, 0.01])
def test_rows_without_a_whole_feature(window: str, silent: float | None) -> None:
    mixed = _with_silent_row((0.5, silent, 0.7))
    features = _encode(window, mixed.waveform_BN, mixed.num_samples_B)
    assert features.lengths_B.tolist() == [25, 0, 35]
    assert bool(torch.isfinite(features.values_BTD).all())
    nothing = _with_silent_row((silent, None, silent))
    features = _encode(window, nothing.waveform_BN, nothing.num_samples_B)
    assert features.lengths_B.tolist() == [0, 0, 0]
    assert features.values_BTD.shape == (3, 0, 64)


def test_more_than_the_window_is_refused() -> None:
    num_samples = 31 * SAMPLE_RATE_HZ
    for window in ("real", "30s"):
        with pytest.raises(ValueError, match=r"31.0 s of sound .* at most 30 s"):
            _encode(window, torch.zeros(1, num_samples), torch.tensor([num_samples]))


def test_encoder_is_frozen_and_stays_in_evaluation_mode() -> None:
    encoder = WhisperAudioEncoder(tiny_whisper(), "real").train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    waveform, lengths = _waveforms()
    assert not encoder(waveform, lengths).values_BTD.requires_grad


def test_half_precision_hears_the_same() -> None:
    waveform, lengths = _waveforms()
    exact = _rows(_encode("real", waveform, lengths))
    encoder = WhisperAudioEncoder(tiny_whisper(), "real").to(torch.bfloat16)
    rounded = _rows(encoder(waveform, lengths))
    for own, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.bfloat16
        cosine = np.corrcoef(own.flatten().numpy(), other.float().flatten().numpy())[0, 1]
        assert cosine > 0.995
