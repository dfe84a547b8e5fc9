"""Word errors against counts by hand and against jiwer; the interval against planted distributions."""

import time

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsk.evaluation.wer import (
    WordErrors,
    aligned_hits,
    corpus_rate,
    normalize,
    wer_with_interval,
    word_errors,
)

SENTENCES = st.lists(st.sampled_from(["a", "B", "c", "dd", "E"]), max_size=7).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("bin blue at f two now", "bin blue at f two now", WordErrors(0, 0, 0, 6)),
        ("bin blue at f two now", "BIN  Blue\tat f two now\n", WordErrors(0, 0, 0, 6)),
        ("bin blue at f two now", "bin blue by f two", WordErrors(1, 1, 0, 6)),
        ("bin blue", "please bin blue now then", WordErrors(0, 0, 3, 2)),
        ("a b", "", WordErrors(0, 2, 0, 2)),
        ("", "a b c", WordErrors(0, 0, 3, 0)),
        ("", "", WordErrors(0, 0, 0, 0)),
        ("now", "now.", WordErrors(0, 0, 0, 1)),  # punctuation does not count
    ],
)
def test_counts_by_hand(reference, hypothesis, expected):
    assert word_errors(reference, hypothesis) == expected


def test_normalize_lowers_drops_punctuation_and_splits():
    assert normalize("  Don't\tSTOP, now. ") == ["don't", "stop", "now"]


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=6))
def test_corpus_rate_is_jiwers(pairs):
    references, hypotheses = [list(column) for column in zip(*pairs, strict=True)]
    if not any(normalize(reference) for reference in references):
        with pytest.raises(ValueError, match="at least one reference word"):
            corpus_rate(references, hypotheses)
        return
    expected = jiwer.process_words([text.lower() for text in references], [text.lower() for text in hypotheses])
    rate = corpus_rate(references, hypotheses)
    assert rate.value == pytest.approx(expected.wer)
    assert rate.words == expected.hits + expected.substitutions + expected.deletions
    assert rate.utterances == len(pairs)


@given(SENTENCES, SENTENCES)
def test_hits_by_position_agree_with_the_counts(reference, hypothesis):
    errors, hits = word_errors(reference, hypothesis), aligned_hits(reference, hypothesis)
    assert len(hits) == errors.words
    assert hits.count(False) == errors.substitutions + errors.deletions


def test_hits_name_the_position():
    assert aligned_hits("bin blue at f two now", "so bin blue by f now") == [True, True, False, True, False, True]


def test_rate_may_exceed_one():
    rate = corpus_rate(["a b", "c d"], ["x y z u v", "x y z u"])
    assert rate.value == 9 / 4
    assert 1 < rate.low <= rate.value <= rate.high <= 2.5


def test_interval_is_deterministic_and_depends_on_the_seed():
    generator = np.random.default_rng(3)
    errors = [WordErrors(int(count), 0, 0, 6) for count in generator.integers(0, 5, size=100)]
    assert wer_with_interval(errors, seed=4) == wer_with_interval(errors, seed=4)
    assert wer_with_interval(errors, seed=4) != wer_with_interval(errors, seed=5)


def test_interval_agrees_with_the_normal_approximation():
    """For many utterances of equal length the bootstrap is value +- 1.96 standard errors of the utterance means."""
    counts = np.random.default_rng(0).binomial(10, 0.1, size=2000)
    rate = wer_with_interval([WordErrors(int(count), 0, 0, 10) for count in counts], num_resamples=4000, seed=1)
    margin = 1.96 * (counts / 10).std() / np.sqrt(len(counts))
    assert rate.low == pytest.approx(rate.value - margin, abs=0.07 * margin)
    assert rate.high == pytest.approx(rate.value + margin, abs=0.07 * margin)


def test_interval_covers_the_true_rate_about_as_often_as_it_says():
    """Utterances are clustered: all their words wrong or none, so an interval over words would be far too narrow."""
    generator, true_rate, num_trials, covered = np.random.default_rng(2), 0.2, 200, 0
    for trial in range(num_trials):
        wrong = generator.random(100) < true_rate
        rate = wer_with_interval([WordErrors(6 * int(each), 0, 0, 6) for each in wrong], num_resamples=300, seed=trial)
        covered += rate.low <= true_rate <= rate.high
    assert 0.88 <= covered / num_trials <= 0.99


def test_long_utterances_weigh_more():
    assert wer_with_interval([WordErrors(9, 0, 0, 9), WordErrors(0, 0, 0, 1)]).value == 0.9


def test_empty_reference_adds_errors_and_no_words():
    rate = wer_with_interval([WordErrors(0, 0, 2, 0), WordErrors(1, 0, 0, 4)])
    assert (rate.value, rate.words, rate.utterances) == (0.75, 4, 2)
    assert np.isfinite([rate.low, rate.high]).all()


@pytest.mark.parametrize("errors", [[], [WordErrors(0, 0, 3, 0)]])
def test_no_reference_word_is_refused(errors):
    with pytest.raises(ValueError, match="at least one reference word"):
        wer_with_interval(errors)


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="2 references, but 1 hypotheses"):
        corpus_rate(["a", "b"], ["a"])


def test_a_large_list_takes_no_more_than_seconds():
    errors = [WordErrors(1, 0, 0, 10)] * 5000
    started_s = time.perf_counter()
    wer_with_interval(errors)
    assert time.perf_counter() - started_s < 10
