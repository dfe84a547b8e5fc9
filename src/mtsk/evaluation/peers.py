"""Other systems to compare with: Whisper's own decoder, and faster-whisper."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from mtsk.evaluation.flops import WhisperShape
from mtsk.evaluation.grid import Recognized
from mtsk.types import SAMPLE_RATE_HZ, Example

_WINDOW_S = 30
_MAX_TOKENS_PER_S = 10  # speech has 3 to 6
_MAX_TOKENS_BASE = 16
_FASTER_BEAMS = 5
_PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
# fmt: off
_BELOW_20 = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor"}
_LETTERS_OR_DIGITS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the decoder wrote."""

    text: str
    """With capitals, punctuation and digits."""
    log_probs: tuple[float, ...]
    """Natural log-probability of each token given those before it; the last is that of the end."""


class WhisperPeer:
    """Whisper's own decoder: English, without timestamps, on input padded to 30 s as it was trained.

    In noise it may repeat itself without end, so the text is cut at 10 tokens a second and 16 more, which no speech
    reaches; its published decoding draws again at random temperatures instead.

    Args:
        source_path: folder with weights, tokenizer and feature settings, for `from_pretrained`.
        device: where to run.
        dtype: with how many digits.
        num_beams: texts that are followed at once; 1 is greedy.
    """

    def __init__(
        self,
        source_path: Path,
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        num_beams: int = 1,
    ) -> None:
        # Any: the decorated methods of transformers' models are typed wrongly.
        model: Any = WhisperForConditionalGeneration
        self._model = model.from_pretrained(source_path, dtype=dtype).to(device).eval()
        # Else every call warns that `max_new_tokens` goes before the longest of the settings.
        logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)
        self._dtype, self._num_beams = dtype, num_beams
        self._features = WhisperFeatureExtractor.from_pretrained(source_path)
        self._tokenizer = WhisperTokenizer.from_pretrained(source_path)
        self._device = device

    @torch.inference_mode()
    def transcribe(self, examples: Sequence[Example]) -> list[str]:
        """Texts in `spoken_form`, one per example.

        Raises:
            ValueError: if an example has no sound or lasts longer than 30 s.
        """
        return [each.text for each in self.recognize(examples)]

    @torch.inference_mode()
    def recognize(self, examples: Sequence[Example]) -> list[Recognized]:
        """The same, with the operations of the encoder on its whole window and of a decoder that follows one text.

        Raises:
            ValueError: as `transcribe`.
        """
        rows = self._generate(_waveforms(examples))[0]
        shape = WhisperShape.of(self._model.config)
        flops = [shape.encoder_flops + shape.decoder_flops(len(_PROMPT), len(row), self._num_beams) for row in rows]
        texts = map(spoken_form, self._tokenizer.batch_decode(rows))
        return [Recognized(text, num) for text, num in zip(texts, flops, strict=True)]

    @torch.inference_mode()
    def decode(self, examples: Sequence[Example]) -> list[Decoded]:
        """Texts as they are written, and how likely their tokens are; one per example.

        Raises:
            ValueError: if an example has no sound or lasts longer than 30 s.
        """
        rows, states_BTD = self._generate(_waveforms(examples), keep_states=True)
        assert states_BTD is not None
        return [
            Decoded(self._tokenizer.decode(row).strip(), self._log_probs(row, states_TD))
            for row, states_TD in zip(rows, states_BTD, strict=True)
        ]

    def _generate(
        self, waveforms: list[NDArray[np.float32]], *, keep_states: bool = False
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Text tokens of each, and what the encoder made of them (B, T, D), if asked for."""
        inputs = self._features(
            waveforms, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", return_attention_mask=True
        ).to(self._device)
        features = inputs.input_features.to(self._dtype)
        states = self._model.get_encoder()(features) if keep_states else None
        max_tokens = [_MAX_TOKENS_BASE + _MAX_TOKENS_PER_S * len(waveform) // SAMPLE_RATE_HZ for waveform in waveforms]
        tokens_BL = self._model.generate(
            features,
            attention_mask=inputs.attention_mask,
            language="en",
            task="transcribe",
            return_timestamps=False,
            do_sample=False,
            num_beams=self._num_beams,
            max_new_tokens=max(max_tokens),
            **({} if states is None else {"encoder_outputs": states}),
        )
        # Cut row by row, so that a text does not depend on its batch. Every special token lies above the text tokens.
        end_of_text = self._model.config.eos_token_id
        rows = [row[row < end_of_text][:limit] for row, limit in zip(tokens_BL, max_tokens, strict=True)]
        return rows, None if states is None else states.last_hidden_state

    def _log_probs(self, tokens_L: torch.Tensor, states_TD: torch.Tensor) -> tuple[float, ...]:
        """Of each token and of the end, read anew: the scores of a beam search are spread over its beams."""
        prompt = torch.tensor(self._tokenizer.convert_tokens_to_ids(_PROMPT), device=tokens_L.device)
        end = tokens_L.new_tensor([self._model.config.eos_token_id])
        logits_LV = self._model(
            decoder_input_ids=torch.cat([prompt, tokens_L])[None], encoder_outputs=(states_TD[None],)
        ).logits[0, len(prompt) - 1 :]
        log_probs_LV = logits_LV.float().log_softmax(-1)
        log_probs_L: list[float] = log_probs_LV.gather(1, torch.cat([tokens_L, end])[:, None])[:, 0].tolist()
        return tuple(log_probs_L)


class FasterWhisperPeer:
    """faster-whisper (CTranslate2) on the processor, in 8-bit integers, as its users run it: 5 beams, timestamps, drawn
    again at higher temperatures where it doubts its text. English is given, nothing is left out as silence, and it does
    not see its text of the window before. It uses as many threads as torch.

    Args:
        source_path: folder with the model of CTranslate2, its vocabulary and tokenizer.
        shape: of the model.

    Raises:
        ValueError: if faster-whisper is not installed.
    """

    def __init__(self, source_path: Path, shape: WhisperShape) -> None:
        try:
            import ctranslate2
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise ValueError(f"{error}: this peer needs `pip install mtsk[bench]`") from error
        ctranslate2.set_random_seed(0)
        num_threads = torch.get_num_threads()
        self._model = WhisperModel(str(source_path), device="cpu", compute_type="int8", cpu_threads=num_threads)
        self._shape = shape

    def recognize(self, examples: Sequence[Example]) -> list[Recognized]:
        """Texts in `spoken_form`, one per example, and the operations: those on integers count like any other; those
        of windows without text, and of texts that it rejected, are not known.

        Raises:
            ValueError: if an example has no sound or lasts longer than 30 s.
        """
        return [self._one(waveform) for waveform in _waveforms(examples)]

    def _one(self, waveform: NDArray[np.float32]) -> Recognized:
        found, _ = self._model.transcribe(
            waveform, language="en", beam_size=_FASTER_BEAMS, vad_filter=False, condition_on_previous_text=False
        )
        segments = list(found)  # it decodes as they are taken
        num_tokens = Counter[int]()  # by window
        for segment in segments:
            num_tokens[segment.seek] += len(segment.tokens)
        num_prompt_tokens = len(_PROMPT) - 1  # with timestamps
        flops = sum(
            self._shape.encoder_flops + self._shape.decoder_flops(num_prompt_tokens, num, _FASTER_BEAMS)
            for num in num_tokens.values()
        )
        return Recognized(spoken_form("".join(segment.text for segment in segments)), flops or None)


def _waveforms(examples: Sequence[Example]) -> list[NDArray[np.float32]]:
    waveforms = []
    for example in examples:
        if example.waveform is None:
            raise ValueError(f"Whisper needs sound, but utterance {example.id!r} has none")
        if len(example.waveform) > _WINDOW_S * SAMPLE_RATE_HZ:
            duration_s = len(example.waveform) / SAMPLE_RATE_HZ
            raise ValueError(
                f"utterance {example.id!r} lasts {duration_s:.1f} s; Whisper takes up to {_WINDOW_S} s at once"
            )
        waveforms.append(example.waveform)
    return waveforms


def spoken_form(text: str) -> str:
    """Text as the corpora spell it: lower case, no punctuation but apostrophes within words, numbers as words.

    Letters and digits are split, so GRID's "at F2 now." becomes "at f two now". Whole numbers below a million are
    spelled as cardinals, longer ones digit by digit; "Mr." and the like are written out. Years, ordinals, decimals
    and signs such as "%" are not read as they were said, and homophones ("see" for the letter c) stay errors.

    Not transformers' EnglishTextNormalizer: it writes numbers as digits and joins them, which turns GRID's "at o two
    now" into "at 02 now", and it would have to change the references too.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    words = _LETTERS_OR_DIGITS.findall(text)
    return " ".join(_number(word) if word.isdecimal() else _TITLES.get(word, word) for word in words)


def _number(digits: str) -> str:
    if len(digits) > 6 or (len(digits) > 1 and digits[0] == "0"):
        return " ".join(_BELOW_20[int(digit)] for digit in digits)
    return _cardinal(int(digits))


def _cardinal(number: int) -> str:
    if number < 20:
        return _BELOW_20[number]
    if number < 100:
        head, rest = _TENS[number // 10], number % 10
    elif number < 1000:
        head, rest = f"{_BELOW_20[number // 100]} hundred", number % 100
    else:
        head, rest = f"{_cardinal(number // 1000)} thousand", number % 1000
    return head if rest == 0 else f"{head} {_cardinal(rest)}"
