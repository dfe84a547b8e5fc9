"""VoxCeleb2 (arXiv:1806.05622): interviews without text. What is said comes in a table, made by any recogniser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mtsk.data.corpora import (
    Corpus,
    Piece,
    Source,
    check_landmarks,
    read_text,
    read_tsv,
    supplied_landmarks,
)
from mtsk.data.corpora.text import plain_text

_EXPECTED = (
    "such as dev/mp4/id00012/21Uxsk56VDQ/00001.mp4, or dev/id00012/21Uxsk56VDQ/00001 as in lists of English clips"
)


def list_sources(src: Path, table: Path, *, only: Path | None = None, landmarks: Path | None = None) -> Corpus:
    """The clips of a table. All are `train`; the talker is the folder `<id>`.

    Clips lie at `{dev,test}/mp4/<id>/<video>/<n>.mp4`. Where a clip has no sound, that of
    `{dev,test}/aac/<id>/<video>/<n>.m4a` (or .wav) is taken.

    Args:
        src: the folder of the corpus.
        table: tab-separated, with a header and the columns `file` and `transcript`, optionally `start` and `end` in
            seconds: then a clip may have several rows, one for each of its pieces, and is cut there. A row without
            text is left out.
        only: a file with the names of clips, one a line, that are kept, such as a list of those in English.
        landmarks: a folder of 68 landmarks a frame, a tree like the corpus, with the folder `mp4` or without.

    Raises:
        ValueError: if the table or the list is not valid, or nothing is left.
    """
    kept = None if only is None else {_clip(line, only, number) for number, line in _lines(only)}
    pieces: dict[str, list[Piece]] = {}
    num_left_out = num_silent = 0
    for number, row in enumerate(read_tsv(table, ("file", "transcript")), start=2):
        clip = _clip(row["file"], table, number)
        text = plain_text(row["transcript"])
        if kept is not None and clip not in kept:
            num_left_out += 1
        elif not text:
            num_silent += 1
        else:
            members = pieces.setdefault(clip, [])
            members.append(_piece(text, row, len(members), f"{table}, line {number}"))
    if not pieces:
        raise ValueError(f"{table} lists no clips with text{'' if only is None else f' that are in {only}'}")
    twice = [clip for clip, members in pieces.items() if sum(not piece.suffix for piece in members) > 1]
    if twice:
        raise ValueError(f"{table} has several rows without start and end for {len(twice)} clips, e.g. {twice[0]}")
    sources = tuple(_source(src, clip, members, landmarks) for clip, members in pieces.items())
    notes = [f"{num_left_out} rows are of clips that {only} does not name"] if num_left_out else []
    notes += [f"{num_silent} rows have no text and were left out"] if num_silent else []
    return Corpus(sources, (*notes, *check_landmarks(landmarks, sources)), "vox2_")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.split()[0]


def _clip(name: str, path: Path, line: int) -> str:
    """`<part>/<id>/<video>/<n>`, whichever way it is written."""
    parts = PurePosixPath(name).with_suffix("").parts if name else ()
    if len(parts) == 5 and parts[1] == "mp4":
        parts = (parts[0], *parts[2:])
    if len(parts) != 4 or ".." in parts or parts[0] not in ("dev", "test"):
        raise ValueError(f"{path}, line {line}: {name!r} is no clip of VoxCeleb2; expected are names {_EXPECTED}")
    return "/".join(parts)


def _piece(text: str, row: dict[str, str], number: int, where: str) -> Piece:
    try:
        start_s, end_s = float(row.get("start") or 0), float(row.get("end") or math.inf)
    except ValueError:
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s:
        raise ValueError(
            f"{where}: a piece from {row.get('start')!r} to {row.get('end')!r} s; expected 0 <= start < end"
        )
    whole = start_s == 0 and end_s == math.inf
    return Piece(text, (), start_s, end_s, "" if whole else f"_{number:02d}")


def _source(src: Path, clip: str, pieces: list[Piece], landmarks: Path | None) -> Source:
    part, talker, video, number = clip.split("/")
    path = src / part / "mp4" / talker / video / f"{number}.mp4"
    sounds = (src / part / "aac" / talker / video / f"{number}{suffix}" for suffix in (".m4a", ".wav"))
    return Source(
        f"vox2_{part}_{talker}_{video}_{number}",
        path,
        speaker=talker,
        pieces=tuple(pieces),
        sound=next((sound for sound in sounds if sound.is_file()), None),
        landmarks=supplied_landmarks(
            landmarks, Path(part, talker, video, number), Path(part, "mp4", talker, video, number)
        ),
    )
