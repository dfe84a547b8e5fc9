"""What became of each file of a corpus: a line on disk, and in memory little more than its name.

A corpus such as LRS3 has four million words with their times; they stay in the file and are read back when the
manifests are written, one line after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self


@dataclass(frozen=True)
class Record:
    """A line of the log: what became of one file."""

    id: str
    split: str
    key: str
    """Changes with the file, its text and the settings."""
    cuts: tuple[dict[str, Any], ...]
    """Its utterances, as they stand in the manifest; none if it was refused."""
    reason: str = ""
    """Why no manifest has it. With cuts: it is set aside, could be used, and its files are there."""
    warnings: tuple[str, ...] = ()
    num_interpolated: int = 0
    num_missing: int = 0
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept in memory of a record."""

    split: str
    digest: bytes
    """Of the key."""
    offset: int
    """Where its line starts in the log."""
    num_cuts: int
    duration_s: float
    num_without_lips: int
    num_without_sound: int
    num_frames: int
    num_interpolated: int
    num_missing: int
    reason: str
    warnings: tuple[str, ...]
    retry: bool

    @property
    def is_used(self) -> bool:
        """Whether the manifests have it."""
        return self.num_cuts > 0 and not self.reason

    @property
    def is_set_aside(self) -> bool:
        """Whether they could have it, but its corpus no longer lists it."""
        return self.num_cuts > 0 and bool(self.reason)


class Log:
    """The records of a prepared folder, the latest of each file.

    To add some, use it as a context manager. A last line cut short by an interruption is dropped.

    Args:
        path: the log; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._end = 0
        self._file: BinaryIO | None = None
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._remember(_parse(line), len(line))

    def __enter__(self) -> Self:
        self.path.touch()
        self._file = self.path.open("r+b")
        self._file.truncate(self._end)
        self._file.seek(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None

    def is_done(self, id: str, key: str) -> bool:
        """Whether there is such a record with this key, and it need not be tried again."""
        entry = self.entries.get(id)
        return entry is not None and entry.digest == _digest(key) and not entry.retry

    def add(self, record: Record) -> None:
        """Writes a record to the disk; it replaces an earlier one of that name."""
        assert self._file is not None, "open it by `with`"
        line = json.dumps(vars(record)).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._remember(record, len(line))

    def read(self, ids: Iterable[str]) -> Iterator[Record]:
        """The records of these names, one by one from the disk."""
        if not self.entries:
            return
        with self.path.open("rb") as file:
            for id in ids:
                file.seek(self.entries[id].offset, os.SEEK_SET)
                yield _parse(file.readline())

    def _remember(self, record: Record, length: int) -> None:
        cuts = record.cuts
        frames = [cut["custom"]["mouth"]["array"]["shape"][0] for cut in cuts if "mouth" in cut["custom"]]
        self.entries[record.id] = Entry(
            split=record.split,
            digest=_digest(record.key),
            offset=self._end,
            num_cuts=len(cuts),
            duration_s=sum(cut["duration"] for cut in cuts),
            num_without_lips=len(cuts) - len(frames),
            num_without_sound=sum(not cut["custom"]["has_audio"] for cut in cuts),
            num_frames=sum(frames),
            num_interpolated=record.num_interpolated,
            num_missing=record.num_missing,
            reason=record.reason,
            warnings=record.warnings,
            retry=record.retry,
        )
        self._end += length


def _parse(line: bytes) -> Record:
    values = json.loads(line)
    if "cut" in values:  # as written before a file could have several
        cut = values.pop("cut")
        values["cuts"] = [] if cut is None else [cut]
    return Record(**{**values, "cuts": tuple(values["cuts"]), "warnings": tuple(values["warnings"])})


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=12).digest()
