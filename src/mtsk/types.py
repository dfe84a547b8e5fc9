"""The nouns that travel between the rooms: words, examples, batches, features, transcripts. A padded tensor is always
accompanied by its lengths. Letters: B rows of a batch, N audio samples, T steps in time, H and W pixels, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtsk.scale import Scale

SAMPLE_RATE_HZ = 16_000
VIDEO_FPS = 25
MOUTH_SIZE_PX = 96  # height and width of a mouth crop


@dataclass(frozen=True)
class Word:
    """A word and when it was said."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None
    """From 0 to 1; None where nothing estimated it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; times in seconds, to a millisecond."""
        times = {"start": round(self.start_s, 3), "end": round(self.end_s, 3)}
        return {"word": self.text, **times, "confidence": _rounded(self.confidence)}


@dataclass(frozen=True)
class Example:
    """One utterance in memory.

    `waveform` is mono at 16 kHz, `mouth` grey mouth crops at 25 frames a second; one of them may be absent, and they
    need not last equally long. `words` is empty where the corpus has no word times.
    """

    id: str
    waveform: NDArray[np.float32] | None  # (N,), in [-1, 1]
    mouth: NDArray[np.uint8] | None  # (T, 96, 96)
    text: str = ""
    words: tuple[Word, ...] = ()
    view: int = 0  # which random variation of the utterance this is


@dataclass(frozen=True)
class Batch:
    """Examples padded with zeros to the longest. A row without a modality has length 0 there."""

    ids: tuple[str, ...]
    waveform_BN: Tensor  # float32 in [-1, 1], 16 kHz
    num_samples_B: Tensor  # int64
    mouth_BTHW: Tensor  # uint8, 96 x 96, 25 frames/s
    num_frames_B: Tensor  # int64
    texts: tuple[str, ...]
    words: tuple[tuple[Word, ...], ...]
    views: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, row: int) -> Batch:
        """One row, without padding beyond a step."""
        num_samples, num_frames = int(self.num_samples_B[row]), int(self.num_frames_B[row])
        return Batch(
            ids=(self.ids[row],),
            waveform_BN=self.waveform_BN[row : row + 1, : max(1, num_samples)],
            num_samples_B=self.num_samples_B[row : row + 1],
            mouth_BTHW=self.mouth_BTHW[row : row + 1, : max(1, num_frames)],
            num_frames_B=self.num_frames_B[row : row + 1],
            texts=(self.texts[row],),
            words=(self.words[row],),
            views=(self.views[row],),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on another device."""
        names = ("waveform_BN", "num_samples_B", "mouth_BTHW", "num_frames_B")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class Features:
    """What an encoder returns: padded features with their lengths. Beyond a row's length the values are zero."""

    values_BTD: Tensor  # float
    lengths_B: Tensor  # int64, steps in time

    def __post_init__(self) -> None:
        assert self.values_BTD.ndim == 3, self.values_BTD.shape
        assert self.lengths_B.shape == self.values_BTD.shape[:1], (self.lengths_B.shape, self.values_BTD.shape)

    def __len__(self) -> int:
        return self.values_BTD.shape[0]

    def rows(self, rows: Sequence[int]) -> Features:
        """The chosen rows, in that order, cut to the longest of them."""
        index_B = torch.tensor(rows, device=self.lengths_B.device)
        lengths_B = self.lengths_B[index_B]
        return Features(self.values_BTD[index_B, : int(lengths_B.max())], lengths_B)


@dataclass(frozen=True)
class Decision:
    """How a policy came to a scale, and what all its passes cost."""

    tried: tuple[Scale, ...]  # the last one was kept
    flops: int  # of faces, encoders and all passes
    why: str

    @property
    def used_lips(self) -> bool:
        """Whether lips were looked at."""
        return any(scale.video is not None for scale in self.tried)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"tried": list(map(str, self.tried)), "flops": self.flops, "why": self.why}


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording that was decoded in one pass. Times count from the start of the recording."""

    start_s: float
    end_s: float
    text: str
    scale: Scale  # the scale that was used
    num_tokens: int  # LLM tokens that the media became, in all passes
    words: tuple[Word, ...] = ()  # in order of time; empty where nothing aligned them
    confidence: float | None = None  # from 0 to 1, that the text is right; None where nothing estimated it
    alternatives: tuple[str, ...] = ()  # the next best texts, best first; of beam search
    avg_logprob: float | None = None  # of the tokens that the LLM wrote, its end among them
    decision: Decision | None = None  # of a policy

    @property
    def sureness(self) -> float:
        """From 0 to 1, how sure the LLM and, if there is one, the character head are together; 0 if nothing is known.

        Of wrong texts it tells more than `confidence`: two readers seldom make the same mistake.
        """
        llm = 0.0 if self.avg_logprob is None else math.exp(self.avg_logprob)
        return llm * (self.confidence or 0.0)

    def to_dict(self, id: int, *, words: bool = False) -> dict[str, Any]:
        """Plain values, for JSON, under the names that openai-whisper gives them; times in seconds, to a millisecond.

        Args:
            id: which segment of the recording it is.
            words: whether to include them.
        """
        plain: dict[str, Any] = {
            "id": id,
            "start": round(self.start_s, 3),
            "end": round(self.end_s, 3),
            "text": self.text,
            "scale": str(self.scale),
            "num_tokens": self.num_tokens,
            "confidence": _rounded(self.confidence),
        }
        if self.alternatives:
            plain["alternatives"] = list(self.alternatives)
        if self.decision is not None:
            plain["decision"] = self.decision.to_dict()
        return plain | {"words": [word.to_dict() for word in self.words]} if words else plain


@dataclass(frozen=True)
class Transcript:
    """What was said in one input at one scale, and what it cost."""

    text: str
    scale: Scale  # the scale that was used
    num_tokens: int  # LLM tokens that the media became
    duration_s: float
    seconds: dict[str, float]  # stage -> wall time: media, encode, decode
    warnings: tuple[str, ...] = field(default=())
    segments: tuple[Segment, ...] = ()

    @property
    def flops(self) -> int | None:
        """Of all segments, where a policy counted them."""
        counted = [segment.decision.flops for segment in self.segments if segment.decision is not None]
        return sum(counted) if counted else None

    def to_dict(self, *, words: bool = False) -> dict[str, Any]:
        """Plain values, for JSON; segments have their words only if `words` is set."""
        counted = {} if self.flops is None else {"flops": self.flops}
        return {
            "text": self.text,
            "scale": str(self.scale),
            "num_tokens": self.num_tokens,
            **counted,
            "duration_s": round(self.duration_s, 3),
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            "warnings": list(self.warnings),
            "segments": [segment.to_dict(id, words=words) for id, segment in enumerate(self.segments)],
        }


@dataclass(frozen=True)
class FaceModels:
    """The two LiteRT models that find a face and its 468 landmarks."""

    detection: Path
    landmarks: Path


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)
