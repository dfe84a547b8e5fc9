"""A media file part by part: where it is cut, and what of each part can be used: sound that is not silent, lips of a
face.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtsk.device import give_back_memory
from mtsk.inference.ahead import ahead
from mtsk.inference.segments import MAX_SEGMENT_S, SegmentInput, SegmentRules, segment_stream
from mtsk.media import MediaError, MouthTrack
from mtsk.media.stream import MediaPiece, MediaStream
from mtsk.media.vad import SpeechDetector
from mtsk.scale import Scale
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Example, Segment, Transcript

MIN_DURATION_S = 0.25  # nothing is said in less; a model would make something up
SILENCE_RMS = 1e-4  # -80 dB of full scale: digital silence and dither, below any microphone in a room
_MIN_SHARE_SEEN = 0.2  # of the frames; fewer are a mistake of the detector, or no talker
_FRAMES_PER_SIGHTING = 5  # a lost face is looked for on every fifth frame
SILENT = "the sound is silent"
NO_SPEECH = "nobody is heard to speak"
BATCH = 48  # parts; the memory for activations does not grow with the length of a file


@dataclass(frozen=True)
class Written:
    """What the next parts of a recording gave.

    Attributes:
        until_s: how far it is read.
        segments: new ones in the order of time, for each of `Run.names`.
    """

    until_s: float
    segments: tuple[tuple[Segment, ...], ...]


class Run(Protocol):
    """A media file that is open, to be read once; see `Engine.open`.

    Attributes:
        names: what was asked for: scales, or `best`; one name under a policy.
        declared_s: how long the file says that it is; None if it does not say.
    """

    names: tuple[str, ...]
    declared_s: float | None

    def read(self, *, growing: bool = False) -> Generator[Written, None, None]:
        """Reads the file. Closing the generator soon ends the decoding of the file.

        Args:
            growing: first one part alone, so that its text is there soon.

        Raises:
            MediaError: if the file can't be decoded.
        """

    def transcripts(self) -> list[Transcript | None]:
        """For each name what `read`, read to its end, gave together; None for what was asked for among `all` and is
        impossible.

        Raises:
            MediaError: if nothing could be used.
        """

    def close(self) -> None:
        """Closes the file, if `read` was not called or is closed; may be called again."""


@dataclass(frozen=True)
class Part:
    """A stretch of a recording that is decoded in one pass."""

    start_s: float
    end_s: float
    example: Example
    missing: dict[str, str]  # modality -> why it can't be used

    @classmethod
    def of(cls, segment: SegmentInput, recording: Recording, *, needs_speech: bool = False) -> Part:
        """What can be used of a segment; its sound, if speech is needed, only where somebody was heard to speak."""
        missing = dict(recording.missing)
        waveform, mouth = segment.waveform, None
        if "audio" not in missing and (waveform is None or is_silent(waveform)):
            waveform, missing["audio"] = None, "no sound" if waveform is None else SILENT
        elif "audio" not in missing and needs_speech and segment.speech_s == 0:
            waveform, missing["audio"] = None, NO_SPEECH
        if "video" not in missing:
            reason = _why_no_lips(segment.mouth, recording.face)
            if reason is None and segment.mouth is not None:
                mouth = segment.mouth.crops_THW
            else:
                missing["video"] = reason or "no video"
        return cls(segment.start_s, segment.end_s, Example(recording.name, waveform, mouth), missing)

    def lacking(self, scale: Scale) -> list[str]:
        """Why the scale can't be used: a reason for each modality that is missing."""
        return lacking(scale, self.missing)

    def with_lips(self, mouth: MouthTrack | None, face: int) -> Part:
        """The same part after a look at its pictures: with the crops of a face, or the reason why there are none."""
        missing = {name: why for name, why in self.missing.items() if name != "video"}
        reason = _why_no_lips(mouth, face)
        if reason is not None or mouth is None:
            return replace(self, missing={**missing, "video": reason or "no video"})
        return replace(self, example=replace(self.example, mouth=mouth.crops_THW), missing=missing)

    def place(self, segment: Segment) -> Segment:
        """A segment whose times count from the start of this part, at its place in the recording."""
        words = tuple(
            replace(word, start_s=word.start_s + self.start_s, end_s=word.end_s + self.start_s)
            for word in segment.words
        )
        return replace(segment, start_s=self.start_s, end_s=self.end_s, words=words)

    def without_media(self) -> Part:
        """Its times alone: the crops and samples are not needed once they are encoded."""
        return replace(self, example=Example(self.example.id, None, None))


class Recording:
    """An open media file, read once.

    Args:
        stream: the file.
        make_detector: called if speech has to be told from silence.
        speech_only: leave out where nobody speaks. None: so if the recording is too long for one part; a shorter one
            stays whole if somebody speaks in it.
        face: which face the stream follows.
    """

    def __init__(
        self, stream: MediaStream, make_detector: Callable[[], SpeechDetector], *, speech_only: bool | None, face: int
    ) -> None:
        self._stream = stream
        self._make_detector = make_detector
        self._speech_only = speech_only
        self.name = stream.name
        self.face = face
        self.duration_s = 0.0
        self.is_silent = True

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the file; complete after the last part."""
        return self._stream.warnings

    @property
    def declared_s(self) -> float | None:
        """How long the file says that it is."""
        return self._stream.declared_s

    def close(self) -> None:
        """Closes the file, if nothing reads it any more; may be called again."""
        self._stream.close()

    def parts_ahead(self) -> Generator[Part, None, None]:
        """`parts`, made in a thread. Closing it soon ends the decoding of the file."""
        return ahead(self.parts(), BATCH, self._stream.stop)

    @cached_property
    def missing(self) -> dict[str, str]:
        """Modality -> why no part has it."""
        missing = {} if self._stream.has_sound else {"audio": "no sound"}
        # Pictures that were not asked for are not missed: no scale needs them.
        return missing if self._stream.has_video_stream else {**missing, "video": "no video"}

    def parts(self) -> Generator[Part, None, None]:
        """The parts, in order of time.

        Raises:
            MediaError: if the recording can't be decoded, or is too short.
        """
        with contextlib.closing(self._stream):
            pieces = self._pieces()
            held: list[MediaPiece] = []
            while self.duration_s <= MAX_SEGMENT_S and (piece := next(pieces, None)) is not None:
                held.append(piece)
            # A short recording stays whole, with the silence around what is said, as models know it from training.
            stays_whole = self._speech_only is None and self.duration_s <= MAX_SEGMENT_S
            detector = self._make_detector() if self._stream.has_sound else None
            # Where silence is kept the detector only chooses the cuts.
            rules = SegmentRules(keep_silence=stays_whole or self._speech_only is False)
            for segment in segment_stream(itertools.chain(held, pieces), detector, rules):
                part = Part.of(segment, self, needs_speech=stays_whole)
                if part.missing.get("audio") != NO_SPEECH or "video" not in part.missing:  # as in a long recording
                    yield part

    def _pieces(self) -> Iterator[MediaPiece]:
        for piece in self._stream:
            self.duration_s = piece.start_s + piece.duration_s
            self.is_silent = self.is_silent and (not len(piece.waveform) or is_silent(piece.waveform))
            yield piece
        if self.duration_s < MIN_DURATION_S:
            too_short = f"{self.duration_s:.2f} s is too short; at least {MIN_DURATION_S} s is needed"
            raise MediaError(f"{self.name}: {too_short}")


def batches(parts: Iterator[Part], *, growing: bool = False) -> Iterator[list[Part]]:
    """The parts, several at a time; if growing, first one, so that its text is there soon."""
    size = 1 if growing else BATCH
    batch = list(itertools.islice(parts, size))
    while batch:
        yield batch
        size = min(BATCH, 2 * size)
        batch = list(itertools.islice(parts, size))
        if batch:
            give_back_memory()


def lacking(scale: Scale, missing: Mapping[str, str]) -> list[str]:
    """Of the modalities of a scale those that are missing, by why."""
    wanted = [name for name, rate in (("audio", scale.audio), ("video", scale.video)) if rate is not None]
    return [missing[name] for name in wanted if name in missing]


def duration_s(example: Example) -> float:
    """How long an example lasts: the longer of its modalities."""
    num_samples = 0 if example.waveform is None else len(example.waveform)
    num_frames = 0 if example.mouth is None else len(example.mouth)
    return max(num_samples / SAMPLE_RATE_HZ, num_frames / VIDEO_FPS)


def is_silent(waveform_N: NDArray[np.float32]) -> bool:
    """Whether there is nothing but digital silence or dither."""
    return math.sqrt(float(np.square(waveform_N, dtype=np.float64).mean())) < SILENCE_RMS


def _why_no_lips(mouth: MouthTrack | None, face: int) -> str | None:
    if mouth is None or mouth.num_faces == 0:
        return "no face"
    if mouth.num_detected == 0:
        return f"no face {face} (the video shows {mouth.num_faces}, counted from 0)"
    # Frames within a second of a sighting count as interpolated, so a single one would stand for two seconds.
    num_seen = min(mouth.num_detected + mouth.num_interpolated, _FRAMES_PER_SIGHTING * mouth.num_detected)
    if num_seen < _MIN_SHARE_SEEN * mouth.num_frames:
        return f"a face on only {mouth.num_detected} of {mouth.num_frames} frames"
    return None
