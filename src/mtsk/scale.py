"""Compression rates as values: `Scale` is one choice of rates, `ScaleGrid` the choices that a model is trained at.

A rate is the number of consecutive encoder features that become one LLM token. `None` means that the modality is
absent, so speech recognition (`a4`), lip reading (`v2`) and audio-visual recognition (`a4v2`) are one type.
No torch here: the command line and the configuration read this module.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

AUDIO_FEATURE_RATE_HZ = 50  # Whisper encoder: 16 kHz / 160-sample hop / 2
VIDEO_FEATURE_RATE_HZ = 25  # one feature per video frame
FEATURE_S = {"audio": 1.0 / AUDIO_FEATURE_RATE_HZ, "video": 1.0 / VIDEO_FEATURE_RATE_HZ}

_MAX_RATES = 100  # of a range

_NAMED = re.compile(r"(?:a(?P<audio>\d+))?(?:v(?P<video>\d+))?")
_PAIR = re.compile(r"(?P<audio>\d+)\s*,\s*(?P<video>\d+)")
_RANGES = re.compile(r"(?:a(\d+)(?:-(\d+))?)?(?:v(\d+)(?:-(\d+))?)?")


@functools.total_ordering
@dataclass(frozen=True)
class Scale:
    """A compression rate per modality.

    Attributes:
        audio: audio features per LLM token (50 features a second before compression), or None without sound.
        video: video features per LLM token (25 features a second before compression), or None without lips.

    Raises:
        ValueError: if both modalities are absent or a rate is below 1.
    """

    audio: int | None = None
    video: int | None = None

    def __post_init__(self) -> None:
        rates = [rate for rate in (self.audio, self.video) if rate is not None]
        if not rates:
            raise ValueError("a scale needs an audio rate, a video rate or both, such as a4, v2 or a4v2")
        if min(rates) < 1:
            raise ValueError(f"a compression rate is a whole number from 1 up, not {min(rates)}")

    @classmethod
    def parse(cls, text: str) -> Scale:
        """Reads `a4v2`, `a16`, `v5` or `4,2` (audio, video).

        Raises:
            ValueError: if the text has none of these forms.
        """
        cleaned = text.strip().lower()
        match = _PAIR.fullmatch(cleaned) or (_NAMED.fullmatch(cleaned) if cleaned else None)
        if match is None:
            raise ValueError(f"{text!r} is not a scale; write a4v2, a16, v5 or 4,2 (audio rate, video rate)")
        audio, video = (None if match[key] is None else int(match[key]) for key in ("audio", "video"))
        return cls(audio=audio, video=video)

    @classmethod
    def parse_ranges(cls, text: str) -> tuple[Scale, ...]:
        """Reads a scale, or every scale of ranges of rates: `a4-20`, `v1-5`, `a4-16v2`.

        Raises:
            ValueError: if the text has none of these forms, or a range is empty.
        """
        match = _RANGES.fullmatch(text.strip().lower())
        if match is None or "-" not in text:
            return (cls.parse(text),)
        rates: list[list[int | None]] = []
        for first, last in (match.group(1, 2), match.group(3, 4)):
            bounds = None if first is None else range(int(first), int(last or first) + 1)
            if bounds is not None and len(bounds) > _MAX_RATES:
                raise ValueError(f"{text!r} has {len(bounds)} rates; at most {_MAX_RATES} are allowed in a range")
            rates.append([None] if bounds is None else list(bounds))
        if not all(rates):
            raise ValueError(f"{text!r} has an empty range of rates; write the finer rate first, as in a4-20")
        return tuple(cls(audio, video) for audio in rates[0] for video in rates[1])

    def __str__(self) -> str:
        return ("" if self.audio is None else f"a{self.audio}") + ("" if self.video is None else f"v{self.video}")

    def __lt__(self, other: Scale) -> bool:
        """Sound alone, then lips alone, then both; within a task the finer rates first."""
        return self._sort_key() < other._sort_key()

    def _sort_key(self) -> tuple[int, int, int]:
        task = 0 if self.video is None else 1 if self.audio is None else 2
        return task, self.audio or 0, self.video or 0

    @property
    def task(self) -> str:
        """The letters of its modalities: `a`, `v` or `av`."""
        return ("" if self.audio is None else "a") + ("" if self.video is None else "v")

    def rate(self, letter: str) -> int | None:
        """The rate of a modality by its letter, `a` or `v`."""
        return {"a": self.audio, "v": self.video}[letter]

    @property
    def parts(self) -> tuple[Scale, ...]:
        """One scale per modality that this scale has: `a4v2` is `a4` and `v2`."""
        alone = [] if self.audio is None else [Scale(audio=self.audio)]
        return tuple(alone if self.video is None else [*alone, Scale(video=self.video)])

    @property
    def tokens_per_second(self) -> float:
        """LLM tokens that one second of input becomes."""
        audio = 0.0 if self.audio is None else AUDIO_FEATURE_RATE_HZ / self.audio
        video = 0.0 if self.video is None else VIDEO_FEATURE_RATE_HZ / self.video
        return audio + video

    def num_tokens(self, *, num_audio_features: int = 0, num_video_features: int = 0) -> int:
        """LLM tokens for so many encoder features; an incomplete last group is dropped."""
        audio = 0 if self.audio is None else num_audio_features // self.audio
        video = 0 if self.video is None else num_video_features // self.video
        return audio + video


@dataclass(frozen=True)
class ScaleGrid:
    """The scales that a model is trained at, sorted, without repeats.

    Raises:
        ValueError: if there is none.
    """

    scales: tuple[Scale, ...]

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("a scale grid needs at least one scale")
        object.__setattr__(self, "scales", tuple(sorted(set(self.scales))))

    @classmethod
    def joint(cls, audio: Iterable[int], video: Iterable[int]) -> ScaleGrid:
        """Every audio rate alone, every video rate alone, and every pair: one model for three tasks."""
        audio, video = tuple(audio), tuple(video)
        alone = [Scale(audio=a) for a in audio] + [Scale(video=v) for v in video]
        return cls((*alone, *(Scale(a, v) for a in audio for v in video)))

    def __iter__(self) -> Iterator[Scale]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    def __contains__(self, scale: object) -> bool:
        return scale in self.scales

    def __str__(self) -> str:
        return " ".join(map(str, self.scales))

    @property
    def audio_rates(self) -> tuple[int, ...]:
        """Distinct audio rates, finest first."""
        return tuple(sorted({scale.audio for scale in self.scales if scale.audio is not None}))

    @property
    def video_rates(self) -> tuple[int, ...]:
        """Distinct video rates, finest first."""
        return tuple(sorted({scale.video for scale in self.scales if scale.video is not None}))

    def require(self, scale: Scale) -> Scale:
        """Returns the scale if the model is trained at it.

        Raises:
            ValueError: naming the trained scales otherwise.
        """
        if scale not in self.scales:
            raise ValueError(f"scale {scale} was not trained; this model has: {self}")
        return scale

    def nearest_finer(self, scale: Scale) -> Scale:
        """The coarsest trained scale of the same modalities with no coarser rate: itself, if it is trained.

        Raises:
            ValueError: if every trained scale has a coarser rate or other modalities.
        """
        finer = [
            each
            for each in self.scales
            if each.task == scale.task and all((each.rate(m) or 0) <= (scale.rate(m) or 0) for m in scale.task)
        ]
        if not finer:
            raise ValueError(f"no trained scale is as fine as {scale} or finer; this model has: {self}")
        return min(finer, key=lambda each: each.tokens_per_second)

    def select(self, texts: Iterable[str]) -> tuple[Scale, ...]:
        """The trained scales that the texts name, in that order; `all` means every one.

        Raises:
            ValueError: if a text is no scale, or names one that was not trained.
        """
        chosen: dict[Scale, None] = {}
        for text in texts:
            chosen.update(dict.fromkeys(self.scales if text == "all" else (self.require(Scale.parse(text)),)))
        return tuple(chosen)
