"""Subtitle cues from segments: in order, never overlapping, broken into lines as openai-whisper's options say.

Times are sorted out first: the words of a segment get times that grow, within the segment and after all that came
before it. Any grouping of neighbours is then a valid cue. Milliseconds are whole from there on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtsk.types import Segment, Word

MIN_CUE_MS = 20  # no cue is shorter, unless a segment has no room for that
LONG_PAUSE_MS = 3_000  # behind it a new cue begins


@dataclass(frozen=True)
class SubtitleOptions:
    """How subtitles are laid out; without any option a segment is a cue of one line.

    Raises:
        ValueError: for a number below 1, `max_line_count` without `max_line_width`, or `max_words_per_line` with it.
    """

    max_line_width: int | None = None
    """Characters of a line. A longer word has a line of its own."""
    max_line_count: int | None = None
    """Lines of a cue. With it cues fill up across segments, and end at a pause of over 3 s."""
    max_words_per_line: int | None = None
    """Words of a cue."""
    highlight_words: bool = False
    """A cue per word, which is underlined in the text around it."""

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: 1 is the least")
        if self.max_line_count is not None and self.max_line_width is None:
            raise ValueError(f"max_line_count {self.max_line_count} needs max_line_width, which says what a line holds")
        if self.max_words_per_line is not None and self.max_line_width is not None:
            raise ValueError("max_words_per_line and max_line_width exclude each other; give one of them")

    @property
    def needs_words(self) -> bool:
        """Whether words without times change the result: then a segment stays one cue, and is broken into lines at
        most."""
        return self.max_line_count is not None or self.max_words_per_line is not None or self.highlight_words

    @property
    def crosses_segments(self) -> bool:
        """Whether a cue may hold words of several segments."""
        return self.max_line_count is not None


@dataclass(frozen=True)
class Cue:
    """What is shown from a start to an end."""

    start_ms: int
    end_ms: int
    text: str  # lines, none of them blank


@dataclass(frozen=True)
class _Piece:
    """A word with the punctuation around it."""

    text: str
    start_ms: int
    end_ms: int
    spaced: bool  # a space stands before it, unless it begins a line


class CueMaker:
    """Turns segments, as they come, into cues.

    Args:
        options: the layout.
        escape: makes a word safe for the format; markup is put around the result.
    """

    def __init__(self, options: SubtitleOptions, escape: Callable[[str], str]) -> None:
        self._options = options
        self._escape = escape
        self._lines: list[list[_Piece]] = []  # of the cue that may still grow
        self._width = 0  # of its last line
        self._end_ms = 0  # of all that was added

    def add(self, segment: Segment) -> list[Cue]:
        """The cues that became complete. With `max_line_count` the last one waits for more, or for `close`."""
        text = " ".join(segment.text.split())
        if not text:
            return []
        pieces = _timed_pieces(segment, text, self._end_ms)
        if pieces is None:
            ((start_ms, end_ms),) = _in_order([(segment.start_s, segment.end_s)], segment, self._end_ms)
            self._end_ms = end_ms
            return [*self.close(), Cue(start_ms, end_ms, self._broken(text))]
        cues = []
        for piece in pieces:
            if self._is_full(piece):
                cues += self.close()
            self._append(piece)
        if not self._options.crosses_segments:
            cues += self.close()
        return cues

    def close(self) -> list[Cue]:
        """The cue that has waited, if any."""
        pieces = list(itertools.chain.from_iterable(self._lines))
        if not pieces:
            return []
        cues = self._highlighted(pieces) if self._options.highlight_words else [self._cue(pieces[0], pieces[-1])]
        self._lines = []
        return cues

    def _fits(self, piece: _Piece) -> bool:
        limit = self._options.max_line_width
        return limit is None or self._width + piece.spaced + len(piece.text) <= limit

    def _is_full(self, piece: _Piece) -> bool:
        """Whether the piece belongs to a new cue."""
        if not self._lines:
            return False
        options = self._options
        if options.crosses_segments and piece.start_ms - self._end_ms > LONG_PAUSE_MS:
            return True
        if options.max_words_per_line is not None:
            return len(self._lines[-1]) >= options.max_words_per_line
        if options.max_line_count is not None:
            return len(self._lines) >= options.max_line_count and not self._fits(piece)
        return False

    def _append(self, piece: _Piece) -> None:
        if self._lines and self._fits(piece):
            self._lines[-1].append(piece)
            self._width += piece.spaced + len(piece.text)
        else:
            self._lines.append([piece])
            self._width = len(piece.text)
        self._end_ms = piece.end_ms

    def _broken(self, text: str) -> str:
        """Lines of a text whose words have no times."""
        lines: list[str] = []
        for word in text.split(" "):
            if lines and len(lines[-1]) + 1 + len(word) <= (self._options.max_line_width or len(text)):
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return self._escape("\n".join(lines))

    def _highlighted(self, pieces: Sequence[_Piece]) -> list[Cue]:
        """A cue per word, and between two words one without highlight, so that the text stays on the screen."""
        cues = []
        for piece, following in itertools.pairwise([*pieces, None]):
            assert piece is not None
            gap_ms = 0 if following is None else following.start_ms - piece.end_ms
            if following is None or gap_ms >= MIN_CUE_MS:
                cues.append(self._cue(piece, piece, piece))
            else:
                cues.append(Cue(piece.start_ms, following.start_ms, self._text(piece)))
            if gap_ms >= MIN_CUE_MS:
                cues.append(Cue(piece.end_ms, piece.end_ms + gap_ms, self._text()))
        return cues

    def _cue(self, first: _Piece, last: _Piece, marked: _Piece | None = None) -> Cue:
        return Cue(first.start_ms, last.end_ms, self._text(marked))

    def _text(self, marked: _Piece | None = None) -> str:
        lines = []
        for line in self._lines:
            words = ""
            for piece in line:
                word = self._escape(piece.text)
                words += " " * (piece.spaced and bool(words)) + (f"<u>{word}</u>" if piece is marked else word)
            lines.append(words)
        return "\n".join(lines)


def milliseconds(time_s: float) -> int:
    """Whole ones, from the start of the recording."""
    return max(0, round(1000 * time_s))


def _timed_pieces(segment: Segment, text: str, after_ms: int) -> list[_Piece] | None:
    """The text cut into its words, with their times; None if the words are not those of the text, or there are none.

    The text is what counts: what stands between two words, such as punctuation that was not aligned, goes with the one
    that it touches.
    """
    words = [word for word in segment.words if word.text.strip()]
    cuts = _word_starts(text, words)
    if not cuts:
        return None
    times = _in_order([(word.start_s, word.end_s) for word in words], segment, after_ms)
    return [
        _Piece(text[start:end].strip(), start_ms, end_ms, spaced=start == 0 or text[start - 1] == " ")
        for (start, end), (start_ms, end_ms) in zip(itertools.pairwise([*cuts, len(text)]), times, strict=True)
    ]


def _word_starts(text: str, words: Sequence[Word]) -> list[int]:
    starts: list[int] = []
    position = 0
    for word in words:
        plain = " ".join(word.text.split())
        found = text.find(plain, position)
        if found < 0:
            return []
        # An opening quotation mark belongs to the word that it opens.
        space = text.rfind(" ", position, found)
        starts.append(0 if not starts else found if space < 0 else space + 1)
        position = found + len(plain)
    return starts


def _in_order(times_s: Sequence[tuple[float, float]], segment: Segment, after_ms: int) -> list[tuple[int, int]]:
    """Start and end of each, moved as little as needed: none begins before its forerunner ends, all lie in the segment
    and behind `after_ms`, and each lasts `MIN_CUE_MS`. Where the segment is too short, they share it; where nothing is
    left of it, they follow it.
    """
    low, high = max(after_ms, milliseconds(segment.start_s)), milliseconds(segment.end_s)
    num = len(times_s)
    least = min(MIN_CUE_MS, (high - low) // num) if high - low >= num else MIN_CUE_MS
    high = max(high, low + num * least)
    placed = []
    for index, (start_s, end_s) in enumerate(times_s):
        latest = high - (num - index) * least  # so that those behind find room
        start = min(max(low, milliseconds(start_s)), latest)
        low = min(max(start + least, milliseconds(end_s)), latest + least)
        placed.append((start, low))
    return placed
