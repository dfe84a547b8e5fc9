"""Requests on their way through the server: what was read of their files, and what came out so far."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mtsk.inference.ladder import Ladder
from mtsk.inference.policy import Attempt, Choice, Fixed
from mtsk.inference.recording import Part
from mtsk.media import MediaError
from mtsk.scale import Scale, ScaleGrid
from mtsk.serving.load import Share
from mtsk.serving.passes import Compared, Comparison
from mtsk.serving.plans import Plan
from mtsk.serving.predict import Estimate
from mtsk.serving.reading import FileReading
from mtsk.types import Segment, Transcript


@dataclass(frozen=True)
class Compare:
    """What a file gave at one of several scales.

    Attributes:
        asked: the scale that was asked for.
        transcript: `Transcript.seconds` has `encode`, of all scales together, and `decode`.
    """

    asked: Scale
    transcript: Transcript


@dataclass(frozen=True)
class Done:
    """The end of a request.

    Attributes:
        transcript: of a transcription.
        compared: of a comparison.
    """

    transcript: Transcript | None = None
    compared: tuple[Compare, ...] = ()


_NO_LOOK = Estimate("lips", 0.0)

Event = Segment | Done | Exception
"""What a request's owner is told: segments in the order of time, then the end, or why there is none."""


@dataclass(eq=False)
class Unit:
    """A part of a file that waits for the model.

    Attributes:
        index: of the part in its file.
        attempts: what the passes before a look at the lips gave,
        before: and the segment that they made,
        wanted: and what the look is for.
        look: what that takes.
        comparison: instead, of a comparison, with the scales that are left and what the others gave.
        estimate: of reading it once.
    """

    job: Job
    index: int
    part: Part
    estimate: Estimate
    attempts: tuple[Attempt, ...] = ()
    before: Segment | None = None
    wanted: Choice | None = None
    look: Estimate = _NO_LOOK
    comparison: Comparison | None = None
    scales: deque[Scale] = field(default_factory=deque)
    results: list[Compared | None] = field(default_factory=list)


@dataclass(eq=False)
class Job:
    """One request. All but `tell` belongs to the batcher, which changes it under its lock.

    Attributes:
        plan: how its file is read.
        path: of the upload, which is deleted at the end.
        tell: takes events, from any thread.
        media: of the threads that read files.
        model: of the model's thread.
        duration_s: of the file, as far as known.
        grid: of the model.
        scales: to be compared; none for a transcription.
        num_steps: how much coarser than asked it is read.
    """

    plan: Plan
    path: Path
    tell: Callable[[Event], None]
    media: Share
    model: Share
    duration_s: float
    grid: ScaleGrid
    scales: tuple[Scale, ...] = ()
    num_steps: int = 0

    reading: FileReading | None = None
    ladders: list[Ladder] = field(default_factory=list)
    is_over: bool = False  # nobody waits for it any more
    is_read: bool = False  # to the end of its file
    is_busy: bool = False  # a thread reads its file
    num_parts: int = 0
    num_open: int = 0  # parts that were read and are not done
    to_look: deque[Unit] = field(default_factory=deque)
    is_looking: bool = False
    started_s: float | None = None  # when the model took its first part
    seconds: dict[str, float] = field(default_factory=lambda: {"media": 0.0, "encode": 0.0, "decode": 0.0})
    _results: dict[int, tuple[Part, Sequence[Segment | None]]] = field(default_factory=dict)
    _num_told: int = 0
    _missing: dict[str, str] = field(default_factory=dict)  # modality -> why a part lacks it

    def make_ladders(self) -> None:
        """What gathers the segments: one for a transcription, else one for each scale."""
        if self.scales:
            self.ladders = [Ladder.of(scale, self.grid, optional=True) for scale in self.scales]
        elif isinstance(self.plan.policy, Fixed):
            self.ladders = [Ladder.of(self.plan.policy.scale, self.grid)]
        else:
            self.ladders = [Ladder.best(self.grid)]

    def add(self, index: int, part: Part, segments: Sequence[Segment | None]) -> list[Segment]:
        """Takes what came out of a part, one segment for each ladder; returns the segments that are next to be told."""
        self._results[index] = (part.without_media(), segments)
        self._missing |= part.missing
        told: list[Segment] = []
        for i in itertools.count(self._num_told):
            if i not in self._results:
                return told
            done, found = self._results.pop(i)
            self._num_told += 1
            for ladder, segment in zip(self.ladders, found, strict=True):
                ladder.add([done], [] if segment is None else [segment])
                if segment is not None and not self.scales:
                    told.append(segment)
        raise AssertionError

    def finish(self) -> Done:
        """The end.

        Raises:
            MediaError: if nothing could be used.
        """
        assert self.reading is not None
        recording = self.reading.recording
        if not self.scales:
            self.ladders[0].decode_s = self.seconds["decode"]
        transcripts = [ladder.transcript(recording, self.grid, dict(self.seconds)) for ladder in self.ladders]
        if self.scales:
            pairs = zip(self.scales, transcripts, strict=True)
            compared = tuple(Compare(scale, found) for scale, found in pairs if found is not None)
            if not compared:
                reasons = " and ".join({**recording.missing, **self._missing}.values()) or "too short"
                raise MediaError(f"{recording.name}: {reasons} for the scales {' '.join(map(str, self.scales))}")
            return Done(compared=compared)
        (transcript,) = transcripts
        assert transcript is not None
        if not isinstance(self.plan.policy, Fixed) and transcript.segments:
            # That scales differ is what a policy is for: no reason to warn.
            transcript = replace(transcript, warnings=recording.warnings)
        return Done(transcript)
