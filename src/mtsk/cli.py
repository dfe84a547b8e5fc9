"""The command `mtsk`: one verb per room. Heavy imports happen inside the verbs, so that help is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from mtsk import DEFAULT_MODEL, __version__

_OutDir = Annotated[Path | None, arg(aliases=["-o"])]


def transcribe(
    files: Positional[tuple[Path, ...]],
    /,
    scale: tuple[str, ...] = ("best",),
    output_dir: _OutDir = None,
    formats: Annotated[str, arg(aliases=["-f"])] = "",
    model: str = DEFAULT_MODEL,
    face: int = 0,
) -> int:
    """Write what is said in media files or folders of them: for each scale its name, tokens, milliseconds and text.

    Args:
        files: sound or video files, or folders.
        scale: compression rates, such as a4v2, 4,2, a16 or v5; `all` for every one that the file allows; `best`.
        output_dir: also write a file per input and format here.
        formats: txt,json; without a folder, printed instead of the table.
        model: name of a model of this package, or a checkpoint folder.
        face: which face to read, by size, 0 the largest.
    """
    from mtsk.commands.transcribe import run

    return run(files, scale, output_dir, formats, model, face)


def prepare(
    corpus: Positional[Literal["grid", "folder", "noise"]],
    source: Positional[Path],
    target: Positional[Path],
    /,
    split: str = "train",
    table: Path | None = None,
    workers: int = 2,
    sheets: int = 12,
    face: int = 0,
    lips: bool = True,
) -> int:
    """Read a corpus once into a folder for training and evaluation: sound, mouth crops and lists. Resumable.

    Args:
        corpus: `grid`; `folder` of media files beside .txt or a .tsv (file, transcript); `noise`: speech for babble.
        source: where the corpus is.
        target: the prepared folder; several corpora may share it.
        split: for `folder`, where the table does not say.
        table: for `folder`, the .tsv if it is not the only one in SOURCE.
        workers: processes.
        sheets: contact sheets (PNG) of the mouth crops, for so many utterances.
        face: which face to read, by size, 0 the largest.
        lips: look for mouths; --no-lips for sound alone.
    """
    from mtsk.commands.prepare import run

    return run(corpus, source, target, split=split, table=table, workers=workers, sheets=sheets, face=face, lips=lips)


def train(
    recipe: Positional[str] = "",
    /,
    data: Path | None = None,
    output_dir: _OutDir = None,
    resume: bool = False,
    seed: int | None = None,
    list: bool = False,
) -> int:
    """Train a model by a named recipe, or by a JSON file of a configuration. Writes OUTPUT_DIR/model at the end.

    Args:
        recipe: a name (--list shows them), or a .json file.
        data: a folder from `mtsk prepare`, with the splits train and dev.
        output_dir: the run's folder.
        resume: go on where the run in the folder stopped.
        seed: instead of the recipe's.
        list: show the recipes.
    """
    from mtsk.commands.train import list_recipes, run

    return list_recipes() if list else run(recipe, data, output_dir, resume, seed)


def evaluate(
    data: Path,
    output_dir: Annotated[Path, arg(aliases=["-o"])],
    model: str = DEFAULT_MODEL,
    split: str = "test",
    scale: tuple[str, ...] = ("all",),
    snr: str = "clean",
    peer: tuple[Literal["whisper-base"], ...] = (),
    batch: int = 10,
) -> int:
    """Word error rates with 95 % intervals, by scale and noise: table, wer.json, wer.csv, wer.png, hypotheses.jsonl.

    Args:
        data: a folder from `mtsk prepare`.
        output_dir: where the results go.
        model: name of a model of this package, or a checkpoint folder.
        split: which part of the data.
        scale: scales, or `all`.
        snr: babble at these ratios in dB, such as clean,5,0,-5; needs `mtsk prepare noise`.
        peer: other systems to measure on the same utterances.
        batch: utterances at a time.
    """
    from mtsk.commands.evaluate import run

    return run(data, output_dir, model, split, scale, snr, peer, batch)


def info(model: Positional[str] = DEFAULT_MODEL, /) -> int:
    """Show what a model is: scales, tokens per second, base weights, size, training.

    Args:
        model: name of a model of this package, or a checkpoint folder.
    """
    from mtsk.commands.info import run

    return run(model)


VERBS: dict[str, Callable[..., int]] = {
    "transcribe": transcribe,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "info": info,
}


def main() -> None:
    """Runs the command; errors that a user can mend are one line on stderr and exit code 1."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        print(f"mtsk {__version__}")
        return
    description = f"mtsk {__version__}: elastic audio-visual speech recognition."
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="mtsk", description=description, args=arguments or ["--help"], config=(OmitArgPrefixes,)
        )
    except (ValueError, OSError) as error:
        print(f"mtsk: error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("mtsk: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
