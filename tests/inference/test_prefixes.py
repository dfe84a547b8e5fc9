"""CTC prefix probabilities against sums over all ways to read, and against torch's CTC loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mtsk.inference.prefixes import PrefixScorer
from mtsk.model.ctc import Alphabet

ALPHABET = Alphabet(" ab")
TOKENS = {1: " a", 2: "b", 3: " b", 4: "ab", 5: " aa", 6: "?", 7: " ", 8: "A"}


def _log_probs(num_steps: int, seed: int) -> Tensor:
    return torch.randn(num_steps, ALPHABET.num_classes, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def _probability(log_probs_SC: Tensor, matches: list[int], *, whole: bool) -> float:
    """Of reading that begins with the classes, or is just them, by going through all paths."""
    total = 0.0
    for path in itertools.product(range(ALPHABET.num_classes), repeat=len(log_probs_SC)):
        read = [number for number, _ in itertools.groupby(path) if number]
        if (read if whole else read[: len(matches)]) == matches:
            total += math.exp(sum(float(log_probs_SC[step, number]) for step, number in enumerate(path)))
    return total


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        ([1], "a"),
        ([1, 2], "ab"),
        ([1, 3], "a b"),
        ([5], "aa"),
        ([5, 3], "aa b"),
        ([3, 2], "bb"),
        ([1, 8], "aa"),
        ([1, 7, 8], "a a"),
    ],
)
def test_it_sums_over_all_paths(tokens: list[int], written: str) -> None:
    log_probs_SC = _log_probs(5, 1)
    scorer = PrefixScorer(log_probs_SC, ALPHABET, TOKENS.__getitem__)
    prefix = scorer.start()
    for token in tokens:
        [prefix] = scorer.extend([prefix], [token])
    classes = ALPHABET.classes(written)
    assert math.exp(prefix.logprob) == pytest.approx(_probability(log_probs_SC, classes, whole=False), rel=1e-6)
    assert math.exp(prefix.whole_logprob) == pytest.approx(_probability(log_probs_SC, classes, whole=True), rel=1e-6)


def test_many_at_once_are_each_alone() -> None:
    scorer = PrefixScorer(_log_probs(9, 2), ALPHABET, TOKENS.__getitem__)
    begun = scorer.extend([scorer.start()] * 3, [1, 5, 3])
    together = scorer.extend([begun[0], begun[0], begun[1], begun[2], begun[2]], [2, 7, 4, 6, 5])
    alone = [scorer.extend([begun[i]], [t])[0] for i, t in ((0, 2), (0, 7), (1, 4), (2, 6), (2, 5))]
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in alone])
    assert [each.last for each in together] == [each.last for each in alone]


def test_long_texts_stay_exact() -> None:
    """As torch's CTC loss, also where probabilities are far below what a float holds."""
    log_probs_SC = (8 * _log_probs(800, 3)).log_softmax(-1)
    scorer = PrefixScorer(log_probs_SC, ALPHABET, TOKENS.__getitem__)
    prefix, text = scorer.start(), ""
    for token in [1, 2, 3, 5, 4] * 12:
        [longer] = scorer.extend([prefix], [token])
        assert longer.logprob <= prefix.logprob + 1e-9
        prefix, text = longer, text + TOKENS[token]
    classes = torch.tensor(ALPHABET.classes(text))
    lengths = torch.tensor(800), torch.tensor(len(classes))
    loss = torch.nn.functional.ctc_loss(log_probs_SC.double()[:, None], classes[None], *lengths, reduction="sum")
    assert prefix.whole_logprob == pytest.approx(-float(loss), rel=1e-9)
    assert prefix.whole_logprob < -1000


def test_nothing_to_spell_changes_nothing() -> None:
    scorer = PrefixScorer(_log_probs(4, 4), ALPHABET, TOKENS.__getitem__)
    start = scorer.start()
    [same, impossible] = scorer.extend([start] * 2, [7, 6])
    assert same.logprob == 0.0
    assert impossible.logprob == -math.inf, "the head does not know the sign"
    assert same.whole_logprob == pytest.approx(float(_log_probs(4, 4)[:, 0].sum()), rel=1e-6)


def test_what_can_be_of_no_use_is_given_up() -> None:
    scorer = PrefixScorer(_log_probs(9, 5), ALPHABET, TOKENS.__getitem__)
    one, two = (each.logprob for each in scorer.extend([scorer.start()] * 2, [1, 5]))
    for least, expected in ((two - 1e-9, two), ((one + two) / 2, two), (one + 1e-9, -math.inf)):
        [prefix, other] = scorer.extend([scorer.start()] * 2, [5, 1], [least, -math.inf])
        assert prefix.logprob == pytest.approx(expected), "it is given up once a beginning of it is too unlikely"
        assert other.logprob == pytest.approx(one)
