"""Results: the file gives back what was put in, and the statistics are those of slow and plain computations."""

import dataclasses
import json

import numpy as np
import pytest

from mtsk.evaluation.wer import WordErrors, wer_with_interval
from mtsk.scale import Scale
from mtsk.studies.results import (
    NUM_RESAMPLES,
    Cell,
    Cost,
    Measured,
    Results,
    Row,
    RunFacts,
    blocks,
    difference,
    load_results,
    save_results,
    wer,
)

A4, A8, A4V2 = Scale(4), Scale(8), Scale(4, 2)
MEASURED = Measured("ASR", "MS", "average", 1, A4, None, (1, 0), (6, 4))
RESULTS = Results(
    "Strategies, é",
    {"hardware": "2 cores"},
    (MEASURED, dataclasses.replace(MEASURED, scale=None, snr_db=-2.5)),
    (Cost(A4V2, 57.0, 0.25, 0.5),),
    (RunFacts("ASR", "MS", "average", 1, (A4, A8), 1000, 20, 3.5),),
)


def cell(num_seeds: int, num_utterances: int = 40, seed: int = 0, words: np.ndarray | None = None) -> Cell:
    rng = np.random.default_rng(seed)
    words_U = rng.integers(0, 9, num_utterances) if words is None else words
    return Cell(tuple(range(1, num_seeds + 1)), rng.poisson(1.0, (num_seeds, len(words_U))), words_U)


def draws(num_utterances: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(num_utterances, size=num_utterances) for _ in range(NUM_RESAMPLES)]


def test_the_file_gives_back_what_was_put_in(tmp_path):
    path = tmp_path / "new" / "results.json"
    save_results(RESULTS, path)
    assert load_results(path) == RESULTS
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert plain["measured"][0] == {
        **{"matrix": "ASR", "method": "MS", "compressor": "average", "seed": 1, "scale": "a4", "snr_db": None},
        **{"errors": [1, 0], "num_words": [6, 4]},
    }
    save_results(Results("nothing yet", {}), path)
    assert load_results(path) == Results("nothing yet", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 3}, "speed"),
        ({"errors": [1.5, 0]}, r"errors\[0\]"),
        ({"errors": [1]}, "1 error counts for 2 utterances"),
        ({"errors": [-1, 0]}, "negative"),
        ({"num_words": [0, 0]}, "at least one reference word"),
        ({"scale": "4"}, "not a scale"),
    ],
)
def test_a_wrong_record_is_refused_with_the_file_and_the_place(tmp_path, change, message):
    path = tmp_path / "results.json"
    save_results(RESULTS, path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    plain["measured"][0] |= change
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"results\.json: .*{message}"):
        load_results(path)


def test_numbers_that_json_lacks_are_refused_both_ways(tmp_path):
    path = tmp_path / "results.json"
    save_results(RESULTS, path)
    old = path.read_text(encoding="utf-8")
    run = dataclasses.replace(RESULTS.runs[0], train_s=float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_results(dataclasses.replace(RESULTS, runs=(run,)), path)
    assert path.read_text(encoding="utf-8") == old
    path.write_text(old.replace("3.5", "NaN"), encoding="utf-8")
    with pytest.raises(ValueError, match="NaN is no JSON number"):
        load_results(path)


def test_the_same_cell_twice_and_other_utterances_are_refused():
    with pytest.raises(ValueError, match="ASR, MS, average, seed 1, a4, clean occurs twice"):
        Results("", {}, (MEASURED, dataclasses.replace(MEASURED, errors=(0, 0))))
    with pytest.raises(ValueError, match="not the same utterances"):
        Results("", {}, (MEASURED, dataclasses.replace(MEASURED, method="SS", num_words=(4, 6))))
    with pytest.raises(ValueError, match="a4v2 occurs twice"):
        Results("", {}, costs=RESULTS.costs * 2)


def test_one_seed_has_the_rate_and_interval_of_an_evaluation():
    one = cell(1)
    errors = [WordErrors(int(e), 0, 0, int(w)) for e, w in zip(one.errors_SU[0], one.words_U, strict=True)]
    expected = wer_with_interval(errors)
    found = wer(one)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.seed_sd is None


def test_several_seeds_share_the_draws():
    three = cell(3)
    by_draw = [
        np.mean([errors[draw].sum() / three.words_U[draw].sum() for errors in three.errors_SU])
        for draw in draws(len(three.words_U))
    ]
    rates = [errors.sum() / three.words_U.sum() for errors in three.errors_SU]
    found = wer(three)
    assert found.value == pytest.approx(np.mean(rates))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_draw, [0.025, 0.975])))
    assert found.seed_sd == pytest.approx(np.std(rates, ddof=1))
    assert found.num_seeds == 3


def test_the_paired_difference_is_that_of_the_common_seeds_on_the_same_draws():
    ours = cell(3, seed=1)
    theirs = cell(2, seed=2, words=ours.words_U)
    by_draw = [
        (ours.errors_SU[:2, draw].sum() - theirs.errors_SU[:, draw].sum()) / (2 * ours.words_U[draw].sum())
        for draw in draws(len(ours.words_U))
    ]
    found = difference(ours, theirs)
    assert found is not None
    assert found.num_seeds == 2
    assert found.value == pytest.approx((ours.errors_SU[:2].sum() - theirs.errors_SU.sum()) / (2 * ours.words_U.sum()))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_draw, [0.025, 0.975])))
    assert difference(ours, dataclasses.replace(theirs, seeds=(8, 9))) is None


def test_a_paired_difference_sees_what_two_intervals_do_not():
    """One error more in every fifth utterance is certain, although utterances differ among themselves by far more."""
    rng = np.random.default_rng(5)
    words = np.full(100, 10)
    theirs = rng.choice([0, 10], size=(1, 100))
    ours = theirs + (np.arange(100) % 5 == 0)
    a, b = Cell((1,), ours, words), Cell((1,), theirs, words)
    found = difference(a, b)
    assert found is not None
    assert found.value == pytest.approx(0.02)
    assert found.excludes_zero
    assert wer(a).low < wer(b).high
    same = difference(b, b)
    assert same is not None
    assert not same.excludes_zero


def test_draws_of_only_empty_references_are_left_out():
    found = wer(Cell((1,), np.array([[1, 0]]), np.array([2, 0])))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_blocks_have_what_was_measured_and_what_was_only_trained():
    runs = (
        RunFacts("ASR", "SS", "average", 1, (A8,), 1, 1, 1.0),
        RunFacts("VSR", "MS", "average", 1, (A4,), 1, 1, 1.0),
    )
    quiet = dataclasses.replace(MEASURED, snr_db=5.0)
    asr, vsr = blocks(Results("", {}, (quiet, MEASURED, dataclasses.replace(quiet, scale=None)), runs=runs))
    assert (asr.matrix, vsr.matrix) == ("ASR", "VSR")
    assert asr.rows == (Row("MS", "average"), Row("SS", "average"))
    assert asr.scales == (A4, A8)
    assert asr.snrs_db == (None, 5.0)
    assert asr.wer(Row("SS", "average"), A8) is None
    no_input = asr.no_input(Row("MS", "average"))
    assert no_input is not None
    assert no_input.value == pytest.approx(0.1)
    assert vsr.cells == {}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["MS average", "independent average", "MS stack"], ["independent average", None, "independent average"]),
        (
            ["independent average", "independent stack", "SS stack", "SS average"],
            [None, None, "independent stack", "independent average"],
        ),
        (["SS average", "MSS average"], [None, "SS average"]),
    ],
)
def test_what_a_row_is_compared_with(rows, expected):
    measured = [
        dataclasses.replace(MEASURED, method=method, compressor=compressor)
        for method, compressor in map(str.split, rows)
    ]
    (block,) = blocks(Results("", {}, tuple(measured)))
    found = [block.reference(row) for row in block.rows]
    assert [None if each is None else f"{each.method} {each.compressor}" for each in found] == expected
