"""A media file at several scales: it is read and encoded once, part by part."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Generator, Sequence

from mtsk.inference.beam import Beams
from mtsk.inference.deciding import Reader
from mtsk.inference.encoded import EncodedExamples
from mtsk.inference.ladder import Ladder
from mtsk.inference.recording import Part, Recording, Written, batches
from mtsk.scale import ScaleGrid
from mtsk.types import Segment, Transcript


class ScalesRun:
    """One file, from its first segment to its transcripts; a `Run`.

    Args:
        reader: encodes and decodes.
        recording: the file; is closed if a ladder refuses it.
        ladders: one for each scale that was asked for.
        grid: of the model.
        beams: of each pass.
        started_s: when the file began to be opened, by `time.perf_counter`.

    Raises:
        MediaError: if the file has nothing that a scale needs.
    """

    def __init__(
        self, reader: Reader, recording: Recording, ladders: Sequence[Ladder], grid: ScaleGrid, beams: Beams,
        started_s: float,
    ) -> None:  # fmt: skip
        self._reader, self._recording, self._grid, self._beams = reader, recording, grid, beams
        self._started_s, self._encode_s, self._idle_s = started_s, 0.0, 0.0
        # Without any that may serve they all stay, to say why.
        self._ladders = [ladder for ladder in ladders if ladder.may_serve(recording)] or ladders
        try:
            for ladder in self._ladders:
                ladder.check(recording, grid)
        except ValueError:
            recording.close()
            raise
        self.names = tuple(ladder.name for ladder in self._ladders)
        self.declared_s = recording.declared_s

    def read(self, *, growing: bool = False) -> Generator[Written, None, None]:
        """See `Run.read`."""
        with contextlib.closing(self._recording.parts_ahead()) as ready:
            for parts in batches(ready, growing=growing):
                batch_s = time.perf_counter()
                encoded = self._reader.encode([part.example for part in parts])
                self._encode_s += time.perf_counter() - batch_s
                for ladder in self._ladders:
                    batch_s = time.perf_counter()
                    ladder.add(parts, self._write(parts, encoded, ladder))
                    ladder.decode_s += time.perf_counter() - batch_s
                idle_s = time.perf_counter()
                yield Written(parts[-1].end_s, tuple(tuple(ladder.take()) for ladder in self._ladders))
                self._idle_s += time.perf_counter() - idle_s

    def transcripts(self) -> list[Transcript | None]:
        """See `Run.transcripts`."""
        spent_s = time.perf_counter() - self._started_s - self._idle_s
        media_s = spent_s - self._encode_s - sum(ladder.decode_s for ladder in self._ladders)
        seconds = {"media": media_s, "encode": self._encode_s}
        transcripts = [ladder.transcript(self._recording, self._grid, seconds) for ladder in self._ladders]
        if all(transcript is None for transcript in transcripts):
            self._ladders[0].refuse(self._recording, self._grid)
        return transcripts

    def close(self) -> None:
        """See `Run.close`."""
        self._recording.close()

    def _write(self, parts: Sequence[Part], encoded: EncodedExamples, ladder: Ladder) -> list[Segment]:
        """A segment for each part that has a rung on the ladder."""
        reaches = encoded.features.reaches
        rungs = [ladder.rung(part, functools.partial(reaches, row)) for row, part in enumerate(parts)]
        of_row = {row: scale for row, scale in enumerate(rungs) if scale is not None}
        if not of_row:
            return []
        segments = self._reader.write(encoded.rows(list(of_row)), list(of_row.values()), self._beams)
        return [parts[row].place(segment) for row, segment in zip(of_row, segments, strict=True)]
