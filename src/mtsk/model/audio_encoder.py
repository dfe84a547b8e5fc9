"""The frozen Whisper encoder on the real length of the sound, or on padded 30 s windows.

Letters: B rows, N samples or all rows' features, F mel frames (100 a second), M mel bands, T features (50 a second),
D channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperModel
from transformers.audio_utils import mel_filter_bank

from mtsk.config import AudioEncoderConfig
from mtsk.model.attention import attention as attend
from mtsk.model.masking import inside, zero_beyond
from mtsk.scale import AUDIO_FEATURE_RATE_HZ
from mtsk.types import SAMPLE_RATE_HZ, Features

FFT_SIZE = 400  # 25 ms
HOP_SIZE = 160  # 10 ms
SAMPLES_PER_FEATURE = SAMPLE_RATE_HZ // AUDIO_FEATURE_RATE_HZ  # 320


@functools.cache
def _filters(num_bands: int, device: torch.device) -> Tensor:
    """(201, M) float32, whatever precision the model has."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + FFT_SIZE // 2,
        num_mel_filters=num_bands,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE_HZ / 2,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.astype(np.float32)).to(device)


def log_mel(waveform_BN: Tensor, num_samples_B: Tensor, num_bands: int) -> tuple[Tensor, Tensor]:
    """Whisper's log-mel spectrogram of rows of unlike length; each row is as if computed alone.

    Source: Radford et al. 2022 (arXiv 2212.04356), section 2.2; parity with transformers' WhisperFeatureExtractor.

    Returns:
        (B, M, F) float32, zero beyond each row's length, and the numbers of frames (samples // 160).
    """
    padded_BN = _reflect(waveform_BN.float(), num_samples_B, FFT_SIZE // 2)
    window = torch.hann_window(FFT_SIZE, device=padded_BN.device)
    spectrum_BKF = torch.stft(padded_BN, FFT_SIZE, HOP_SIZE, window=window, center=False, return_complex=True)
    power_BKF = spectrum_BKF[..., :-1].abs().square()
    log_BMF = (_filters(num_bands, padded_BN.device).T @ power_BKF).clamp(min=1e-10).log10()
    num_frames_B = num_samples_B // HOP_SIZE
    inside_B1F = inside(num_frames_B, log_BMF.shape[-1])[:, None]
    peak_B11 = log_BMF.masked_fill(~inside_B1F, -10.0).amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(log_BMF, peak_B11 - 8.0) + 4.0) / 4.0 * inside_B1F, num_frames_B


def _reflect(waveform_BN: Tensor, num_samples_B: Tensor, margin: int) -> Tensor:
    """Mirrors each row at its own two ends; zeros follow the right mirror."""
    position_N = torch.arange(-margin, waveform_BN.shape[1] + margin, device=waveform_BN.device).abs()
    last_B1 = (num_samples_B - 1)[:, None]
    index_BN = torch.where(position_N > last_B1, 2 * last_B1 - position_N, position_N.expand(len(last_B1), -1))
    reached_BN = position_N <= last_B1 + margin
    values_BN = waveform_BN.gather(1, index_BN.clamp(0, waveform_BN.shape[1] - 1))
    return values_BN * reached_BN


def _normalized(waveform_BN: Tensor, num_samples_B: Tensor) -> Tensor:
    """Each row with mean 0 and variance 1 over its length; zero beyond."""
    inside_BN = inside(num_samples_B, waveform_BN.shape[1])
    num_B1 = num_samples_B[:, None].clamp(min=1)
    heard_BN = waveform_BN.float().masked_fill(~inside_BN, 0.0)
    centred_BN = (heard_BN - heard_BN.sum(dim=1, keepdim=True) / num_B1).masked_fill(~inside_BN, 0.0)
    variance_B1 = centred_BN.square().sum(dim=1, keepdim=True) / num_B1
    return centred_BN * (variance_B1 + 1e-8).rsqrt()


def _authors_num_features(num_samples_B: Tensor) -> Tensor:
    """As in Llama-AVSR, in double precision: `int(29 * 320 / 16000 * 50)` is 28."""
    share_B = num_samples_B.cpu().double() / SAMPLE_RATE_HZ * AUDIO_FEATURE_RATE_HZ
    num_features_B = share_B.long().clamp(min=_AUTHORS_MIN_FEATURES).to(num_samples_B.device)
    return num_features_B.where(num_samples_B > 0, 0)


_AUTHORS_MIN_FEATURES = 25
# What is kept of an encoded window, by number of samples.
_CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda num_samples_B: num_samples_B // SAMPLES_PER_FEATURE,
    "authors": _authors_num_features,
}


class WhisperAudioEncoder(nn.Module):
    """Waveforms -> features, 50 a second; the last hidden state of a frozen Whisper encoder.

    Args:
        whisper: any Whisper model of transformers, English-only too.
        window: `real` encodes the real length with the positions sliced; `30s` pads to 30 s as Whisper was trained,
            then cuts. The two give different features; a model is used in the mode that it was trained in.
        normalize: shift and scale each waveform to mean 0 and variance 1 first.
        cut: how much of a 30 s window is kept, see `AudioEncoderConfig`.
    """

    def __init__(self, whisper: WhisperModel, window: str, *, normalize: bool = False, cut: str = "whole") -> None:
        super().__init__()
        self.encoder = whisper.get_encoder()
        self.encoder.requires_grad_(False)
        self.num_bands: int = whisper.config.num_mel_bins
        self.window = window
        self.normalize = normalize
        self._num_features = _CUTS[cut]
        self.dim: int = whisper.config.d_model
        self.max_samples: int = whisper.config.max_source_positions * SAMPLES_PER_FEATURE
        self.eval()

    @classmethod
    def load(cls, config: AudioEncoderConfig, folder: Path, dtype: torch.dtype = torch.float32) -> WhisperAudioEncoder:
        """Reads the weights from a folder in transformers' layout."""
        whisper = WhisperModel.from_pretrained(folder, dtype=dtype)
        return cls(whisper, config.window, normalize=config.normalize, cut=config.cut)

    def train(self, mode: bool = True) -> WhisperAudioEncoder:
        """Stays in evaluation mode: the encoder is frozen."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveform_BN: Tensor, num_samples_B: Tensor) -> Features:
        """Encodes each row as if alone. num_features = num_samples // 320, unless the authors' cut is configured.

        Args:
            waveform_BN: (B, N) float, 16 kHz; what lies beyond each row's length is not heard.
            num_samples_B: (B,) int64.

        Raises:
            ValueError: if a row is longer than the encoder's window (30 s).
        """
        longest = int(num_samples_B.max())
        if longest > self.max_samples:
            raise ValueError(
                f"{longest / SAMPLE_RATE_HZ:.1f} s of sound in one segment; the audio encoder takes at most "
                f"{self.max_samples / SAMPLE_RATE_HZ:.0f} s"
            )
        lengths_B = self._num_features(num_samples_B)
        if not lengths_B.any():
            nothing_BTD = self.encoder.conv1.weight.new_zeros(len(lengths_B), 0, self.dim)
            return Features(nothing_BTD, lengths_B)
        if self.normalize:
            waveform_BN = _normalized(waveform_BN, num_samples_B)
        if self.window == "30s":
            whole_B = torch.full_like(num_samples_B, self.max_samples)
            heard_BN = waveform_BN.masked_fill(~inside(num_samples_B, waveform_BN.shape[1]), 0.0)
            padded_BN = functional.pad(heard_BN, (0, self.max_samples - waveform_BN.shape[1]))
            encoded_BTD = self._encode(*log_mel(padded_BN, whole_B, self.num_bands))
        else:
            # Whole features only: an odd last mel frame would make a feature of 10 ms.
            whole_B = lengths_B * SAMPLES_PER_FEATURE
            mel_BMF, num_frames_B = log_mel(waveform_BN[:, :longest], num_samples_B, self.num_bands)
            num_frames_B = torch.minimum(num_frames_B, whole_B // HOP_SIZE)
            encoded_BTD = self._encode(mel_BMF[..., : int(num_frames_B.max())], num_frames_B)
        return Features(zero_beyond(encoded_BTD[:, : int(lengths_B.max())], lengths_B), lengths_B)

    def _encode(self, mel_BMF: Tensor, num_frames_B: Tensor) -> Tensor:
        encoder = self.encoder
        mel_BMF = zero_beyond(mel_BMF.transpose(1, 2), num_frames_B).transpose(1, 2).to(encoder.conv1.weight.dtype)
        lengths_B = num_frames_B // 2
        hidden_BDF = functional.gelu(encoder.conv1(mel_BMF))
        # The second convolution must see zeros, not what the first made of the padding.
        hidden_BFD = zero_beyond(hidden_BDF.transpose(1, 2), num_frames_B)
        hidden_BTD = functional.gelu(encoder.conv2(hidden_BFD.transpose(1, 2))).transpose(1, 2)
        hidden_BTD = hidden_BTD + encoder.embed_positions.weight[: hidden_BTD.shape[1]]
        is_real_BT = inside(lengths_B, hidden_BTD.shape[1])
        hidden_ND, lengths = hidden_BTD[is_real_BT], [length for length in lengths_B.tolist() if length]
        for layer in encoder.layers:
            hidden_ND = _layer(layer, hidden_ND, lengths)
        encoded_BTD: Tensor = hidden_BTD.new_zeros(hidden_BTD.shape)
        encoded_BTD[is_real_BT] = encoder.layer_norm(hidden_ND).to(encoded_BTD.dtype)
        return encoded_BTD


def _layer(layer: Any, hidden_ND: Tensor, lengths: Sequence[int]) -> Tensor:
    """A layer of transformers' Whisper encoder on rows that lie one after the other, without padding between them:
    a third less to compute where their lengths differ, and attention needs no mask."""
    attention = layer.self_attn
    normed_ND = layer.self_attn_layer_norm(hidden_ND)
    projected = [project(normed_ND) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
    mixed = []
    for parts in zip(*(each_ND.split(lengths) for each_ND in projected), strict=True):
        row = (part_TD.view(1, len(part_TD), attention.num_heads, -1).transpose(1, 2) for part_TD in parts)
        mixed.append(attend(*row)[0].transpose(0, 1).flatten(1))
    hidden_ND = hidden_ND + attention.out_proj(torch.cat(mixed))
    inner_NI = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden_ND)))
    changed_ND: Tensor = hidden_ND + layer.fc2(inner_NI)
    return changed_ND
