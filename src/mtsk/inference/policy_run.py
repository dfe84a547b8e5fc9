"""A media file under a policy: its sound is read once, its lips where they are needed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mtsk.inference.deciding import Decider
from mtsk.inference.ladder import Ladder
from mtsk.inference.policy import Looks, Policy
from mtsk.inference.recording import Part, Recording, Written, batches
from mtsk.media import MouthTracker
from mtsk.media.lips import LaterLips
from mtsk.media.stream import MediaStream, stream_media
from mtsk.media.vad import SpeechDetector
from mtsk.scale import ScaleGrid
from mtsk.types import Transcript


class PolicyRun:
    """One file, from its first segment to its transcript; a `Run`.

    Where a policy asks for lips only if they are needed, the pictures of a path are decoded when the first one is
    needed, and not at all if none is. A binary file object can't be read twice at once: there, and where there is no
    sound, lips are followed in the first reading.

    Args:
        decider: encodes and decodes.
        policy: of all segments.
        source: path, or a binary file object.
        tracker: finds the mouth.
        grid: of the model.
        speech_only: see `Engine.stream`.

    Raises:
        MediaError: if the file can't be opened, or has nothing that the model reads.
    """

    def __init__(
        self,
        decider: Decider,
        policy: Policy,
        source: str | Path | BinaryIO,
        tracker: MouthTracker,
        grid: ScaleGrid,
        *,
        speech_only: bool | None,
    ) -> None:
        self._started_s, self._idle_s = time.perf_counter(), 0.0
        self._decider, self._policy, self._grid, self._face = decider, policy, grid, tracker.face
        stream, self._later = _open(source, tracker, policy.looks)
        self._recording = Recording(stream, SpeechDetector, speech_only=speech_only, face=tracker.face)
        self._ladder = Ladder.best(grid)
        try:
            self._ladder.check(self._recording, grid)
        except ValueError:
            self.close()
            raise
        self.names: tuple[str, ...] = (self._ladder.name,)
        self.declared_s = self._recording.declared_s

    def read(self, *, growing: bool = False) -> Generator[Written, None, None]:
        """See `Run.read`."""
        look = None if self._later is None else self._look
        with contextlib.ExitStack() as exits:
            if self._later is not None:
                exits.callback(self._later.close)
            ready = exits.enter_context(contextlib.closing(self._recording.parts_ahead()))
            for parts in batches(ready, growing=growing):
                read, found = self._decider.decide([*map(self._unseen, parts)], [self._policy] * len(parts), look)
                self._ladder.add(read, [segment for segment in found if segment is not None])
                idle_s = time.perf_counter()
                yield Written(parts[-1].end_s, (tuple(self._ladder.take()),))
                self._idle_s += time.perf_counter() - idle_s

    def transcripts(self) -> list[Transcript | None]:
        """See `Run.transcripts`; with what it cost."""
        seconds = dict(self._decider.seconds)
        spent_s = time.perf_counter() - self._started_s - self._idle_s
        seconds["media"] = spent_s - seconds["encode"] - seconds["decode"]
        transcript = self._ladder.transcript(self._recording, self._grid, {})
        assert transcript is not None
        # That scales differ is what a policy is for: no reason to warn.
        warnings = self._recording.warnings if transcript.segments else transcript.warnings
        return [replace(transcript, seconds=seconds, warnings=warnings)]

    def close(self) -> None:
        """See `Run.close`."""
        self._recording.close()
        if self._later is not None:
            self._later.close()

    def _unseen(self, part: Part) -> Part:
        """A part whose lips nobody has looked for lacks none, unless there are no pictures at all."""
        if self._later is None:
            return part
        kept = {name: why for name, why in part.missing.items() if name != "video" or name in self._recording.missing}
        return replace(part, missing=kept)

    def _look(self, part: Part) -> Part:
        assert self._later is not None
        return part.with_lips(self._later.between(part.start_s, part.end_s), self._face)


def _open(source: str | Path | BinaryIO, tracker: MouthTracker, looks: Looks) -> tuple[MediaStream, LaterLips | None]:
    """A file to be read, and its lips for later, if it is not read for both at once."""
    is_path = isinstance(source, str | Path)
    if looks == "first" or (looks == "if needed" and not is_path):
        return stream_media(source, tracker=tracker), None
    stream = stream_media(source, tracker=None)
    if looks == "never" or not stream.has_video_stream:
        return stream, None
    assert isinstance(source, str | Path)
    if not stream.has_sound:
        stream.close()
        return stream_media(source, tracker=tracker), None
    return stream, LaterLips(source, tracker)
