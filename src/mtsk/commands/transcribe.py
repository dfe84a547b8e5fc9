"""`mtsk transcribe`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mtsk
from mtsk.commands import describe
from mtsk.commands.policies import Wish
from mtsk.commands.progress import progress
from mtsk.device import dtype_of
from mtsk.inference.beam import Beams
from mtsk.inference.engine import Engine
from mtsk.inference.recording import Run
from mtsk.inference.subtitles import SubtitleOptions
from mtsk.inference.writers import SINGLE_FORMATS, SUBTITLE_FORMATS, Outputs, parse_formats
from mtsk.media.files import MEDIA_SUFFIXES, expand
from mtsk.scale import Scale
from mtsk.types import Transcript

_HARDLY = 0.02  # confidence by sound: 38 of 40 utterances of free speech are below where the default model reads them
_NOT_GRID = (
    f"the text does not fit what is heard: the default model, {mtsk.DEFAULT_MODEL}, knows GRID's commands alone; for "
    "free English add --model english --beams 4"
)
_WORDS = ("all", "best")  # instead of a scale


def run(
    files: Sequence[Path],
    scales: Sequence[str],
    output_dir: Path | None,
    formats: str,
    model: str,
    face: int,
    *,
    subtitles: SubtitleOptions,
    word_timestamps: bool,
    search: Beams,
    precision: str,
    wish: Wish,
    vad: bool = True,
) -> int:
    """Transcribes each file, and writes what is said while it is read; one that fails is told on stderr, and the others
    go on. Returns the exit code.

    Raises:
        ValueError: if nothing can be done at all: no files, an unknown model, scale or format, or what was asked for
            can't be printed.
        OSError: if nothing can be written to `output_dir`.
    """
    files, scales = _take_files(files, scales)
    if not files:
        raise ValueError("no files given; mtsk transcribe FILE... takes sound and video files, and folders of them")
    if face < 0:
        raise ValueError(f"--face {face}: faces count from 0 (the largest)")
    chosen = parse_formats(formats)
    if wish and list(scales) != ["best"]:
        raise ValueError("--scale and a policy or budget given; one of them is allowed")
    named = _check_scales(scales)
    sources = _expand(files)
    _require_used(chosen, subtitles, {"--word-timestamps": word_timestamps, "--num-best": search.num_best > 1})
    if output_dir is None:
        _require_printable(chosen, num_files=len(sources), scales=scales)
    else:
        _require_writable(output_dir)
    engine = mtsk.load(model, dtype=dtype_of(precision))
    engine.grid.select(named)
    if word_timestamps or subtitles.needs_words:
        _warn_without_words(engine, model)
    policy = wish.policy_of(engine, model) if wish else None
    names = _output_names([source for source in sources if isinstance(source, Path)])

    def transcribe(source: Path) -> list[Transcript]:
        opened = engine.open(
            source, None if wish else scales, policy=policy, face=face, beams=search.width, num_best=search.num_best,
            speech_only=None if vad else False,
        )  # fmt: skip
        target = sys.stdout if output_dir is None else output_dir / names[source]
        wanted = chosen if output_dir is None else chosen or ("txt",)
        outputs = Outputs(target, str(source), wanted, opened.names, subtitles, words=word_timestamps)
        transcripts = _read(source, opened, outputs, prints_text=bool(chosen) and output_dir is None)
        if model == mtsk.DEFAULT_MODEL and _fits_hardly(transcripts):
            print(f"mtsk: warning: {source}: {_NOT_GRID}", file=sys.stderr)
        return transcripts

    return _read_all(sources, transcribe, prints_table=output_dir is not None or not chosen)


def _read_all(
    sources: Sequence[Path | ValueError], transcribe: Callable[[Path], list[Transcript]], *, prints_table: bool
) -> int:
    """Returns the exit code."""
    num_failed = 0
    for source in sources:
        try:
            if isinstance(source, ValueError):
                raise source
            transcripts = transcribe(source)
        except BrokenPipeError:  # nobody reads what is printed
            raise
        except (ValueError, OSError) as error:
            num_failed += 1
            print(f"mtsk: error: {describe(error)}", file=sys.stderr)
            continue
        for warning in dict.fromkeys(warning for transcript in transcripts for warning in transcript.warnings):
            print(f"mtsk: warning: {source}: {warning}", file=sys.stderr)
        if prints_table:
            _print_table(transcripts, title=str(source) if len(sources) > 1 else None)
    return 1 if num_failed else 0


def _read(source: Path, run: Run, outputs: Outputs, *, prints_text: bool) -> list[Transcript]:
    """Reads a file to its end, and writes each segment as it comes."""
    # Text that appears on the same screen tells enough of the progress, and a bar would be in its way.
    shown = progress(source.name, run.declared_s, is_wanted=not (prints_text and sys.stdout.isatty()))
    with contextlib.closing(run), shown as tell, outputs:
        with contextlib.closing(run.read(growing=True)) as read:
            for written in read:
                outputs.add(written.segments)
                tell(written.until_s)
        transcripts = run.transcripts()
        outputs.close(transcripts)
    return [transcript for transcript in transcripts if transcript is not None]


def _fits_hardly(transcripts: Sequence[Transcript]) -> bool:
    """Whether the character heads find the text unlikely for most of the time that was read by sound."""
    segments = [segment for transcript in transcripts for segment in transcript.segments]
    heard = [segment for segment in segments if segment.confidence is not None and segment.scale.audio]
    unlikely_s = sum(each.end_s - each.start_s for each in heard if (each.confidence or 0.0) < _HARDLY)
    return unlikely_s > sum(each.end_s - each.start_s for each in heard) / 2


def _warn_without_words(engine: Engine, model: str) -> None:
    if not engine.model.ctc_heads():
        print(f"mtsk: warning: {model}: this model has no character heads, so words have no times", file=sys.stderr)


def _take_files(files: Sequence[Path], scales: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files that were written behind `--scale a4`: the option takes all that follows it."""
    taken = [name for name in scales if _is_file_name(name)]
    return [*files, *map(Path, taken)], [name for name in scales if name not in taken]


def _is_file_name(text: str) -> bool:
    if text in _WORDS:
        return False
    try:
        Scale.parse(text)
    except ValueError:
        return os.sep in text or Path(text).suffix.lower() in MEDIA_SUFFIXES or Path(text).exists()
    return False


def _check_scales(scales: Sequence[str]) -> list[str]:
    """The names of single scales. Before anything is loaded: a typing error is told at once."""
    if not scales:
        raise ValueError("--scale without a scale; give some such as a4v2, a16 or v5, or `all`, or `best`")
    named = [name for name in scales if name not in _WORDS]
    for name in named:
        Scale.parse(name)
    return named


def _require_used(formats: Sequence[str], subtitles: SubtitleOptions, for_json: Mapping[str, bool]) -> None:
    """Options of formats that are not written would do nothing."""
    if subtitles != SubtitleOptions() and not set(formats) & set(SUBTITLE_FORMATS):
        raise ValueError("the layout of subtitles (lines, words, highlights) is for srt and vtt; add -f srt or -f vtt")
    for option, is_given in for_json.items():
        if is_given and "json" not in formats:
            raise ValueError(f"{option} is for json; add -f json")


def _require_printable(formats: Sequence[str], num_files: int, scales: Sequence[str]) -> None:
    """Subtitles and tables have a head, and numbers or times that begin anew: one behind another can't be read."""
    single = [name for name in formats if name in SINGLE_FORMATS]
    if single and (len(formats) > 1 or num_files > 1 or len(scales) > 1 or "all" in scales):
        raise ValueError(
            f"{single[0]} is printed alone, of one file at one scale; for more, write files: -f {','.join(formats)} "
            "-o FOLDER"
        )


def _require_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: nothing can be written to this folder")


def _expand(files: Sequence[Path]) -> list[Path | ValueError]:
    """Files and the media of folders; a folder without any is kept as its error, so that the others go on."""
    sources: list[Path | ValueError] = []
    for path in files:
        try:
            sources += expand([path])
        except ValueError as error:
            sources.append(error)
    return sources


def _output_names(sources: Sequence[Path]) -> Mapping[Path, str]:
    """What the files written for each source are called: its name, with as many of its folders as tell all apart."""
    absolute = {source: source.absolute() for source in sources}
    num_files = len(set(absolute.values()))
    for num_parts in range(1, max((len(path.parts) for path in absolute.values()), default=0) + 1):
        names = {source: "_".join(path.parts[-num_parts:]).lstrip("/_") for source, path in absolute.items()}
        if len(set(names.values())) == num_files:
            return names
    return {source: source.name for source in sources}


def _print_table(transcripts: Sequence[Transcript], title: str | None) -> None:
    indent = ""
    if title is not None:
        indent = "  "
        print(title)
    for transcript in transcripts:
        milliseconds = 1000 * (transcript.seconds["encode"] + transcript.seconds["decode"])
        cells = f"{transcript.scale!s:<7} {transcript.num_tokens:4d} tokens  {milliseconds:5.0f} ms"
        if transcript.flops is not None:
            cells += f"  {transcript.flops / 1e12:.3f} TFLOPs"
        print(f"{indent}{cells}  {transcript.text}", flush=True)
