"""Small strict readers of subtitles, and segments to write."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mtsk.scale import Scale
from mtsk.types import Segment, Word

_CLOCK = r"(\d{2,}):([0-5]\d):([0-5]\d)POINT(\d{3})"
_SRT_TIMES = re.compile(f"{_CLOCK} --> {_CLOCK}".replace("POINT", ","))
_VTT_TIMES = re.compile(f"{_CLOCK} --> {_CLOCK}".replace("POINT", "[.]"))


@dataclass(frozen=True)
class Shown:
    """A cue that was read back."""

    start_ms: int
    end_ms: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def read_srt(content: str) -> list[Shown]:
    """Cues of SubRip, numbered from 1; a blank line ends each."""
    shown = []
    for number, block in enumerate(_blocks(content), start=1):
        assert block[0] == str(number)
        shown.append(_shown(_SRT_TIMES, block[1:]))
    return shown


def read_vtt(content: str) -> list[Shown]:
    """Cues of WebVTT, as written: `plain` takes escapes and tags away."""
    assert content.startswith("WEBVTT\n\n")
    shown = [_shown(_VTT_TIMES, block) for block in _blocks(content.removeprefix("WEBVTT\n\n"))]
    for cue in shown:
        without_tags = re.sub("</?u>", "", cue.text)
        assert not re.search("[<>]", without_tags), cue
        assert not re.search("&(?!amp;|lt;|gt;)", without_tags), cue
    return shown


def plain(vtt_text: str) -> str:
    """What a viewer reads of a WebVTT text."""
    return html.unescape(re.sub("</?u>", "", vtt_text))


def scale() -> Scale:
    return Scale(4)


def timed(text: str, *times_s: float, start_s: float | None = None, end_s: float | None = None) -> Segment:
    """A segment whose words have these times: start and end of each, in turn."""
    words = tuple(
        Word(word, start, end) for word, start, end in zip(text.split(), times_s[::2], times_s[1::2], strict=True)
    )
    first = words[0].start_s if start_s is None else start_s
    last = words[-1].end_s if end_s is None else end_s
    return Segment(first, last, text, scale(), 10, words, confidence=0.5)


def untimed(text: str, start_s: float, end_s: float) -> Segment:
    """A segment without word times."""
    return Segment(start_s, end_s, text, scale(), 10)


def _blocks(content: str) -> Sequence[list[str]]:
    if not content:
        return []
    assert content.endswith("\n\n")
    return [block.split("\n") for block in content.removesuffix("\n\n").split("\n\n")]


def _shown(times: re.Pattern[str], block: list[str]) -> Shown:
    match = times.fullmatch(block[0])
    assert match is not None, block
    parts = [int(part) for part in match.groups()]
    start_ms, end_ms = (((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (parts[:4], parts[4:]))
    assert len(block) > 1, "a cue without text"
    for line in block[1:]:
        assert line.strip()
        assert len(line.splitlines()) == 1, line  # no reader takes it for two
        assert "-->" not in line
    return Shown(start_ms, end_ms, block[1:])
