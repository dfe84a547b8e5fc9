"""Transcripts as files: plain text and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mtsk.types import Transcript

FORMATS = ("txt", "json")


def to_txt(transcripts: Sequence[Transcript]) -> str:
    """The text alone; for several scales a line each, the scale in front with a tab."""
    if len(transcripts) == 1:
        return f"{transcripts[0].text}\n"
    return "".join(f"{transcript.scale}\t{transcript.text}\n" for transcript in transcripts)


def to_json(name: str, transcripts: Sequence[Transcript], *, indent: int | None = None) -> str:
    """The file and a list of transcripts: text, scale, number of tokens, seconds per stage, warnings.

    Without `indent` it is one line, so that what is printed for several files is JSON Lines.
    """
    record = {"file": name, "transcripts": [transcript.to_dict() for transcript in transcripts]}
    return json.dumps(record, ensure_ascii=False, indent=indent) + "\n"


def render(format_name: str, source: str, transcripts: Sequence[Transcript], *, indent: int | None = None) -> str:
    """The transcripts in one of `FORMATS`; `indent` lays out JSON, and text has no layout."""
    return to_txt(transcripts) if format_name == "txt" else to_json(source, transcripts, indent=indent)


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads `txt,json`.

    Raises:
        ValueError: naming the formats there are.
    """
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format {', '.join(unknown)}; there are: {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(names))


def write(
    folder: Path, name: str, source: Path, transcripts: Sequence[Transcript], formats: Sequence[str]
) -> list[Path]:
    """Writes `<name>.<format>` for each format; returns the paths.

    Args:
        folder: is made if missing.
        name: usually the file name of the source with its suffix, so that `a.mp4` and `a.wav` do not meet.
        source: what was transcribed.
        transcripts: of the source.
        formats: some of `FORMATS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for format_name in formats:
        path = folder / f"{name}.{format_name}"
        # A file name need not be text (of Linux, any bytes); in JSON its odd bytes become \udcXX.
        content = render(format_name, str(source), transcripts, indent=2)
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
        paths.append(path)
    return paths
