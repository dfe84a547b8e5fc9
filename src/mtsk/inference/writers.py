"""Transcripts as files: plain text, subtitles, tables, JSON; at once or segment by segment."""

from __future__ import annotations

import contextlib
import heapq
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from mtsk.files import write_whole
from mtsk.inference.subtitles import Cue, CueMaker, SubtitleOptions, milliseconds
from mtsk.scale import Scale
from mtsk.types import Segment, Transcript

FORMATS = ("txt", "srt", "vtt", "tsv", "json")
SUBTITLE_FORMATS = ("srt", "vtt")  # those that `SubtitleOptions` are for
SINGLE_FORMATS = ("srt", "vtt", "tsv")  # a document has one transcript; the others hold all scales of a file
_PLAIN = SubtitleOptions()
_ODD = "backslashreplace"  # a file name need not be text (of Linux, any bytes); in JSON its odd bytes become \udcXX


class Writer(Protocol):
    """Takes the segments of a recording as they come."""

    def add(self, segment: Segment) -> None:
        """Takes the next segment."""

    def close(self, transcripts: Sequence[Transcript] = ()) -> None:
        """Writes what has waited, and closes a file that the writer opened.

        Args:
            transcripts: what the segments make up, for JSON; without, JSON takes it from the segments.
        """


def open_writer(
    format_name: str,
    target: Path | TextIO,
    options: SubtitleOptions = _PLAIN,
    *,
    source: str = "",
    words: bool = False,
) -> Writer:
    """A writer for one transcript (JSON: for all of a file), in one of `FORMATS`.

    All but JSON are written and flushed cue by cue, so a file that is cut off is valid as far as it goes. JSON keeps
    the segments in memory, and is written when closed: as a whole file, laid out, or to a stream as one line.

    Args:
        format_name: one of `FORMATS`.
        target: a file, which is opened here (anew) and closed by `close`, its folders made if missing; or a stream,
            which stays open.
        options: the layout of subtitles.
        source: what was transcribed, for JSON.
        words: whether JSON has the words with their times.

    Raises:
        ValueError: for another format.
        OSError: if the file can't be written.
    """
    if format_name not in FORMATS:
        raise ValueError(f"no format {format_name}; there are: {', '.join(FORMATS)}")
    if format_name == "json":
        return _JsonWriter(target, source, words)
    sink = _Sink(target)
    if format_name == "txt":
        return _TxtWriter(sink)
    if format_name == "tsv":
        return _TsvWriter(sink)
    if format_name == "srt":
        return _CueWriter(sink, CueMaker(options, str), _srt_cue)
    sink.write("WEBVTT\n\n")
    return _CueWriter(sink, CueMaker(options, _escape_vtt), _vtt_cue)


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads `txt,srt`; `all` stands for each of `FORMATS`.

    Raises:
        ValueError: naming the formats there are.
    """
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if "all" in names:
        names = FORMATS
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format {', '.join(unknown)}; there are: {', '.join(FORMATS)}, all")
    return tuple(dict.fromkeys(names))


def render(
    format_name: str,
    source: str,
    transcripts: Sequence[Transcript],
    options: SubtitleOptions = _PLAIN,
    *,
    words: bool = False,
) -> str:
    """The transcripts of a source in one of `FORMATS`, to print; JSON is one line, so that several are JSON Lines."""
    stream = io.StringIO()
    names = [str(transcript.scale) for transcript in transcripts]
    outputs = Outputs(stream, source, [format_name], names, options, words=words)
    outputs.add([_segments(transcript) for transcript in transcripts])
    outputs.close(transcripts)
    return stream.getvalue()


def _segments(transcript: Transcript) -> Sequence[Segment]:
    """Those that it has, or all of it as one."""
    whole = Segment(0.0, transcript.duration_s, transcript.text, transcript.scale, transcript.num_tokens)
    return transcript.segments or (whole,)


class Outputs:
    """All that is written of a source while it is read: a document for each format, and for each name where the format
    holds one transcript.

    A document begins with the first segment for it, so of a source that can't be read there is none. A context manager:
    if an error, or the user, ends it, what is written stays, valid as far as it goes; but no JSON.

    Args:
        target: `FILE.<format>`, or of several names `FILE.<name>.<format>`, are written for a path FILE, its folder
            made if missing; or a stream, to print.
        source: what is transcribed, for JSON.
        formats: some of `FORMATS`.
        names: of what was asked for, see `Run.names`; of equal ones the first is written.
        options: the layout of subtitles.
        words: whether JSON has the words with their times.
    """

    def __init__(
        self,
        target: Path | TextIO,
        source: str,
        formats: Sequence[str],
        names: Sequence[str],
        options: SubtitleOptions = _PLAIN,
        *,
        words: bool = False,
    ) -> None:
        self._target, self._source, self._options, self._words = target, source, options, words
        columns = {name: names.index(name) for name in names}
        # Format, and the names whose segments it gets.
        self._documents: list[tuple[str, dict[str, int]]] = []
        for format_name in formats:
            if format_name in SINGLE_FORMATS:
                self._documents += [(format_name, {name: column}) for name, column in columns.items()]
            else:
                self._documents.append((format_name, columns))
        self._are_several = len(columns) > 1
        self._writers: dict[int, Writer] = {}

    def add(self, segments: Sequence[Sequence[Segment]]) -> None:
        """Takes the next segments, for each name.

        Raises:
            OSError: if they can't be written.
        """
        for number, (_, columns) in enumerate(self._documents):
            mine = (segments[column] for column in columns.values())
            for segment in heapq.merge(*mine, key=lambda segment: segment.start_s):
                self._writer(number).add(segment)

    def close(self, transcripts: Sequence[Transcript | None]) -> None:
        """Ends the documents. There is none of a name without a transcript.

        Args:
            transcripts: for each name.

        Raises:
            OSError: if something can't be written.
        """
        for number, (format_name, columns) in enumerate(self._documents):
            chosen = transcripts if format_name == "json" else [transcripts[column] for column in columns.values()]
            there = [transcript for transcript in chosen if transcript is not None]
            if there:
                self._writer(number).close(there)
                del self._writers[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, writer in self._writers.items():
            if self._documents[number][0] != "json":
                with contextlib.suppress(OSError):  # of the two errors the first is told
                    writer.close()
        self._writers = {}

    def _writer(self, number: int) -> Writer:
        if number not in self._writers:
            format_name, columns = self._documents[number]
            target = self._target
            if isinstance(target, Path):
                name = next(iter(columns)) if self._are_several and format_name in SINGLE_FORMATS else None
                target = output_path(target, format_name, name)
            if format_name == "txt" and self._are_several:
                self._writers[number] = _TxtWriter(_Sink(target), tells_scale=True)
            else:
                self._writers[number] = open_writer(
                    format_name, target, self._options, source=self._source, words=self._words
                )
        return self._writers[number]


def output_path(path: Path, format_name: str, name: str | None = None) -> Path:
    """`<path>.<format>`, or of one name among several `<path>.<name>.<format>`."""
    return path.with_name(f"{path.name}.{format_name}" if name is None else f"{path.name}.{name}.{format_name}")


class _Sink:
    """A text file or stream in which all that was written arrives at once."""

    def __init__(self, target: Path | TextIO) -> None:
        self._is_own = isinstance(target, Path)
        if isinstance(target, Path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._stream: TextIO = target.open("w", encoding="utf-8", errors=_ODD, newline="\n")
        else:
            self._stream = target

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        if self._is_own:
            self._stream.close()


class _TxtWriter:
    """A line per segment with a text, and before it the scale if there are several; of a transcript without any text,
    an empty line.
    """

    def __init__(self, sink: _Sink, *, tells_scale: bool = False) -> None:
        self._sink = sink
        self._tells_scale = tells_scale
        self._written: set[Scale] = set()

    def add(self, segment: Segment) -> None:
        if segment.text.strip():
            self._write(segment.scale, _one_line(segment.text))

    def close(self, transcripts: Sequence[Transcript] = ()) -> None:
        for transcript in transcripts:
            if not transcript.text.strip() and transcript.scale not in self._written:
                self._write(transcript.scale, "")
        self._sink.close()

    def _write(self, scale: Scale, text: str) -> None:
        self._written.add(scale)
        self._sink.write(f"{scale}\t{text}\n" if self._tells_scale else f"{text}\n")


class _TsvWriter:
    """A row per segment with a text: start and end in milliseconds, text."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        sink.write("start\tend\ttext\n")

    def add(self, segment: Segment) -> None:
        if segment.text.strip():
            times = f"{milliseconds(segment.start_s)}\t{milliseconds(segment.end_s)}"
            self._sink.write(f"{times}\t{_one_line(segment.text)}\n")

    def close(self, transcripts: Sequence[Transcript] = ()) -> None:  # noqa: ARG002
        self._sink.close()


class _CueWriter:
    """Subtitles."""

    def __init__(self, sink: _Sink, maker: CueMaker, layout: Callable[[int, Cue], str]) -> None:
        self._sink = sink
        self._maker = maker
        self._layout = layout
        self._num_cues = 0

    def add(self, segment: Segment) -> None:
        self._write(self._maker.add(segment))

    def close(self, transcripts: Sequence[Transcript] = ()) -> None:  # noqa: ARG002
        self._write(self._maker.close())
        self._sink.close()

    def _write(self, cues: Sequence[Cue]) -> None:
        for cue in cues:
            self._num_cues += 1
            self._sink.write(self._layout(self._num_cues, cue))


class _JsonWriter:
    """The file and its transcripts, when closed."""

    def __init__(self, target: Path | TextIO, source: str, words: bool) -> None:
        self._target = target
        self._source = source
        self._words = words
        self._segments: list[Segment] = []

    def add(self, segment: Segment) -> None:
        self._segments.append(segment)

    def close(self, transcripts: Sequence[Transcript] = ()) -> None:
        transcripts = transcripts or _joined(self._segments)
        record = {
            "file": self._source,
            "transcripts": [transcript.to_dict(words=self._words) for transcript in transcripts],
        }
        is_file = isinstance(self._target, Path)
        text = json.dumps(record, ensure_ascii=False, indent=2 if is_file else None) + "\n"
        if isinstance(self._target, Path):
            write_whole(self._target, text.encode(errors=_ODD))
        else:
            self._target.write(text)
            self._target.flush()


def _joined(segments: Sequence[Segment]) -> list[Transcript]:
    if not segments:
        return []
    text = " ".join(filter(None, (segment.text for segment in segments)))
    num_tokens = sum(segment.num_tokens for segment in segments)
    return [Transcript(text, segments[0].scale, num_tokens, segments[-1].end_s, {}, segments=tuple(segments))]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escape_vtt(text: str) -> str:
    return html.escape(text, quote=False)


def _srt_cue(number: int, cue: Cue) -> str:
    text = re.sub("-{2,}>", "->", cue.text)  # would be read as times, and SubRip has no escapes
    return f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{text}\n\n"


def _vtt_cue(_: int, cue: Cue) -> str:
    return f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{cue.text}\n\n"


def _clock(time_ms: int, point: str) -> str:
    """Hours have two digits or more."""
    minutes, milliseconds_ = divmod(time_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds_ = divmod(milliseconds_, 1000)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds_:03}"
