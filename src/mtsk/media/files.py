"""Which files are media: the formats that are opened, and their suffixes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FORMATS = {
    "aac": ".aac",
    "ac3": ".ac3",
    "aiff": ".aiff .aif .aifc",
    "amr,amrnb,amrwb": ".amr",
    "asf,asf_o": ".asf .wmv .wma",
    "au": ".au",
    "avi": ".avi",
    "caf": ".caf",
    "eac3": ".eac3",
    "flac": ".flac",
    "flv": ".flv",
    "h264": ".h264 .264",
    "hevc": ".hevc .h265 .265",
    "ivf": ".ivf",
    "jpeg_pipe,png_pipe": "",  # covers within other files
    "m4v": ".m4v",
    "matroska,webm": ".mkv .mka .webm",
    "mov,mp4,m4a,3gp,3g2,mj2": ".mov .mp4 .m4a .m4b .3gp .3g2 .mj2",
    "mp3": ".mp3 .mp2",
    "mpeg": ".mpg .mpeg .vob",
    "mpegts": ".ts .mts .m2ts",
    "mpegvideo": ".m1v .m2v",
    "mxf": ".mxf",
    "ogg": ".ogg .oga .ogv .opus",
    "w64": ".w64",
    "wav": ".wav",
    "wv": ".wv",
}
"""FFmpeg's names of the formats that are allowed -> suffixes of such files. Formats that name other files (playlists)
must not be here."""
MEDIA_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes.split())


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
