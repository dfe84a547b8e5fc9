"""Which scale each part of a recording is read at, and the transcript that this gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from mtsk.inference.recording import NO_SPEECH, SILENT, Part, Recording, lacking
from mtsk.media import MediaError
from mtsk.scale import Scale, ScaleGrid
from mtsk.types import Segment, Transcript


class Ladder:
    """A scale that was asked for, and those that stand in for it where a part lacks sound or lips.

    Args:
        rungs: in order of preference.
        wanted: the scale that was asked for; None if the best was.
        optional: whether it was asked for among all, so that it may prove impossible.
    """

    def __init__(self, rungs: Sequence[Scale], wanted: Scale | None, *, optional: bool = False) -> None:
        self._rungs = rungs
        self._wanted = wanted
        self._optional = optional
        self._segments: list[Segment] = []
        self._parts: list[Part] = []  # without media
        self._num_taken = 0  # segments
        self.decode_s = 0.0

    @classmethod
    def of(cls, scale: Scale, grid: ScaleGrid, *, optional: bool = False) -> Ladder:
        """A scale, and its one modality where the other is missing."""
        return cls([scale, *(alone for alone in scale.parts if alone in grid)], scale, optional=optional)

    @classmethod
    def best(cls, grid: ScaleGrid) -> Ladder:
        """The finest of the richest first. A grid lists finer rates first."""
        return cls(sorted(grid, key=lambda scale: -len(scale.parts)), None)

    @classmethod
    def named(cls, name: str, grid: ScaleGrid) -> list[Ladder]:
        """What a name stands for: a scale, `best`, or `all`."""
        if name == "all":
            return [cls.of(scale, grid, optional=True) for scale in grid]
        return [cls.best(grid) if name == "best" else cls.of(Scale.parse(name), grid)]

    @property
    def name(self) -> str:
        """What was asked for: a scale, or `best`."""
        return "best" if self._wanted is None else str(self._wanted)

    def may_serve(self, recording: Recording) -> bool:
        """False if the scale was asked for among all, and the file has no stream that it needs."""
        return not (self._optional and self._wanted and lacking(self._wanted, recording.missing))

    def check(self, recording: Recording, grid: ScaleGrid) -> None:
        """Raises at once what is certain before anything is decoded.

        Raises:
            MediaError: if the file has no stream that a rung needs.
        """
        if not self._optional and all(lacking(scale, recording.missing) for scale in self._rungs):
            self._refuse(recording, recording.missing, grid)

    def rung(self, part: Part, reaches: Callable[[Scale], bool]) -> Scale | None:
        """The scale that a part is read at, if any.

        Args:
            reaches: whether the part is long enough for a scale.
        """
        return next((scale for scale in self._rungs if not part.lacking(scale) and reaches(scale)), None)

    def add(self, parts: Sequence[Part], segments: Sequence[Segment]) -> None:
        """Takes what was written of the next parts; parts without a rung have no segment."""
        self._parts += [part.without_media() for part in parts]
        self._segments += segments

    def take(self) -> list[Segment]:
        """The segments since the last call; of an optional scale none before it has proved possible."""
        if self._optional and all(segment.scale != self._wanted for segment in self._segments):
            return []
        taken, self._num_taken = self._num_taken, len(self._segments)
        return self._segments[taken:]

    def transcript(self, recording: Recording, grid: ScaleGrid, seconds: dict[str, float]) -> Transcript | None:
        """All that was written; None if the scale was optional and is impossible.

        Args:
            recording: read to its end.
            grid: of the model, for messages.
            seconds: what media and encoding took.

        Raises:
            MediaError: if nothing could be used.
        """
        used = Counter(segment.scale for segment in self._segments)
        if self._optional and (not self._wanted or not used[self._wanted]) and self._parts:
            return None
        if not self._segments and (self._parts or recording.is_silent):
            self.refuse(recording, grid)
        scale = self._main_scale(used)
        return Transcript(
            text=" ".join(filter(None, (segment.text for segment in self._segments))),
            scale=scale,
            num_tokens=sum(segment.num_tokens for segment in self._segments),
            duration_s=recording.duration_s,
            seconds={**seconds, "decode": self.decode_s},
            warnings=(*recording.warnings, *self._fallbacks(used, scale)),
            segments=tuple(self._segments),
        )

    def _main_scale(self, used: Counter[Scale]) -> Scale:
        if self._wanted is not None and (self._wanted in used or len(used) != 1):
            return self._wanted
        return max(used, key=lambda scale: (used[scale], -self._rungs.index(scale)), default=self._rungs[0])

    def refuse(self, recording: Recording, grid: ScaleGrid) -> NoReturn:
        """Says why nothing could be used.

        Raises:
            MediaError: always.
        """
        missing = self._parts[0].missing if self._parts else {"audio": SILENT, **recording.missing}
        if all(lacking(scale, missing) for scale in (grid if self._optional else self._rungs)):
            self._refuse(recording, missing, grid)
        at = "" if self._wanted is None or self._optional else f" at scale {self._wanted}"
        raise MediaError(f"{recording.name}: {recording.duration_s:.2f} s is too short for a token{at}")

    def _refuse(self, recording: Recording, missing: Mapping[str, str], grid: ScaleGrid) -> NoReturn:
        if self._wanted is None or self._optional:
            raise MediaError(f"{recording.name}: {' and '.join(missing.values())}; this model has the scales {grid}")
        raise MediaError(f"{recording.name}: {' and '.join(lacking(self._wanted, missing))} for scale {self._wanted}")

    def _fallbacks(self, used: Counter[Scale], main: Scale) -> list[str]:
        """Warnings about parts where another scale was used, or that nobody speaks."""
        if not self._parts:
            return [NO_SPEECH]
        wanted = self._wanted or main
        reasons = {" and ".join(part.lacking(wanted)) for part in self._parts}
        if self._wanted is not None and main != wanted and len(reasons) == 1 and all(reasons):
            return [f"{reasons.pop()} for scale {wanted}; {main} is used"]
        return [
            f"{other} is used instead of {wanted} for {num} of {len(self._parts)} segments"
            for other, num in sorted(used.items())
            if other != wanted
        ]
