"""`mtsk transcribe`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import mtsk
from mtsk.inference.writers import FORMATS, parse_formats, write
from mtsk.media.files import expand
from mtsk.types import Transcript


def run(
    files: Sequence[Path], scales: Sequence[str], output_dir: Path | None, formats: str, model: str, face: int
) -> int:
    """Transcribes each file; one that fails is told on stderr, and the others go on. Returns the exit code.

    Raises:
        ValueError: if nothing can be done at all: no files, an unknown model, scale or format.
    """
    if not files:
        raise ValueError("which files? mtsk transcribe FILE...")
    chosen = parse_formats(formats)
    engine = mtsk.load(model)
    engine.grid.select([name for name in scales if name not in ("all", "best")])
    num_failed = 0
    sources = _expand(files)
    for number, source in enumerate(sources, start=1):
        if len(sources) > 1:
            print(f"[{number}/{len(sources)}] {source}", file=sys.stderr)
        try:
            if isinstance(source, ValueError):
                raise source
            transcripts = engine.transcribe_scales(source, scales, face=face)
            if output_dir is not None:
                write(output_dir, source, transcripts, chosen or ("txt",))
        except (ValueError, OSError) as error:
            num_failed += 1
            print(f"mtsk: error: {error}", file=sys.stderr)
            continue
        for warning in dict.fromkeys(warning for transcript in transcripts for warning in transcript.warnings):
            print(f"mtsk: {source}: {warning}", file=sys.stderr)
        if chosen and output_dir is None:
            print("".join(FORMATS[name](str(source), transcripts) for name in chosen), end="", flush=True)
        else:
            _print_table(transcripts)
    return 1 if num_failed else 0


def _expand(files: Sequence[Path]) -> list[Path | ValueError]:
    """Files and the media of folders; a folder without any is kept as its error, so that the others go on."""
    sources: list[Path | ValueError] = []
    for path in files:
        try:
            sources += expand([path])
        except ValueError as error:
            sources.append(error)
    return sources


def _print_table(transcripts: Sequence[Transcript]) -> None:
    for transcript in transcripts:
        milliseconds = 1000 * (transcript.seconds["encode"] + transcript.seconds["decode"])
        cells = f"{transcript.scale!s:<7} {transcript.num_tokens:4d} tokens  {milliseconds:5.0f} ms"
        print(f"{cells}  {transcript.text}", flush=True)
