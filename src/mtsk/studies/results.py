"""What a study measured, as values in one JSON file, and the statistics over seeds and utterances.

Letters: S seeds, U utterances, R bootstrap draws.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtsk.config import from_dict, to_dict
from mtsk.evaluation.wer import CONFIDENCE
from mtsk.files import write_whole
from mtsk.scale import Scale

REFERENCE = "independent"  # the method that the others are compared with: one model per scale
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """Word errors of one model at one scale and noise level, per utterance.

    Attributes:
        matrix: block of the study, such as AVSR.
        method: name of a table row, such as MS, independent, training-free.
        compressor: average or stack, as the study names it.
        seed: of the training.
        scale: where it was decoded; None for decoding without sound and lips.
        snr_db: of the babble; None for clean.
        errors: word edits of each utterance.
        num_words: reference words of each utterance, in the same order.

    Raises:
        ValueError: if the counts do not belong together, are negative, or there is no reference word.
    """

    matrix: str
    method: str
    compressor: str
    seed: int
    scale: Scale | None
    snr_db: float | None
    errors: tuple[int, ...]
    num_words: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.errors) != len(self.num_words):
            raise ValueError(f"{self.place}: {len(self.errors)} error counts for {len(self.num_words)} utterances")
        if min((*self.errors, *self.num_words), default=0) < 0:
            raise ValueError(f"{self.place}: a count is negative; 0 or more is allowed")
        if sum(self.num_words) == 0:
            raise ValueError(f"{self.place}: WER needs at least one reference word")
        if self.snr_db is not None and not math.isfinite(self.snr_db):
            raise ValueError(f"{self.place}: snr_db is a finite number, or null for clean")

    @property
    def place(self) -> str:
        """What was measured, in words."""
        scale = "no input" if self.scale is None else str(self.scale)
        noise = "clean" if self.snr_db is None else f"{self.snr_db:g} dB"
        return f"{self.matrix}, {self.method}, {self.compressor}, seed {self.seed}, {scale}, {noise}"


@dataclass(frozen=True)
class Cost:
    """Computation for the mean utterance at a scale: LLM tokens, TFLOPs of the LLM, and with the encoders."""

    scale: Scale
    num_tokens: float
    llm_tflops: float
    total_tflops: float

    def __post_init__(self) -> None:
        for value in (self.num_tokens, self.llm_tflops, self.total_tflops):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"cost at {self.scale}: {value} given; finite numbers from 0 up are allowed")


@dataclass(frozen=True)
class RunFacts:
    """What one training took.

    Attributes:
        scales: those that this one model was trained at.
        num_trainable: parameters that its training changed.
        num_passes: forward and backward passes of the language model: steps of the joint stage times scales of a step.
        train_s: wall time of all its stages, but those that an earlier run of the study had done for it.
    """

    matrix: str
    method: str
    compressor: str
    seed: int
    scales: tuple[Scale, ...]
    num_trainable: int
    num_passes: int
    train_s: float


@dataclass(frozen=True)
class Results:
    """Everything that a study found so far; any part may be missing while it is under way.

    Attributes:
        title: of the report.
        setting: what the figures depend on: hardware, precision, versions, data, batch.
        measured: at most one per matrix, method, compressor, seed, scale and SNR. The order of first appearance is the
            order of matrices and rows in tables and figures.
        costs: at most one per scale.
        runs: at most one per matrix, method, compressor, seed and set of scales.

    Raises:
        ValueError: if something occurs twice, or one matrix has different utterances at the same scale.
    """

    title: str
    setting: dict[str, str]
    measured: tuple[Measured, ...] = ()
    costs: tuple[Cost, ...] = ()
    runs: tuple[RunFacts, ...] = ()

    def __post_init__(self) -> None:
        _require_unique(((each.place, each.place) for each in self.measured), "measured")
        _require_unique(((each.scale, str(each.scale)) for each in self.costs), "costs")
        runs = ((each.matrix, each.method, each.compressor, each.seed, each.scales) for each in self.runs)
        _require_unique(((run, ", ".join(map(str, run[:4]))) for run in runs), "runs")
        first: dict[tuple[str, Scale | None], Measured] = {}
        for each in self.measured:
            other = first.setdefault((each.matrix, each.scale), each)
            if other.num_words != each.num_words:
                raise ValueError(f"not the same utterances, so they cannot be compared: {other.place}; {each.place}")


def _require_unique(keys: Iterable[tuple[Hashable, str]], name: str) -> None:
    seen = set()
    for key, description in keys:
        if key in seen:
            raise ValueError(f"{name}: {description} occurs twice")
        seen.add(key)


def load_results(path: Path) -> Results:
    """Reads what `save_results` wrote.

    Raises:
        ValueError: naming the file, and every unknown key, missing key or wrong value in it.
        OSError: if it cannot be read.
    """
    try:
        return from_dict(Results, json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def save_results(results: Results, path: Path) -> None:
    """Writes JSON, one record a line; the file appears whole or not at all. Its folder is made where it is missing."""
    plain = to_dict(results)
    parts = []
    for field in fields(results):
        value = plain[field.name]
        text = _dump(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(map(_dump, value)) + "\n]"
        parts.append(f"{_dump(field.name)}: {text}")
    write_whole(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Estimate:
    """A WER, or a difference of two, as a fraction, with its 95 % interval over utterances.

    `seed_sd` is the standard deviation of the seeds' own values, None for a single seed: the interval is that of the
    mean over these seeds and does not hold their scatter.
    """

    value: float
    low: float
    high: float
    seed_sd: float | None
    num_seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Cell:
    """Word errors of a method at one scale and SNR, by seed. All seeds have the same utterances."""

    seeds: tuple[int, ...]
    errors_SU: NDArray[np.int64]
    words_U: NDArray[np.int64]


def wer(cell: Cell) -> Estimate:
    """Mean over seeds of the corpus WER, with a percentile bootstrap interval over utterances.

    A draw takes the same utterances for every seed. The draws are those of `evaluation.wer.wer_with_interval`, so that
    a single seed gives the same interval there and here.
    """
    return _estimate(cell.errors_SU, cell.words_U)


def difference(cell: Cell, reference: Cell) -> Estimate | None:
    """Paired: `cell` minus `reference` on the same utterances, over the seeds that both have; None if there are none.

    Positive where `cell` makes more errors.
    """
    assert np.array_equal(cell.words_U, reference.words_U)
    common = sorted(set(cell.seeds) & set(reference.seeds))
    if not common:
        return None
    ours, theirs = (each.errors_SU[[each.seeds.index(seed) for seed in common]] for each in (cell, reference))
    return _estimate(ours - theirs, cell.words_U)


def _estimate(errors_SU: NDArray[np.int64], words_U: NDArray[np.int64]) -> Estimate:
    # Every seed has the same words, so the mean of the seeds' rates is the rate of their summed errors.
    num_seeds = len(errors_SU)
    num_words = int(words_U.sum())
    by_seed_S = errors_SU.sum(axis=1) / num_words
    drawn_RU = _draws(len(words_U))
    # float32 is exact here: sums of whole numbers far below 2^24.
    errors_R = (drawn_RU @ errors_SU.sum(axis=0).astype(np.float32)).astype(np.float64)
    words_R = (drawn_RU @ words_U.astype(np.float32)).astype(np.float64)
    usable_R = words_R > 0  # a draw of nothing but empty references has no WER
    value = float(by_seed_S.mean())
    rates = errors_R[usable_R] / (num_seeds * words_R[usable_R]) if usable_R.any() else np.array([value])
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    seed_sd = float(by_seed_S.std(ddof=1)) if num_seeds > 1 else None
    return Estimate(value, float(low), float(high), seed_sd, num_seeds)


@functools.lru_cache(maxsize=2)
def _draws(num_utterances: int) -> NDArray[np.float32]:
    """How often each draw has each utterance, (R, U)."""
    generator = np.random.default_rng(0)
    counts = np.empty((NUM_RESAMPLES, num_utterances), dtype=np.float32)
    for count_U in counts:
        count_U[:] = np.bincount(generator.integers(num_utterances, size=num_utterances), minlength=num_utterances)
    return counts


@dataclass(frozen=True)
class Row:
    """What is compared within a matrix: a method with its compressor."""

    method: str
    compressor: str


@dataclass(frozen=True)
class Block:
    """One matrix of the study: its rows, scales (finer first) and SNRs (clean first, then falling).

    Rows and scales include those that were trained, but not measured yet.
    """

    matrix: str
    rows: tuple[Row, ...]
    scales: tuple[Scale, ...]
    snrs_db: tuple[float | None, ...]
    cells: Mapping[tuple[Row, Scale | None, float | None], Cell]

    def wer(self, row: Row, scale: Scale | None, snr_db: float | None = None) -> Estimate | None:
        """WER of a row at a scale (None: no input); None where nothing was measured."""
        cell = self.cells.get((row, scale, snr_db))
        return None if cell is None else wer(cell)

    def no_input(self, row: Row) -> Estimate | None:
        """WER without sound and lips, at whichever SNR it was recorded: it does not depend on it."""
        return next((found for snr_db in self.snrs_db if (found := self.wer(row, None, snr_db))), None)

    def difference(self, row: Row, reference: Row, scale: Scale) -> Estimate | None:
        """Clean WER of a row minus that of the reference; None where they were not both measured with one seed."""
        ours, theirs = (self.cells.get((each, scale, None)) for each in (row, reference))
        return None if ours is None or theirs is None else difference(ours, theirs)

    def reference(self, row: Row) -> Row | None:
        """What a row is compared with: `independent`, else the first method; with the row's compressor if there is one.

        None for the reference itself, with any compressor.
        """
        methods = [each.method for each in self.rows]
        method = REFERENCE if REFERENCE in methods else methods[0]
        if row.method == method:
            return None
        candidates = [each for each in self.rows if each.method == method]
        return next((each for each in candidates if each.compressor == row.compressor), candidates[0])


def distinct_rows(measured: Iterable[Measured], runs: Iterable[RunFacts]) -> tuple[Row, ...]:
    """The rows in their order of appearance."""
    rows = [Row(each.method, each.compressor) for each in measured]
    return tuple(dict.fromkeys([*rows, *(Row(run.method, run.compressor) for run in runs)]))


def blocks(results: Results) -> tuple[Block, ...]:
    """The matrices of a study, in their order of appearance."""
    matrices = dict.fromkeys([*(each.matrix for each in results.measured), *(run.matrix for run in results.runs)])
    return tuple(_block(results, matrix) for matrix in matrices)


def _block(results: Results, matrix: str) -> Block:
    measured = [each for each in results.measured if each.matrix == matrix]
    runs = [each for each in results.runs if each.matrix == matrix]
    rows = distinct_rows(measured, runs)
    scales = {each.scale for each in measured if each.scale is not None}
    found = {Row(each.method, each.compressor) for each in measured}
    # A model may be trained at more scales than a matrix looks at; they count only while nothing else is known.
    scales |= {s for run in runs if Row(run.method, run.compressor) not in found for s in run.scales}
    snrs_db = sorted({each.snr_db for each in measured}, key=lambda snr: -math.inf if snr is None else -snr)
    by_cell: dict[tuple[Row, Scale | None, float | None], list[Measured]] = {}
    for each in measured:
        by_cell.setdefault((Row(each.method, each.compressor), each.scale, each.snr_db), []).append(each)
    cells = {key: _cell(found) for key, found in by_cell.items()}
    return Block(matrix, rows, tuple(sorted(scales)), tuple(snrs_db), cells)


def _cell(measured: list[Measured]) -> Cell:
    measured = sorted(measured, key=lambda each: each.seed)
    errors_SU = np.array([each.errors for each in measured], dtype=np.int64)
    return Cell(tuple(each.seed for each in measured), errors_SU, np.array(measured[0].num_words, dtype=np.int64))
