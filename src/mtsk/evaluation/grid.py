"""The evaluation grid: every scale at every signal-to-noise ratio, beside baselines on the same utterances."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mtsk.evaluation.wer import Rate, WordErrors, corpus_rate, word_errors
from mtsk.scale import Scale
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Example

NO_INPUT = "no-input"
HYPOTHESES_FILE = "hypotheses.jsonl"

Encoded = TypeVar("Encoded")


class Recognizer(Protocol[Encoded]):
    """A model under evaluation. What `encode` returns is its own affair; it is decoded at several scales."""

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Encodes the modalities that the examples have, once."""
        ...

    def usable(self, encoded: Encoded, scale: Scale) -> list[int]:
        """Which examples, by position, have what the scale needs, and enough of it for one token."""
        ...

    def decode(self, encoded: Encoded, scale: Scale, rows: Sequence[int]) -> list[str]:
        """One text for each of the examples at these positions, at least one, all of them usable at the scale."""
        ...

    def decode_no_input(self, examples: Sequence[Example]) -> list[str]:
        """One text per example, as long as its duration allows, but from the prompt alone, without sound and lips."""
        ...


@dataclass(frozen=True)
class Recognized:
    """What a peer wrote, in the spelling of the references (lower case, no punctuation, numbers as words)."""

    text: str
    flops: int | None = None
    """Operations that it took, if they are known."""


class Peer(Protocol):
    """Another system, measured on the same utterances. It has no scale."""

    def recognize(self, examples: Sequence[Example]) -> list[Recognized]:
        """One result per example."""
        ...


FlopsOf = Callable[[Example, Scale, str], int]
"""Operations that a text of an example took at a scale."""


@dataclass(frozen=True)
class Hypothesis:
    """What was said in one utterance, what was recognised, and what that cost."""

    utterance: str
    reference: str
    text: str
    duration_s: float = 0.0
    seconds: float | None = None
    """Time for encoding and decoding; of a batch an equal share."""
    flops: int | None = None


@dataclass(frozen=True)
class Row:
    """One cell of the grid: a scale or a baseline at one noise level."""

    name: str  # the scale, such as a4v2, or the baseline
    scale: Scale | None  # None for a baseline
    snr_db: float | None  # None: no noise added
    rate: Rate
    hypotheses: tuple[Hypothesis, ...]

    @property
    def seconds(self) -> float | None:
        """For encoding and decoding an utterance: the median."""
        known = [each.seconds for each in self.hypotheses if each.seconds is not None]
        return statistics.median(known) if known else None

    @property
    def tflops_per_s(self) -> float | None:
        """Operations for a second of the recordings, in 10^12: the mean."""
        known = [(each.flops, each.duration_s) for each in self.hypotheses if each.flops is not None]
        duration_s = sum(length_s for _, length_s in known)
        return sum(flops for flops, _ in known) / duration_s / 1e12 if duration_s else None


def evaluate(
    recognizer: Recognizer[Encoded],
    dataset_of: Callable[[float | None], Iterable[Sequence[Example]]],
    scales: Iterable[Scale],
    snrs_db: Iterable[float | None],
    *,
    peers: Mapping[str, Peer] | None = None,
    flops_of: FlopsOf | None = None,
    out_dir: Path,
    console: Console | None = None,
) -> list[Row]:
    """Measures WER at every scale and SNR, and of the no-input baseline and the peers.

    A batch is encoded once for all scales. Noise touches the sound alone, so lips alone, and no input, are decoded at
    the first SNR only and stand for the others too. Hypotheses go to `hypotheses.jsonl` in `out_dir` as they come.
    Utterances that a scale can't use are left out of its row, and their number is told on the console.

    Args:
        recognizer: the model.
        dataset_of: the batches of examples at an SNR in dB (None: clean); the same utterances with the same lips.
        scales: rows of the grid.
        snrs_db: columns of the grid.
        peers: name -> another system.
        flops_of: the recogniser's operations, if they shall be told.
        out_dir: made if it is missing; an earlier file of hypotheses is replaced.
        console: for the progress line and the warnings.

    Returns:
        One row per (SNR, name): within an SNR the scales as given, then the peers, then no input.

    Raises:
        ValueError: if there is no SNR or utterance, a name or SNR comes twice, or a scale can use no utterance.
    """
    peers = peers or {}
    scales, snrs_db = tuple(scales), tuple(snrs_db)
    _check_grid([*map(str, scales), *peers, NO_INPUT], snrs_db)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (out_dir / HYPOTHESES_FILE).open("w", encoding="utf-8") as file, _progress(console) as live:
        task = live.add_task("", total=None)
        fixed: dict[str, list[Hypothesis]] = {}  # what the noise does not touch
        for snr_db in snrs_db:
            column = _Column(snr_db, file, live, task)
            for name, hypotheses in fixed.items():
                column.add(name, hypotheses)
            noisy = [scale for scale in scales if str(scale) not in fixed]
            for examples in dataset_of(snr_db):
                for scale, hypotheses in _recognize(recognizer, examples, noisy, flops_of):
                    column.add(str(scale), hypotheses)
                for name, peer in peers.items():
                    column.add(name, _ask(peer, examples))
                if NO_INPUT not in fixed:
                    column.add(NO_INPUT, _pair(examples, recognizer.decode_no_input(examples)))
            warnings = _left_out(column.hypotheses, scales)
            names = {**{str(scale): scale for scale in scales}, **dict.fromkeys((*peers, NO_INPUT))}
            rows += [column.row(name, scale) for name, scale in names.items()]
            if not fixed:
                untouched = [str(scale) for scale in scales if scale.audio is None]
                fixed = {name: column.hypotheses[name] for name in (*untouched, NO_INPUT)}
    for warning in warnings:
        live.console.print(f"mtsk: warning: {warning}", highlight=False, soft_wrap=True)
    return rows


def measure(
    recognizer: Recognizer[Encoded], batches: Iterable[Sequence[Example]], scales: Iterable[Scale]
) -> dict[Scale, Rate]:
    """WER at each scale, over the utterances that it can use; a scale that can use none is absent."""
    scales = tuple(scales)
    heard: dict[Scale, list[Hypothesis]] = {}
    for examples in batches:
        for scale, hypotheses in _recognize(recognizer, examples, scales):
            heard.setdefault(scale, []).extend(hypotheses)
    return {scale: _rate(hypotheses) for scale, hypotheses in heard.items()}


def _progress(console: Console | None) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


class _Column:
    """The hypotheses at one SNR while they come in: kept, written out, and shown."""

    def __init__(self, snr_db: float | None, file: TextIO, live: Progress, task: TaskID) -> None:
        self.snr_db = snr_db
        self.hypotheses: dict[str, list[Hypothesis]] = {}
        self._errors: dict[str, list[WordErrors]] = {}
        self._file, self._live, self._task = file, live, task

    def add(self, name: str, hypotheses: Sequence[Hypothesis]) -> None:
        self.hypotheses.setdefault(name, []).extend(hypotheses)
        for hypothesis in hypotheses:
            line = {
                "utterance": hypothesis.utterance,
                "scale": name,
                "snr_db": self.snr_db,
                "reference": hypothesis.reference,
                "hypothesis": hypothesis.text,
            }
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()  # a run may take hours: what is there can be read
        errors = self._errors.setdefault(name, [])
        errors += [word_errors(hypothesis.reference, hypothesis.text) for hypothesis in hypotheses]
        num_words = max(1, sum(error.words for error in errors))
        percent = 100 * sum(error.total for error in errors) / num_words
        noise = "clean" if self.snr_db is None else f"{self.snr_db:g} dB"
        self._live.update(self._task, description=f"{noise}  {len(errors)} utterances  {name}  WER {percent:.1f} %")

    def row(self, name: str, scale: Scale | None) -> Row:
        hypotheses = tuple(self.hypotheses.get(name, ()))
        return Row(name, scale, self.snr_db, _rate(hypotheses), hypotheses)


def _recognize(
    recognizer: Recognizer[Encoded],
    examples: Sequence[Example],
    scales: Sequence[Scale],
    flops_of: FlopsOf | None = None,
) -> Iterator[tuple[Scale, list[Hypothesis]]]:
    """Encodes once; for each scale that can use any of the examples, what was recognised in those.

    Each scale is charged with the time for encoding all that the scales use together.
    """
    if not scales:
        return
    needs_sound = any(scale.audio is not None for scale in scales)
    needs_lips = any(scale.video is not None for scale in scales)
    # A modality that no scale uses is not encoded.
    used = [
        replace(
            example, waveform=example.waveform if needs_sound else None, mouth=example.mouth if needs_lips else None
        )
        for example in examples
    ]
    started_s = time.perf_counter()
    encoded = recognizer.encode(used)
    encode_s = (time.perf_counter() - started_s) / len(examples)
    for scale in scales:
        if rows := recognizer.usable(encoded, scale):
            started_s = time.perf_counter()
            texts = recognizer.decode(encoded, scale, rows)
            seconds = encode_s + (time.perf_counter() - started_s) / len(rows)
            chosen = [examples[row] for row in rows]
            flops = (
                [flops_of(*each) for each in zip(chosen, [scale] * len(rows), texts, strict=True)] if flops_of else None
            )
            yield scale, _pair(chosen, texts, seconds, flops)


def _ask(peer: Peer, examples: Sequence[Example]) -> list[Hypothesis]:
    started_s = time.perf_counter()
    results = peer.recognize(examples)
    seconds = (time.perf_counter() - started_s) / len(examples)
    return _pair(examples, [result.text for result in results], seconds, [result.flops for result in results])


def _left_out(hypotheses: Mapping[str, Sequence[Hypothesis]], scales: Sequence[Scale]) -> list[str]:
    """A warning for each scale that some utterances don't reach; no input stands for all utterances.

    Raises:
        ValueError: if there are utterances, but none reaches one of the scales.
    """
    num_all = len(hypotheses.get(NO_INPUT, ()))
    num_left_out = {scale: num_all - len(hypotheses.get(str(scale), ())) for scale in scales}
    unreached = [str(scale) for scale, num in num_left_out.items() if num_all and num == num_all]
    if unreached:
        raise ValueError(
            f"none of the {num_all} utterances can be used at {' '.join(unreached)}: they lack sound or lips, or are "
            "too short; choose other scales"
        )
    lacking = {
        scale: ["no sound"] * (scale.audio is not None) + ["no lips"] * (scale.video is not None) for scale in scales
    }
    return [
        f"{scale}: {num} of {num_all} utterances left out: {', '.join(lacking[scale])} or too short"
        for scale, num in num_left_out.items()
        if num
    ]


def _rate(hypotheses: Sequence[Hypothesis]) -> Rate:
    return corpus_rate([each.reference for each in hypotheses], [each.text for each in hypotheses])


def _pair(
    examples: Sequence[Example],
    texts: Sequence[str],
    seconds: float | None = None,
    flops: Sequence[int | None] | None = None,
) -> list[Hypothesis]:
    assert len(texts) == len(examples), (len(texts), len(examples))
    each = zip(examples, texts, flops or [None] * len(texts), strict=True)
    return [Hypothesis(e.id, e.text, text, _duration_s(e), seconds, num) for e, text, num in each]


def _duration_s(example: Example) -> float:
    num_samples = 0 if example.waveform is None else len(example.waveform)
    num_frames = 0 if example.mouth is None else len(example.mouth)
    return max(num_samples / SAMPLE_RATE_HZ, num_frames / VIDEO_FPS)


def _check_grid(names: Sequence[str], snrs_db: Sequence[float | None]) -> None:
    if not snrs_db:
        raise ValueError("an evaluation needs at least one SNR; None is clean")
    for what, values in (("scale or baseline", names), ("SNR", snrs_db)):
        repeated = sorted({str(value) for value in values if list(values).count(value) > 1})
        if repeated:
            raise ValueError(f"each {what} may come once; repeated: {', '.join(repeated)}")
