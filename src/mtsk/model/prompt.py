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
}


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of the special positions, relative to the LLM's own vocabulary."""

    size: int
    bos: int | None
    eos: int
    other_ends: tuple[int, ...] = ()
    """What the LLM may write as well to end a text; it is trained to write `eos`."""

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        return self.eos, *self.other_ends

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
    """Writes token sequences with an LLM's own tokenizer.

    Args:
        leading_space: the first word of a transcription carries a space in front too.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, *, leading_space: bool = True) -> None:
        self._tokenizer = tokenizer
        self._leading_space = leading_space
        self._adds_space = _adds_space(tokenizer)
        self.vocabulary = vocabulary
        self._prompts = {key: self._encode(text) for key, text in PROMPTS.items()}

    def _encode(self, text: str) -> list[int]:
        if self._adds_space:
            text = text.removeprefix(" ")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def writing(self, *, leading_space: bool) -> PromptBuilder:
        """The same, but for how a transcription begins."""
        return PromptBuilder(self._tokenizer, self.vocabulary, leading_space=leading_space)

    @property
    def begin(self) -> list[int]:
        """What every sequence begins with: the begin-of-sequence token, if the LLM has one."""
        return [] if self.vocabulary.bos is None else [self.vocabulary.bos]

    def prefix(self, num_audio_tokens: int | None, num_video_tokens: int | None) -> list[int]:
        """Everything before the text; None where the scale has no such modality.

        At least one of the two is there.
        """
        vocabulary = self.vocabulary
        audio_open, audio_close, video_open, video_close = vocabulary.delimiters
        ids = self.begin
        if num_audio_tokens is not None:
            ids += [audio_open, *[vocabulary.audio_slot] * num_audio_tokens, audio_close]
        if num_video_tokens is not None:
            ids += [video_open, *[vocabulary.video_slot] * num_video_tokens, video_close]
        return ids + self.prompt(audio=num_audio_tokens is not None, video=num_video_tokens is not None)

    def prompt(self, *, audio: bool, video: bool) -> list[int]:
        """What tells the LLM to write, with these modalities."""
        return self._prompts[audio, video]

    def word_ids(self, word: str) -> list[int]:
        """Tokens of one word as it stands within a text, its space in front."""
        return self._encode(f" {word}")

    def target(self, text: str) -> list[int]:
        """Tokens of a transcription, with the end of sequence. Each word carries the space before it, the first too
        unless the builder says otherwise, so that a word has the same tokens wherever it stands."""
        spaced = "".join(f" {word}" for word in text.split())
        return [*self._encode(spaced if self._leading_space else spaced.lstrip()), self.vocabulary.eos]

    def spelling(self, token: int) -> str:
        """What a token writes within a text, its spaces included; nothing for those that end one."""
        written: str = self._tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return written

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens, up to the end of sequence."""
        if self.vocabulary.eos in ids:
            ids = ids[: ids.index(self.vocabulary.eos)]
        # Some tokenizers are set up to join " 's" and " ." to what stands before.
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return " ".join(text.split())


def _adds_space(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a space in front of any text, even of one that begins with a space, as SentencePiece
    does (Llama 2, TinyLlama): then a text is to be given without."""
    alone, spaced, twice = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", " a", "a a"))
    return bool(alone != spaced and twice == [*alone, *alone])
