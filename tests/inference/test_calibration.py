"""The choice of ladders and thresholds, on made-up outcomes with a known best answer."""

import numpy as np
import pytest

from mtsk.config import StepConfig
from mtsk.inference.calibration import Pass, Trial, calibrate
from mtsk.inference.policy import Attempt, Auto, Known
from mtsk.scale import Scale, ScaleGrid

A4, A16, V5, A4V2 = map(Scale.parse, ("a4", "a16", "v5", "a4v2"))
GRID = ScaleGrid((A4, A16, V5, A4V2))
ENCODE = {"a": 10, "v": 20}


def _trial(snr_db: float, errors: dict[Scale, int], confidence: float) -> Trial:
    flops = {A16: 10, V5: 12, A4: 30, A4V2: 100}
    passes = {scale: Pass(errors[scale], confidence if scale == A16 else 0.5, flops[scale]) for scale in errors}
    return Trial(f"{snr_db:g}", snr_db, 6, passes, ENCODE)


def _trials() -> list[Trial]:
    """Clean: a16 is right where it is sure, else a4. Noise: only lips are right."""
    sure = [_trial(20 + i, {A16: 0, A4: 0, V5: 1, A4V2: 0}, 0.9) for i in range(20)]
    unsure = [_trial(20.5 + i, {A16: 2, A4: 0, V5: 1, A4V2: 0}, 0.3) for i in range(20)]
    noisy = [_trial(i / 10, {A16: 4, A4: 4, V5: 0, A4V2: 0}, 0.95) for i in range(40)]
    return sure + unsure + noisy


def test_the_best_ladders_are_found() -> None:
    clean, noisy = calibrate(_trials(), A4V2, data="made up").bands
    assert [step.scale for step in clean.steps] == [A16, A4]
    assert 0.3 < clean.steps[0].min_confidence <= 0.9
    assert noisy.steps == (StepConfig(V5),)
    assert clean.min_snr_db is not None
    assert 3.9 < clean.min_snr_db < 20


def test_without_confidence_worth_a_threshold_the_finer_scale_is_chosen() -> None:
    blind = [_trial(t.snr_db, {s: p.num_errors for s, p in t.passes.items()}, 0.5) for t in _trials()]
    clean, _ = calibrate(blind, A4V2).bands
    assert [step.scale for step in clean.steps] == [A4]


def test_errors_are_traded_for_operations() -> None:
    """The finest takes 130; 80 utterances by what is best of all 27."""
    cheap = calibrate(_trials(), A4V2, share=0.2).bands
    assert [[step.scale for step in band.steps] for band in cheap] == [[A16], [V5]]
    assert calibrate(_trials(), A4V2, share=0.001).bands == cheap  # nothing that was tried is cheaper


def test_where_only_the_finest_scale_is_right_it_is_taken_if_it_may_cost_so_much() -> None:
    rng = np.random.default_rng(0)
    trials = [_trial(float(rng.uniform(0, 30)), {A16: 3, A4: 2, V5: 2, A4V2: 0}, 0.9) for _ in range(40)]
    [band] = calibrate(trials, A4V2, share=1.0).bands
    assert band.steps == (StepConfig(A4V2),)


def test_what_was_promised_is_what_the_policy_does() -> None:
    """Errors and operations of `Auto` on the trials are no more than those of the finest scale and fewer, in turn."""
    trials = _trials()
    auto = Auto(GRID, calibrate(trials, A4V2))
    errors = flops = 0
    for trial in trials:
        known, tried = Known(3.0, 3.0, trial.snr_db), list[Scale]()
        choice = auto.first(known)
        while choice is not None:
            tried.append(choice.scale)
            choice = auto.next(known, [Attempt(s, "", trial.passes[s].confidence) for s in tried])
        errors += trial.passes[tried[-1]].num_errors
        flops += sum(trial.passes[s].flops for s in tried) + sum(ENCODE[m] for m in {m for s in tried for m in s.task})
    assert errors == 0
    assert flops == 20 * 20 + 20 * 50 + 40 * 32


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="9 utterances given"):
        calibrate(_trials()[:9], A4V2)
    with pytest.raises(ValueError, match="all decoded at a16v5"):
        calibrate(_trials(), Scale(16, 5))
