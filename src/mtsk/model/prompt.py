"""The token sequence of a request: `[BOS] <audio> A </audio> <video> V </video> prompt text [EOS]`.

Media and delimiters are written as numbers beyond the LLM's vocabulary, so that the vocabulary itself is not resized.
Source: Cappellazzo et al. 2025 (arXiv 2503.06362), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NUM_DELIMITERS = 4  # <audio> </audio> <video> </video>

PROMPTS = {
    (True, False): "Transcribe speech to text.",
    (False, True): "Transcribe video to text.",
    (True, True): "Transcribe speech and video to text.",
    (False, False): "Transcribe speech to text.",  # the no-input baseline
}


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of the special positions, relative to the LLM's own vocabulary."""

    size: int
    bos: int | None
    eos: int

    @property
    def delimiters(self) -> tuple[int, int, int, int]:
        """<audio> </audio> <video> </video>: rows that are trained with the adapters."""
        return self.size, self.size + 1, self.size + 2, self.size + 3

    @property
    def audio_slot(self) -> int:
        """Stands where an audio token goes."""
        return self.size + NUM_DELIMITERS

    @property
    def video_slot(self) -> int:
        """Stands where a video token goes."""
        return self.size + NUM_DELIMITERS + 1


class PromptBuilder:
    """Writes token sequences with an LLM's own tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._prompts = {key: self._encode(text) for key, text in PROMPTS.items()}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def prefix(self, num_audio_tokens: int | None, num_video_tokens: int | None) -> list[int]:
        """Everything before the text; None where the scale has no such modality."""
        vocabulary = self.vocabulary
        audio_open, audio_close, video_open, video_close = vocabulary.delimiters
        ids = [] if vocabulary.bos is None else [vocabulary.bos]
        if num_audio_tokens is not None:
            ids += [audio_open, *[vocabulary.audio_slot] * num_audio_tokens, audio_close]
        if num_video_tokens is not None:
            ids += [video_open, *[vocabulary.video_slot] * num_video_tokens, video_close]
        return ids + self._prompts[num_audio_tokens is not None, num_video_tokens is not None]

    def word_ids(self, word: str) -> list[int]:
        """Tokens of one word as it stands within a text, its space in front."""
        return self._encode(f" {word}")

    def target(self, text: str) -> list[int]:
        """Tokens of a transcription, with the end of sequence. Each word carries the space before it, the first too, so
        that a word has the same tokens wherever it stands."""
        return [*self._encode("".join(f" {word}" for word in text.split())), self.vocabulary.eos]

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens, up to the end of sequence."""
        if self.vocabulary.eos in ids:
            ids = ids[: ids.index(self.vocabulary.eos)]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return " ".join(text.split())
