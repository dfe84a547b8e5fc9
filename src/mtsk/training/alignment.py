"""Word times for corpora that have none, from Whisper's own attention: the text is known, the decoder is told it.

Some cross-attention heads of Whisper follow the sound; which ones is part of its generation config. A monotone path
through their average says where each token begins (the method of openai/whisper's `timing.py`). Attention does not see
pauses, so words are then cut back to where there is sound.

Letters: L layers, H heads (of those chosen), N tokens of the text, P tokens of text and prompt, T encoder steps, B the
one row, D channels.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperModel, WhisperTokenizer

from mtsk.checkpoints.sources import resolve
from mtsk.types import SAMPLE_RATE_HZ, Word

Floats = NDArray[np.float32]

MAX_DURATION_S = 30.0
_PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
_STEP_S = 0.02  # of the encoder
_MEDIAN_STEPS = 7
_OWN_SHARE = 0.2  # of the attention after a token was read, in what says where it is; the rest is from before

_ENERGY_HOP_S = 0.01
_ENERGY_WINDOW_S = 0.025
_ENERGY_SMOOTHING_HOPS = 5
_PRE_EMPHASIS = 0.97
_FLOOR_PERCENTILE, _PEAK_PERCENTILE = 10, 95
_MIN_RANGE_DB = 10.0  # with less between floor and peak there are no pauses to be seen
_ACTIVE_SHARE = 0.3  # of the way from floor to peak
_MAX_CLOSURE_HOPS = 10  # stops close the mouth for up to 100 ms within a word
_MARGIN_S = 0.03  # sound begins and ends below the threshold


class WhisperAligner:
    """Finds when each word of a known text was said.

    Args:
        source: a Whisper model, as for `mtsk.checkpoints.sources.resolve`.
        device: where it runs.

    Raises:
        ValueError: no such source, or its generation config names no `alignment_heads`.
    """

    def __init__(self, source: str = "whisper-base", device: torch.device | str = "cpu") -> None:
        folder = resolve(source)
        heads = getattr(GenerationConfig.from_pretrained(folder), "alignment_heads", None)
        if not heads:
            raise ValueError(f"the generation config of {source} has no alignment_heads; Whisper's own models have")
        self._layers, self._heads = (list(numbers) for numbers in zip(*heads, strict=True))
        # Only the eager attention hands out its weights; the encoder, where the time goes, has no need of it.
        model: Any = WhisperModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        encoder, decoder = copy.deepcopy(model.encoder), model.decoder  # the setting is in a config that both share
        decoder.set_attn_implementation("eager")
        self._encoder, self._decoder = encoder.to(device).eval(), decoder.to(device).eval()
        self._max_tokens = int(decoder.config.max_target_positions) - len(_PROMPT)
        self._extract = WhisperFeatureExtractor.from_pretrained(folder)
        self._tokenizer = WhisperTokenizer.from_pretrained(folder)
        self._prompt: list[int] = self._tokenizer.convert_tokens_to_ids(_PROMPT)

    def align(self, waveform: Floats, text: str) -> tuple[Word, ...]:
        """The words of a text with their times.

        Args:
            waveform: (N,) mono, 16 kHz, up to 30 s.
            text: what is said in it, words apart by white space; upper or lower case does not matter.

        Returns:
            One word per word of `text`, in order, spelled as there; times in seconds, none overlaps the next.

        Raises:
            ValueError: the waveform is too long, or the text too long for it.
        """
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        if waveform.ndim != 1 or duration_s > MAX_DURATION_S:
            raise ValueError(
                f"waveform of shape {waveform.shape} given; allowed is one row of up to {MAX_DURATION_S} s"
            )
        words = text.split()
        if not words:
            return ()
        tokens = [self._tokenizer.encode(" " + word.lower(), add_special_tokens=False) for word in words]
        num_tokens, num_steps = sum(map(len, tokens)), int(np.ceil(duration_s / _STEP_S))
        max_tokens = min(num_steps, self._max_tokens)
        if num_tokens > max_tokens:
            raise ValueError(f"text of {num_tokens} tokens given for {duration_s:.2f} s; at most {max_tokens} fit")
        match_NT = self._match(waveform, [token for word in tokens for token in word])[:, :num_steps]
        begins_N = monotone_path(match_NT)
        first_N = np.cumsum([0, *map(len, tokens)])
        bounds: list[int] = [*begins_N[first_N[:-1]].tolist(), num_steps]
        active = active_hops(waveform)
        aligned = []
        for word, row, (begin, end) in zip(words, first_N[:-1], itertools.pairwise(bounds), strict=True):
            peak = begin + int(match_NT[row, begin:end].argmax())
            times_s = begin * _STEP_S, peak * _STEP_S, min(end * _STEP_S, duration_s)
            aligned.append(_cut_to_sound(word, times_s, active))
        return tuple(aligned)

    @torch.inference_mode()
    def _match(self, waveform: Floats, tokens: list[int]) -> Floats:
        """How much each token of the text belongs to each step of the encoder; shape (N, T)."""
        device = self._decoder.device
        mel = self._extract(waveform, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        ids = torch.tensor([[*self._prompt, *tokens]], device=device)
        encoded_BTD = self._encoder(mel.to(device)).last_hidden_state
        output = self._decoder(input_ids=ids, encoder_hidden_states=encoded_BTD, output_attentions=True)
        attention_LHPT = torch.stack(output.cross_attentions)[:, 0]
        num_steps = int(np.ceil(len(waveform) / SAMPLE_RATE_HZ / _STEP_S))
        attention_HPT = attention_LHPT[self._layers, self._heads, :, :num_steps]
        attention_HPT = attention_HPT / attention_HPT.sum(-1, keepdim=True)  # none is left for the padding
        spread, mean = torch.std_mean(attention_HPT, dim=1, keepdim=True, correction=0)
        match_PT = _median((attention_HPT - mean) / (spread + 1e-9)).mean(0)
        # The row of a token says where the decoder looked for the next one.
        before, own = match_PT[len(_PROMPT) - 1 : -1], match_PT[len(_PROMPT) :]
        match_NT: Floats = ((1 - _OWN_SHARE) * before + _OWN_SHARE * own).cpu().numpy()
        return match_NT


def _median(values_HPT: torch.Tensor) -> torch.Tensor:
    """Running median over time."""
    radius = _MEDIAN_STEPS // 2
    if values_HPT.shape[-1] <= radius:
        return values_HPT
    padded = torch.nn.functional.pad(values_HPT, (radius, radius), mode="reflect")
    return padded.unfold(-1, _MEDIAN_STEPS, 1).median(-1).values


def monotone_path(match_NT: Floats) -> NDArray[np.int64]:
    """The division of time among tokens, in their order and each with at least one step, whose match is greatest.

    Args:
        match_NT: how much token n belongs to step t; N <= T.

    Returns:
        The step at which each token begins, (N,); the first is 0.
    """
    num_tokens, num_steps = match_NT.shape
    assert 0 < num_tokens <= num_steps, match_NT.shape
    best_N = np.full(num_tokens, -np.inf)
    best_N[0] = match_NT[0, 0]
    advanced_TN = np.zeros((num_steps, num_tokens), bool)
    for t in range(1, num_steps):
        from_last_N = np.concatenate([[-np.inf], best_N[:-1]])
        advanced_TN[t] = from_last_N >= best_N
        best_N = np.maximum(from_last_N, best_N) + match_NT[:, t]
    begins_N = np.zeros(num_tokens, np.int64)
    n = num_tokens - 1
    for t in range(num_steps - 1, 0, -1):
        if n and advanced_TN[t, n]:
            begins_N[n] = t
            n -= 1
    assert n == 0
    return begins_N


def active_hops(waveform: Floats) -> NDArray[np.bool_]:
    """Where there is sound, every 10 ms: energy above a level between the floor and the peaks of this recording."""
    hop, window = round(_ENERGY_HOP_S * SAMPLE_RATE_HZ), round(_ENERGY_WINDOW_S * SAMPLE_RATE_HZ)
    emphasised = np.diff(waveform, prepend=waveform[:1])
    emphasised += (1 - _PRE_EMPHASIS) * waveform
    padded = np.pad(emphasised, (window // 2, window))
    num_hops = 1 + (len(waveform) - 1) // hop
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:num_hops]
    energy_db = 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-10)
    radius = _ENERGY_SMOOTHING_HOPS // 2
    energy_db = np.convolve(
        np.pad(energy_db, radius, mode="edge"), np.full(2 * radius + 1, 1 / (2 * radius + 1)), "valid"
    )
    floor_db, peak_db = np.percentile(energy_db, [_FLOOR_PERCENTILE, _PEAK_PERCENTILE])
    if peak_db - floor_db < _MIN_RANGE_DB:
        return np.ones(num_hops, bool)
    return np.asarray(energy_db > floor_db + _ACTIVE_SHARE * (peak_db - floor_db))


def _cut_to_sound(text: str, times_s: tuple[float, float, float], active: NDArray[np.bool_]) -> Word:
    """A word without the pauses at its ends. `times_s`: where its share of time begins, peaks and ends."""
    begin_s, peak_s, end_s = times_s
    peak = min(round(peak_s / _ENERGY_HOP_S), len(active) - 1)
    if not active[max(0, peak - _MAX_CLOSURE_HOPS) : peak + _MAX_CLOSURE_HOPS + 1].any():
        return Word(text, begin_s, end_s)  # nothing but silence: there is nothing to go by
    first = peak - _reach(active[peak::-1])
    last = peak + _reach(active[peak:])
    start_s = max(begin_s, first * _ENERGY_HOP_S - _MARGIN_S)
    sound_end_s = max(start_s + _ENERGY_HOP_S, (last + 1) * _ENERGY_HOP_S + _MARGIN_S)
    return Word(text, start_s, min(end_s, sound_end_s))


def _reach(active: NDArray[np.bool_]) -> int:
    """How many hops sound goes on, closures bridged."""
    reach = 0
    for i in np.flatnonzero(active):
        if i - reach > _MAX_CLOSURE_HOPS + 1:
            break
        reach = int(i)
    return reach
