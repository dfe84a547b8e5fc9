"""What a corpus offers: the utterances of a source tree, each with its media file, text, split and talker."""

from __future__ import annotations

import csv
import io
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtsk.media.files import MEDIA_SUFFIXES
from mtsk.types import Word


@dataclass(frozen=True)
class Source:
    """One utterance before its preparation."""

    id: str
    path: Path
    text: str
    words: tuple[Word, ...] = ()
    split: str = "train"
    speaker: str = ""
    refusal: str = ""
    """Why it can't be used, if that is known without its media file."""


@dataclass(frozen=True)
class Corpus:
    """The utterances of a source tree."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    """What a reader of results has to know, e.g. that the split was made here."""

    def __post_init__(self) -> None:
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


def read_tsv(path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a header line.

    Raises:
        ValueError: naming the columns that are missing, or a row of another width; or the table is not in UTF-8.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = reader.fieldnames or []
    missing = [column for column in required if column not in columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(columns)} (tab-separated, with a header)")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {reader.line_num}: expected {len(columns)} tab-separated columns")
        rows.append({str(column): value.strip() for column, value in row.items()})
    return rows


def stable_percent(text: str) -> int:
    """0 to 99, the same on every machine."""
    return zlib.crc32(text.encode()) % 100
