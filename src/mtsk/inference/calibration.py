"""Chooses the ladders and the threshold of `auto` from what every scale gave on a development set.

The choice with the fewest errors among those that cost no more than a share of the finest scale. A price of an error
joins the two, so that the bands of sound quality can be chosen one by one, and put together. A development set is
small, so little is chosen: one threshold for all steps, and for each band one or two scales; price and threshold by
cross-validation, as what is chosen on some utterances does worse on others.
Letters: U utterances from noisy to clean, O options of a band, L places where bands may meet, P prices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtsk.config import AutoConfig, BandConfig, StepConfig
from mtsk.scale import Scale

MAX_STEPS, MAX_BANDS = 2, 3
_THRESHOLDS = (0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
_MIN_BAND_SHARE = 0.2  # of the utterances
_NUM_FOLDS = 5
_MIN_TRIALS = 10
_NUM_LIMITS = 64  # candidates where bands may meet
_PRICES = np.geomspace(1e-1, 3e1, 30)  # of an error, in mean passes of the finest scale

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pass:
    """What decoding at one scale gave."""

    num_errors: int
    confidence: float
    flops: int  # of projecting, reading and writing


@dataclass(frozen=True)
class Trial:
    """One utterance at one noise level, decoded at every scale."""

    utterance: str
    snr_db: float  # as `estimate_snr_db` guesses it
    num_words: int
    passes: Mapping[Scale, Pass]
    encode_flops: Mapping[str, int]  # by modality, `a` and `v`: paid once

    def flops(self, scale: Scale) -> int:
        """Of one scale alone."""
        return self.passes[scale].flops + sum(self.encode_flops[letter] for letter in scale.task)


def calibrate(trials: Sequence[Trial], finest: Scale, *, share: float = 0.6, data: str = "") -> AutoConfig:
    """The ladders with the fewest errors at no more than a share of the operations of the finest scale.

    Args:
        trials: decoded at the same scales; none of them from a set that is for evaluation.
        finest: the scale to compare with.
        share: from above 0 to 1. If nothing is as cheap, the cheapest of what was tried is taken.
        data: what the trials are, for the record.

    Raises:
        ValueError: if there are too few trials, or they lack the finest scale.
    """
    if len(trials) < _MIN_TRIALS or any(finest not in trial.passes for trial in trials):
        raise ValueError(f"{len(trials)} utterances given; needed are at least {_MIN_TRIALS}, all decoded at {finest}")
    allowed = share * sum(trial.flops(finest) for trial in trials)
    prices = _PRICES * float(np.mean([trial.flops(finest) for trial in trials]))
    found = [
        (flops, num_errors, threshold)
        for threshold in _THRESHOLDS
        for flops, num_errors in zip(*_cross_validated(trials, threshold, prices), strict=True)
    ]
    possible = [each for each in found if each[0] <= allowed] or [min(found)]
    threshold = min(possible, key=lambda each: (each[1], each[0]))[2]
    table = _Table.of(trials, threshold)
    # The dearer an error, the more operations are spent.
    ladders = [table.best(float(price)) for price in prices]
    costs = [sum(_follow(bands, trial)[0] for trial in trials) for bands in ladders]
    best = ladders[max((i for i, flops in enumerate(costs) if flops <= allowed), default=0)]
    limits_db = [None, *(round(limit_db, 2) for limit_db, _ in best[1:])]
    bands = [BandConfig(steps, limit_db) for limit_db, (_, steps) in zip(limits_db, best, strict=True)]
    return AutoConfig(tuple(reversed(bands)), data)


Bands = list[tuple[float, tuple[StepConfig, ...]]]
"""From noisy to clean: from which SNR on, and what is done."""


def _cross_validated(trials: Sequence[Trial], threshold: float, prices: Floats) -> tuple[Floats, Floats]:
    """At each price the operations and errors of what is chosen without the utterances that it is measured on."""
    names = sorted({trial.utterance for trial in trials})
    fold_of = {name: i % _NUM_FOLDS for i, name in enumerate(names)}
    totals_2P = np.zeros((2, len(prices)))
    for fold in range(_NUM_FOLDS):
        held_out = [trial for trial in trials if fold_of[trial.utterance] == fold]
        others = [trial for trial in trials if fold_of[trial.utterance] != fold]
        if not held_out:
            continue
        table = _Table.of(others, threshold)
        for i, price in enumerate(prices):
            bands = table.best(float(price))
            totals_2P[:, i] += np.sum([_follow(bands, trial) for trial in held_out], axis=0)
    return totals_2P[0], totals_2P[1]


def _follow(bands: Bands, trial: Trial) -> tuple[float, float]:
    """Operations and errors of a trial."""
    steps = next(steps for limit_db, steps in reversed(bands) if trial.snr_db >= limit_db)
    tried: list[Scale] = []
    for step in steps:
        tried.append(step.scale)
        if trial.passes[step.scale].confidence >= step.min_confidence:
            break
    encoded = {letter for scale in tried for letter in scale.task}
    flops = sum(trial.passes[scale].flops for scale in tried) + sum(trial.encode_flops[letter] for letter in encoded)
    return flops, trial.passes[tried[-1]].num_errors


class _Table:
    """Operations and errors of every option, summed up to every place where bands may meet."""

    def __init__(
        self,
        options: Sequence[tuple[StepConfig, ...]],
        flops_OL: Floats,
        errors_OL: Floats,
        limits_db: Sequence[float],
        pairs: Sequence[tuple[int, int]],
    ) -> None:
        self._options, self._flops_OL, self._errors_OL = options, flops_OL, errors_OL
        self._limits_db = limits_db
        self._pairs = pairs  # of places that a band may lie between

    @classmethod
    def of(cls, trials: Sequence[Trial], threshold: float) -> _Table:
        """All options on these trials."""
        ordered = sorted(trials, key=lambda trial: trial.snr_db)
        shared = [scale for scale in ordered[0].passes if all(scale in trial.passes for trial in ordered)]
        steps = {scale: _Outcomes.of(scale, ordered) for scale in shared}
        options = list(_options(shared, threshold))
        starts = _starts(ordered)
        rows = [_totals([steps[step.scale] for step in option], option, ordered) for option in options]
        at_L = np.array([*starts, len(ordered)])
        sums = [np.concatenate([np.zeros((2, 1)), np.cumsum(row, axis=1)], axis=1)[:, at_L] for row in rows]
        flops_OL, errors_OL = np.stack(sums, axis=1)
        limits_db = [-np.inf, *((ordered[i - 1].snr_db + ordered[i].snr_db) / 2 for i in starts[1:])]
        fewest = _MIN_BAND_SHARE * len(ordered)
        pairs = [(i, j) for i, j in itertools.combinations(range(len(at_L)), 2) if at_L[j] - at_L[i] >= fewest]
        return cls(options, flops_OL, errors_OL, limits_db, pairs)

    def best(self, price: float) -> Bands:
        """The bands with the least operations plus errors at a price."""
        value_OL = self._flops_OL + price * self._errors_OL
        num = len(self._limits_db)
        choice: dict[tuple[int, int], tuple[float, int]] = {}
        for i, j in self._pairs:
            value_O = value_OL[:, j] - value_OL[:, i]
            choice[i, j] = float(value_O.min()), int(value_O.argmin())
        cuts = min(
            (
                (0, *inner, num)
                for count in range(MAX_BANDS)
                for inner in itertools.combinations(range(1, num), count)
                if all(pair in choice for pair in itertools.pairwise((0, *inner, num)))
            ),
            key=lambda ends: (sum(choice[pair][0] for pair in itertools.pairwise(ends)), len(ends)),
        )  # fmt: skip
        return [(self._limits_db[i], self._options[choice[i, j][1]]) for i, j in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class _Outcomes:
    """What one scale gave for all trials."""

    errors_U: Floats
    confidence_U: Floats
    flops_U: Floats

    @classmethod
    def of(cls, scale: Scale, trials: Iterable[Trial]) -> _Outcomes:
        passes = [trial.passes[scale] for trial in trials]
        return cls(*(np.array([getattr(p, n) for p in passes], float) for n in ("num_errors", "confidence", "flops")))


def _adds(coarse: Scale, fine: Scale) -> bool:
    """Whether a scale has all that another has, as finely or finer: a change from sound to lips is no refinement."""
    return all((fine.rate(letter) or math.inf) <= (coarse.rate(letter) or 0) for letter in coarse.task)


def _options(scales: Iterable[Scale], threshold: float) -> Iterator[tuple[StepConfig, ...]]:
    """All sequences of scales, from few tokens to many."""
    coarse_first = sorted(scales, key=lambda scale: scale.tokens_per_second)
    for count in range(1, MAX_STEPS + 1):
        for ladder in itertools.combinations(coarse_first, count):
            if all(_adds(*pair) for pair in itertools.pairwise(ladder)):
                yield (*(StepConfig(scale, threshold) for scale in ladder[:-1]), StepConfig(ladder[-1]))


def _totals(outcomes: Sequence[_Outcomes], steps: Sequence[StepConfig], trials: Sequence[Trial]) -> Floats:
    """Operations and errors (2, U) of a ladder."""
    flops_U, errors_U = np.zeros(len(trials)), np.zeros(len(trials))
    open_U = np.ones(len(trials), bool)
    encoded = {letter: np.zeros(len(trials), bool) for letter in "av"}
    for outcome, step in zip(outcomes, steps, strict=True):
        flops_U += open_U * outcome.flops_U
        errors_U = np.where(open_U, outcome.errors_U, errors_U)
        for letter in step.scale.task:
            encoded[letter] |= open_U
        open_U = open_U & (outcome.confidence_U < step.min_confidence)
    for letter, encoded_U in encoded.items():
        flops_U += encoded_U * np.array([trial.encode_flops.get(letter, 0) for trial in trials], float)
    return np.stack([flops_U, errors_U])


def _starts(ordered: Sequence[Trial]) -> list[int]:
    """Positions where a band may begin: the first one, and in each stretch of the others that with the largest step."""
    num = len(ordered)
    margin = max(1, round(_MIN_BAND_SHARE * num))
    steps_db = {i: ordered[i].snr_db - ordered[i - 1].snr_db for i in range(margin, num - margin + 1)}
    stretches = np.array_split(list(steps_db), min(_NUM_LIMITS, len(steps_db)))
    widest = [max(stretch.tolist(), key=steps_db.__getitem__) for stretch in stretches]
    return [0, *(place for place in widest if steps_db[place] > 0)]
