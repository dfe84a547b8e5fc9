"""What a corpus offers: the utterances of a source tree, each with its media file, text, split and talker."""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtsk.media.files import MEDIA_SUFFIXES
from mtsk.types import Word


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a media file that becomes one utterance."""

    text: str
    words: tuple[Word, ...] = ()
    """Their times count from the start of the piece."""
    start_s: float = 0.0
    end_s: float = math.inf
    """Where it ends in the file, or beyond its end."""
    suffix: str = ""
    """What its name has in addition to the file's, such as `_00`: no two pieces of a file may share it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A media file before its preparation: one utterance, or several if it is cut into pieces."""

    id: str
    path: Path
    text: str = ""
    words: tuple[Word, ...] = ()
    split: str = "train"
    speaker: str = ""
    refusal: str = ""
    """Why it can't be used, if that is known without its media file."""
    pieces: tuple[Piece, ...] = ()
    """In place of `text` and `words`."""
    script: Path | None = None
    """In place of `pieces`: a file that says them, read when its turn comes; the texts of a large corpus would fill
    the memory."""
    parse: Callable[[str], tuple[Piece, ...]] | None = None
    """What reads the content of `script`; a function of a module, with ValueError for what it can't read."""
    sound: Path | None = None
    """A file that has the sound, if `path` has none."""
    landmarks: Path | None = None
    """A file of landmarks, see `mtsk.media.landmarks`."""
    make: Callable[[], tuple[NDArray[np.float32], tuple[Word, ...]]] | None = None
    """In place of a file and of `words`: makes the sound (N,) at 16 kHz and the times of its words; with ValueError if
    it can't. Its `repr` says all that decides the result, and it goes to other processes."""

    def utterances(self) -> tuple[Piece, ...]:
        """The pieces, from the script if there is one.

        Raises:
            ValueError: if the script can't be read, naming it.
            OSError: if there is no such file.
        """
        if self.script is None:
            return self.pieces or (Piece(self.text, self.words),)
        assert self.parse is not None
        text = read_text(self.script)
        try:
            return self.parse(text)
        except ValueError as error:
            raise ValueError(f"{self.script}: {error}") from error


@dataclass(frozen=True)
class Corpus:
    """The utterances of a source tree."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    """What a reader of results has to know, e.g. that the split was made here."""
    prefix: str = ""
    """What the names of its utterances start with, and those of no other corpus: what a prepared folder has of that
    name and `sources` lack leaves the manifests. Empty: its names could be anybody's, and all that is there stays."""

    def __post_init__(self) -> None:
        assert all(source.id.startswith(self.prefix) for source in self.sources)
        twice = [id for id, count in Counter(source.id for source in self.sources).items() if count > 1]
        if twice:
            raise ValueError(f"{len(twice)} utterance names occur twice, e.g. {twice[:3]}: every name must be unique")


def media_files(folder: Path) -> list[Path]:
    """Media files in a folder, not below it, by their suffix; sorted.

    Raises:
        ValueError: if two of them differ in the suffix alone, as they would be one utterance.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file())
    twice = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    if twice:
        raise ValueError(f"{folder} has several media files named {twice[0]!r}: one file per utterance is allowed")
    return files


def read_text(path: Path) -> str:
    """A text file in UTF-8, with a byte order mark or without.

    Raises:
        ValueError: naming the file, if it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None


def read_tsv(path: Path, required: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated table with a header line, one by one.

    Raises:
        ValueError: naming the columns that are missing, or a row of another width; or the table is not in UTF-8.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = reader.fieldnames or []
    missing = [column for column in required if column not in columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(columns)} (tab-separated, with a header)")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {reader.line_num}: expected {len(columns)} tab-separated columns")
        yield {str(column): value.strip() for column, value in row.items()}


def talkers_apart(sources: Iterable[Source]) -> tuple[list[Source], list[str]]:
    """Leaves out what would let a talker of evaluation be heard in training: test goes before dev, dev before train.

    Returns:
        What stays, and what to note.
    """
    sources = list(sources)
    rank = {"test": 0, "dev": 1}
    first: dict[str, int] = {}
    for source in sources:
        first[source.speaker] = min(first.get(source.speaker, 2), rank.get(source.split, 2))
    kept = [source for source in sources if rank.get(source.split, 2) == first[source.speaker]]
    lost = Counter(source.split for source in sources if rank.get(source.split, 2) != first[source.speaker])
    notes = [
        f"{count} files of {split} were left out, as their talkers are in a split of evaluation"
        for split, count in lost.items()
    ]
    return kept, notes


def supplied_landmarks(root: Path | None, *names: Path) -> Path | None:
    """The file of landmarks of a clip, if there is one: below `root`, at a name without suffix, the first that fits."""
    if root is None:
        return None
    places = (root / name.with_name(name.name + suffix) for name in names for suffix in (".pkl", ".npy", ".npz"))
    return next((place for place in places if place.is_file()), None)


def check_landmarks(root: Path | None, sources: Iterable[Source]) -> list[str]:
    """What to note about supplied landmarks.

    Raises:
        ValueError: if there is no such folder, or it has none for any of the files.
    """
    if root is None:
        return []
    sources = list(sources)
    if not root.is_dir():
        raise ValueError(f"landmarks {root}: {'is not a folder' if root.exists() else 'no such folder'}")
    num_without = sum(source.landmarks is None for source in sources)
    if num_without == len(sources):
        raise ValueError(
            f"landmarks {root}: none for any of {num_without} files, such as {sources[0].path}; expected is a tree "
            "like that of the corpus, with .pkl, .npy or .npz in place of .mp4"
        )
    return [f"{num_without} files have no supplied landmarks; their faces are looked for"] if num_without else []


def stable_percent(text: str) -> int:
    """0 to 99, the same on every machine."""
    return zlib.crc32(text.encode()) % 100
