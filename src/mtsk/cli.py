"""The command `mtsk`: one verb per room. Heavy imports happen inside the verbs, so that help is instant."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from mtsk import DEFAULT_MODEL, __version__
from mtsk.commands.verbs import bench, calibrate, info, serve

_INTERRUPTED, _PIPE_CLOSED = 128 + 2, 128 + 13  # as shells call what SIGINT and SIGPIPE ended

_OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
_OptionalOutDir = Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="")]
_Base = Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")]
_Scales = Annotated[tuple[str, ...], arg(metavar="SCALE...")]
_Model = Annotated[str, arg(metavar="MODEL")]
_Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
_Flag = Annotated[bool, arg(help_behavior_hint="")]
_Limit = Annotated[float | None, arg(metavar="N", help_behavior_hint="")]


_VOICES = "flite,espeak,piper,kokoro"


def transcribe(
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="")],
    /,
    scale: _Scales = ("best",),
    output_dir: _OptionalOutDir = None,
    formats: Annotated[str, arg(aliases=["-f"], metavar="txt,srt,vtt,tsv,json", help_behavior_hint="")] = "",
    model: _Model = DEFAULT_MODEL,
    face: int = 0,
    vad: Annotated[bool, arg(help_behavior_hint="")] = True,
    word_timestamps: _Flag = False,
    max_line_width: _Count = None,
    max_line_count: _Count = None,
    max_words_per_line: _Count = None,
    highlight_words: _Flag = False,
    beams: int = 1,
    num_best: int = 1,
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    policy: Annotated[Literal["auto"] | None, arg(metavar="auto", help_behavior_hint="")] = None,
    budget_tokens: _Limit = None,
    budget_tflops: _Limit = None,
    budget_ms: _Limit = None,
) -> int:
    """Write what is said in media files, or folders of them. A line per scale: its name, the LLM tokens that the media
    became, the time for encoding and decoding, the text.

    Args:
        files: sound and video files, and folders of them.
        scale: compression rates such as a4v2 (or 4,2), a16, v5, or `all`, or `best`; `mtsk info` lists the trained.
        output_dir: also write FILE.txt and so on here, while it is read; of several scales FILE.SCALE.srt, .vtt, .tsv.
        formats: what to write, or `all`; without a folder, what to print instead (JSON: one line per file).
        model: name of a model of this package, or a checkpoint folder.
        face: which face to read, by size, 0 the largest.
        vad: transcribe too what the voice activity detector takes for noise or silence.
        word_timestamps: with the words, their times and confidence in JSON.
        max_line_width: for srt and vtt: characters of a line.
        max_line_count: for srt and vtt: lines of a cue, with --max-line-width.
        max_words_per_line: for srt and vtt: words of a cue, instead of --max-line-width.
        highlight_words: for srt and vtt: a cue per word, underlined.
        beams: texts that are followed at once (beam search); 1 is the quickest.
        num_best: with --beams: JSON has so many texts of each segment, the others as `alternatives`.
        precision: of the weights; int8 is for the language model alone, and for processors.
        policy: instead of a scale: `auto` is coarse where the text is sure, and sees lips only where the sound is noisy
            or the text unsure; see `mtsk calibrate`.
        budget_tokens: instead of a scale: the finest one with at most so many LLM tokens in a segment (up to 16 s).
        budget_tflops: the same, of 10^12 operations.
        budget_ms: the same, of milliseconds on this machine; see `mtsk bench --calibrate`.
    """
    from mtsk.commands.policies import Wish
    from mtsk.commands.transcribe import run
    from mtsk.inference.beam import Beams
    from mtsk.inference.subtitles import SubtitleOptions

    subtitles = SubtitleOptions(max_line_width, max_line_count, max_words_per_line, highlight_words)
    return run(
        files, scale, output_dir, formats, model, face,
        subtitles=subtitles, word_timestamps=word_timestamps, search=Beams(beams, num_best), precision=precision,
        wish=Wish(policy, budget_tokens, budget_tflops, budget_ms), vad=vad,
    )  # fmt: skip


def prepare(
    corpus: Positional[Literal["grid", "lrs2", "lrs3", "vox2", "folder", "noise", "spoken", "labelled"]],
    source: Annotated[Positional[Path], arg(metavar="SOURCE")],
    target: Annotated[Positional[Path], arg(metavar="TARGET")],
    /,
    split: Annotated[str, arg(metavar="NAME")] = "train",
    table: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    workers: int = 2,
    sheets: int = 12,
    face: int = 0,
    lips: Annotated[bool, arg(help_behavior_hint="")] = True,
    mix: int = 8,
    landmarks: _OptionalFolder = None,
    pretrain: Annotated[bool, arg(help_behavior_hint="")] = True,
    only: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    hours: float = 16.0,
    voices: Annotated[str, arg(metavar="NAME,...")] = _VOICES,
    voice_dir: _OptionalFolder = None,
    seed: int = 0,
    min_confidence: float = 0.8,
) -> int:
    """Read a corpus once into a folder for training and evaluation: sound, mouth crops and lists. When interrupted, or
    when the corpus has grown, run it again: what is done is not read again.

    Args:
        corpus: `grid`, `lrs2`, `lrs3`, `vox2`, as they are distributed; `folder` of media, with a .txt beside each or a
            .tsv (file, transcript); `noise`, for babble; `spoken`, sentences that free voices say;
            `labelled`, recordings without text, which Whisper writes.
        source: the folder of the corpus; for `spoken`: a JSON file of name and sentence.
        target: the prepared folder; several corpora, and noise, may share it.
        split: for `folder`: what the table does not say, such as train, dev or test.
        table: for `folder`: the .tsv, if it is not the only one in SOURCE; for `vox2`: the .tsv (file, transcript,
            optionally start and end of a piece, in seconds).
        workers: processes; 0 for none but this one.
        sheets: write pictures of all mouth crops to look at, for so many utterances.
        face: which face to read, by size, 0 the largest.
        lips: keep the sound alone.
        mix: for `noise`: recordings that sound at once; 8 talkers are babble, 1 is for recordings of noise.
        landmarks: for `lrs2`, `lrs3`, `vox2`: a folder like the corpus, with a .pkl, .npy or .npz (68 points a frame)
            for each video; faces are looked for only where there is none.
        pretrain: for `lrs2`, `lrs3`: leave out the long videos of its folder pretrain.
        only: for `vox2`: a file with the names of the videos to keep, such as those in English.
        hours: for `spoken`: of sound, about.
        voices: for `spoken`: kinds of voices.
        voice_dir: for `spoken`: a folder with the files of piper and kokoro.
        seed: for `spoken`: another one gives the sentences other voices.
        min_confidence: for `labelled`: keep what Whisper is so sure of (mean probability per token, 0 to 1).
    """
    from mtsk.commands.prepare import refuse_options_of_others, run, run_labelled, run_spoken

    changed = {
        "--split": split != "train", "--table": table, "--mix": mix != 8, "--landmarks": landmarks,
        "--no-pretrain": not pretrain, "--only": only, "--hours": hours != 16.0, "--voices": voices != _VOICES,
        "--voice-dir": voice_dir, "--seed": seed, "--min-confidence": min_confidence != 0.8,
    }  # fmt: skip
    refuse_options_of_others(corpus, [name for name, value in changed.items() if value])
    if corpus == "spoken":
        kinds = tuple(voices.split(","))
        return run_spoken(source, target, hours=hours, kinds=kinds, voice_dir=voice_dir, seed=seed, workers=workers)
    if corpus == "labelled":
        return run_labelled(source, target, min_confidence=min_confidence, workers=workers)
    return run(
        corpus, source, target, split=split, table=table, workers=workers, sheets=sheets, face=face, lips=lips, mix=mix,
        landmarks=landmarks, pretrain=pretrain, only=only,
    )  # fmt: skip


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help_behavior_hint="")] = "",
    /,
    data: _OptionalFolder = None,
    output_dir: _OptionalOutDir = None,
    resume: Annotated[bool, arg(help_behavior_hint="")] = False,
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None,
    onto: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None,
    start_from: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None,
    list: Annotated[bool, arg(help_behavior_hint="")] = False,
) -> int:
    """Train a model by a named recipe, or by a JSON file of a configuration. The folder given with -o gets the run's
    state and curves, and at the end the model, in its folder `model`.

    Args:
        recipe: a name (--list shows them), or a .json file.
        data: a folder from `mtsk prepare`, with the splits train and dev.
        output_dir: the run's folder.
        resume: go on where the run in the folder stopped, if there is one.
        seed: instead of the recipe's.
        onto: give this trained model the recipe's character heads (see grid-s1-ctc); nothing else is trained.
        start_from: a trained model whose weights the run starts with, as far as the recipe's model has such parts.
        list: show the recipes.
    """
    if list:
        from mtsk.commands.recipes import run as list_recipes

        return list_recipes()
    from mtsk.commands.train import run

    return run(recipe, data, output_dir, resume, seed, onto, start_from)


def evaluate(
    data: Annotated[Path, arg(metavar="FOLDER")],
    output_dir: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")],
    model: _Model = DEFAULT_MODEL,
    split: Annotated[str, arg(metavar="NAME")] = "test",
    scale: _Scales = ("all",),
    snr: Annotated[str, arg(metavar="dB,...")] = "clean",
    peer: Annotated[tuple[Literal["whisper-base", "faster-whisper-base-int8"], ...], arg(help_behavior_hint="")] = (),
    batch: int = 10,
    untrained: Literal["refuse", "pool", "between"] = "refuse",
    frequencies: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    beams: int = 1,
    policy: Annotated[Literal["auto"] | None, arg(metavar="auto", help_behavior_hint="")] = None,
    pareto: _Flag = False,
) -> int:
    """Word error rates with 95 % intervals, time and operations, by scale and noise: a table, wer.json, wer.csv,
    wer.png (a plot), errors.json and errors.md (kinds of errors), hypotheses.jsonl (what was recognised in each
    utterance).

    Args:
        data: a folder from `mtsk prepare`.
        output_dir: where the results go.
        model: name of a model of this package, or a checkpoint folder.
        split: which part of the data.
        scale: some of the trained scales, or `all`; a4-20 stands for every rate from 4 to 20.
        snr: babble at these signal-to-noise ratios, such as clean,5,0,-5; needs `mtsk prepare noise`.
        peer: other systems to measure on the same utterances.
        batch: utterances at a time; time and memory of an utterance are its own with 1.
        untrained: at a scale that was not trained, `pool` averages the tokens of the nearest finer one, and `between`
            lets the projectors around it read.
        frequencies: for the kinds of errors, which words are rare: sentences (text or JSON), counts by word (JSON), or
            a folder from `mtsk prepare`, whose training sentences are counted.
        beams: texts that are followed at once (beam search, with the character heads' say); 1 is greedy.
        policy: measure `auto` too, against cost: instead of the above WER, operations, tokens and seconds as a table,
            pareto.json, pareto.md, pareto.png and outcomes.jsonl.
        pareto: the same, and the oracle, which knows the cheapest right scale of each utterance.
    """
    if policy or pareto:
        if beams != 1:
            raise ValueError("--beams with --policy or --pareto; these measure greedy decoding")
        from mtsk.commands.pareto import run as run_pareto

        return run_pareto(data, output_dir, model, split, scale, snr, batch, with_oracle=pareto)
    from mtsk.commands.evaluate import run

    return run(data, output_dir, model, split, scale, snr, peer, batch, untrained, frequencies, beams)


def study(
    file: Annotated[Positional[Path], arg(metavar="STUDY.yaml")],
    /,
    output_dir: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")],
    data: _OptionalFolder = None,
    report: Annotated[bool, arg(help_behavior_hint="")] = False,
) -> int:
    """Compare strategies, compressors and scales: train every model of a study file that is missing, measure all, write
    results.json, tables.md and figures. When interrupted, run it again: what is done is not done again.

    Args:
        file: corpus, recipe, and matrices of methods and scales; see docs/results.
        output_dir: results go here, the models to its folder `runs`.
        data: a folder from `mtsk prepare`, instead of the one that the file names.
        report: only write tables and figures again, from results.json in the folder.
    """
    from mtsk.commands.study import run

    return run(file, data, output_dir, report)


def convert(
    kind: Positional[Literal["avhubert", "llama-avsr", "omni-avsr"]],
    source: Annotated[Positional[Path], arg(metavar="FILE")],
    target: Annotated[Positional[Path], arg(metavar="FOLDER")],
    /,
    llm: _Base = None,
    whisper: _Base = None,
    avhubert: _OptionalFolder = None,
    scales: Annotated[tuple[str, ...], arg(metavar="SCALE...", help_behavior_hint="")] = (),
    alpha: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None,
) -> int:
    """Read weights that others published, without running anything that the file holds. AV-HuBERT becomes a folder for
    `model.video.source` (its licence is non-commercial; it is never shipped with mtsk), a whole recogniser a model.

    Args:
        kind: `avhubert`, such as large_vox_iter5.pt, pre-trained or fine-tuned; `llama-avsr` or `omni-avsr`, a
            recogniser, with one rate or several (Matryoshka).
        source: the published file.
        target: a new folder, or one of an earlier conversion.
        llm: of a recogniser: its base model, a folder or hub id, unless the file says.
        whisper: the same, of the sound.
        avhubert: of a recogniser that reads lips: a folder that `mtsk convert avhubert` wrote.
        scales: of a recogniser: the trained scales such as a4v2, rates in the order of training; a .ckpt says them.
        alpha: of a recogniser: the --alpha of training; a .ckpt says it.
    """
    from mtsk.commands.convert import run

    return run(kind, source, target, llm=llm, whisper=whisper, avhubert=avhubert, scales=scales, alpha=alpha)


def export(
    kind: Positional[Literal["peft"]],
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    target: Annotated[Positional[Path], arg(metavar="FOLDER")],
    /,
    scale: _Scales = ("all",),
) -> int:
    """Write a model for other software: `peft`, LoRA adapters of the language model in peft's format, and beside them
    the projectors and delimiters, with a README.md on how they fit. Base weights are not included.

    Args:
        kind: `peft`.
        model: name of a model of this package, a checkpoint folder, or an id on the Hugging Face hub.
        target: a new folder, or one of an earlier export.
        scale: some of the trained scales, or `all`; scales with adapters of their own get a folder each.
    """
    from mtsk.commands.export import run

    return run(kind, model, target, scale)


VERBS: dict[str, Callable[..., int]] = {
    "transcribe": transcribe,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "serve": serve,
    "bench": bench,
    "study": study,
    "convert": convert,
    "export": export,
    "info": info,
}


def main() -> None:
    """Runs the command; errors that a user can mend are one line on stderr and exit code 1."""
    arguments = sys.argv[1:]
    # Before torch is loaded: threads that spin long while they wait crawl beside another busy program.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be text, and must not stop the others
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # it takes all that it is given
            code = _run(arguments)
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        _discard_output()
        code = _PIPE_CLOSED
    except (ValueError, OSError) as error:
        from mtsk.commands import describe

        print(f"mtsk: error: {describe(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("mtsk: interrupted", file=sys.stderr)
        code = _INTERRUPTED
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-V"]):
        print(f"mtsk {__version__}")
        return 0
    description = f"mtsk {__version__}: elastic audio-visual speech recognition."
    if not arguments:
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            tyro.extras.subcommand_cli_from_dict(VERBS, prog="mtsk", description=description, args=["--help"])
        return 2
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="mtsk", description=description, args=arguments, config=(OmitArgPrefixes, FlagCreatePairsOff)
        )
        assert isinstance(code, int)
        return code
    finally:
        print(end="", flush=True)  # a broken pipe shows here, help too, and not when the interpreter ends


def _show_warning(message: Warning | str, *_: object) -> None:
    """As our own; the lines of code that Python would name say nothing to a user."""
    print(f"mtsk: warning: {' '.join(str(message).splitlines())}", file=sys.stderr)


def _discard_output() -> None:
    """Lets what is still buffered go nowhere: the interpreter writes it out when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


if __name__ == "__main__":
    main()
