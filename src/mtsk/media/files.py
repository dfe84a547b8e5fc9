"""Which files of a folder are media."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MEDIA_SUFFIXES = frozenset(
    ".mp4 .mpg .mpeg .avi .mov .mkv .webm .m4v .ts .wav .flac .mp3 .m4a .ogg .opus .aac".split()  # noqa: SIM905
)


def expand(paths: Iterable[Path]) -> list[Path]:
    """The paths, with every folder replaced by the media files below it, sorted.

    Raises:
        ValueError: if a folder holds no media file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA_SUFFIXES and p.is_file())
        if not found:
            raise ValueError(f"{path}: a folder without media files ({' '.join(sorted(MEDIA_SUFFIXES))})")
        files += found
    return files
