"""Transcripts as files: plain text and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mtsk.types import Transcript


def to_txt(name: str, transcripts: Sequence[Transcript]) -> str:
    """One line per scale, the text alone."""
    del name
    return "".join(f"{transcript.text}\n" for transcript in transcripts)


def to_json(name: str, transcripts: Sequence[Transcript]) -> str:
    """The file and a list of transcripts: text, scale, number of tokens, seconds per stage, warnings."""
    record = {"file": name, "transcripts": [transcript.to_dict() for transcript in transcripts]}
    return json.dumps(record, ensure_ascii=False, indent=2) + "\n"


FORMATS: dict[str, Callable[[str, Sequence[Transcript]], str]] = {"txt": to_txt, "json": to_json}


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads `txt,json`.

    Raises:
        ValueError: naming the formats there are.
    """
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format {', '.join(unknown)}; there are: {', '.join(FORMATS)}")
    return names


def write(folder: Path, source: Path, transcripts: Sequence[Transcript], formats: Sequence[str]) -> list[Path]:
    """Writes `<file name>.<format>` for each format; returns the paths. The suffix of the source stays in the name, so
    that `a.mp4` and `a.wav` do not meet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in formats:
        path = folder / f"{source.name}.{name}"
        path.write_text(FORMATS[name](str(source), transcripts), encoding="utf-8")
        paths.append(path)
    return paths
