"""More verbs for `mtsk.cli`: measuring, serving and showing. Heavy imports happen inside, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mtsk import DEFAULT_MODEL
from mtsk.serving.settings import Settings


def calibrate(
    model: Annotated[Positional[str], arg(metavar="MODEL")] = DEFAULT_MODEL,
    /,
    *,
    data: Annotated[Path, arg(metavar="FOLDER")],
    split: Annotated[str, arg(metavar="NAME")] = "dev",
    snr: Annotated[str, arg(metavar="dB,...")] = "clean,5,0,-5",
    noises: int = 3,
    share: float = 0.6,
    output_dir: Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="")] = None,
    batch: int = 10,
) -> int:
    """Choose what `--policy auto` does, and store it in the checkpoint: which scales for sound of which quality, and
    how sure a text must be to stay, so that errors are fewest at a share of the finest scale's operations.

    Args:
        model: name of a model of this package, or a checkpoint folder; its config.json is written.
        data: a folder from `mtsk prepare`.
        split: development set; those for evaluation are refused.
        snr: babble of training at these signal-to-noise ratios; needs `mtsk prepare noise`.
        noises: how many different noises each utterance is heard in, at each ratio.
        share: of the finest scale's operations, at most.
        output_dir: also write trials.json here, what every scale gave.
        batch: utterances at a time.
    """
    from mtsk.commands.calibrate import run

    return run(model, data, split, snr, output_dir, noises=noises, share=share, batch=batch)


def bench(
    model: Annotated[Positional[str], arg(metavar="MODEL")] = DEFAULT_MODEL,
    /,
    *,
    calibrate: Annotated[bool, arg(help_behavior_hint="")] = False,
) -> int:
    """Measure this machine.

    Args:
        model: name of a model of this package, or a checkpoint folder.
        calibrate: time the stages of the model, for `mtsk transcribe --budget-ms`.
    """
    from mtsk.commands.bench import run

    return run(model, calibrate=calibrate)


def serve(
    model: Annotated[Positional[str], arg(metavar="MODEL")] = DEFAULT_MODEL,
    /,
    *,
    settings: Annotated[Settings, arg(name="")] = Settings(),  # noqa: B008  (frozen)
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
) -> int:
    """Serve transcriptions over HTTP, by OpenAI's API, and a page that records. Needs the extra `serve`. What is as
    by default here is taken from the environment: MTSK_PORT is for --port, and so on.

    Args:
        model: name of a model of this package, or a checkpoint folder.
        precision: of the weights; int8 is for the language model alone, and for processors.
    """
    from mtsk.commands.serve import run

    return run(model, settings, precision=precision)


def info(
    model: Annotated[Positional[str], arg(metavar="MODEL")] = DEFAULT_MODEL,
    /,
    duration: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None,
) -> int:
    """Show what a model is: scales, tokens per second, base weights, size, training; and what its scales cost.

    Args:
        model: name of a model of this package, a checkpoint folder, or a recipe.
        duration: also show tokens, FLOPs and bytes of each stage for a recording of so many seconds.
    """
    from mtsk.commands.info import run

    return run(model, duration)
