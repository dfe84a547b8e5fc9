"""Labels from word times: against millisecond counting, by their properties, and through the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mtsk.training.labels import BLANK, TimedLabels, Units, greedy_classes, token_error_rate, window_shares
from mtsk.types import Word
from tests.tiny import TEXTS, tiny_llm

NUM_CLASSES = 5
PROMPTS = tiny_llm().prompts
UNITS = Units.of_texts(TEXTS, PROMPTS)

# Pause before a word, milliseconds of each of its tokens, and its classes.
spoken = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 150), st.lists(st.integers(1, NUM_CLASSES - 1), max_size=4)),
    max_size=6,
)


def _laid_out(spoken_words: list[tuple[int, int, list[int]]]) -> tuple[list[Word], list[list[int]], list[int]]:
    """Words, their classes, and the class of each millisecond."""
    words, classes, at_ms = [], [], []
    for pause_ms, token_ms, its_classes in spoken_words:
        at_ms += [BLANK] * pause_ms
        start_ms = len(at_ms)
        at_ms += [number for number in its_classes for _ in range(token_ms)] or [BLANK] * token_ms
        words.append(Word("w", start_ms / 1000, len(at_ms) / 1000))
        classes.append(its_classes)
    return words, classes, at_ms


def _dense(shares: dict[tuple[int, int], float], num_windows: int) -> np.ndarray:
    shares_KC = np.zeros((num_windows, NUM_CLASSES))
    for place, share in shares.items():
        shares_KC[place] = share
    return shares_KC


@settings(deadline=None, max_examples=100)
@given(spoken, st.sampled_from([20, 40, 80, 320]), st.integers(0, 30))
def test_shares_are_counted_milliseconds(spoken_words, window_ms: int, num_windows: int) -> None:
    words, classes, at_ms = _laid_out(spoken_words)
    shares_KC = _dense(window_shares(words, classes, num_windows, window_ms / 1000), num_windows)
    at_ms = (at_ms + [BLANK] * num_windows * window_ms)[: num_windows * window_ms]
    expected = np.zeros((num_windows, NUM_CLASSES))
    for ms, number in enumerate(at_ms):
        expected[ms // window_ms, number] += 1 / window_ms
    np.testing.assert_allclose(shares_KC, expected, atol=1e-5)
    np.testing.assert_allclose(shares_KC.sum(axis=1), 1.0, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(spoken, st.sampled_from([0.03, 0.04, 0.08, 0.32]))
def test_every_token_gets_its_time(spoken_words, window_s: float) -> None:
    words, classes, at_ms = _laid_out(spoken_words)
    num_windows = int(len(at_ms) / 1000 / window_s) + 1
    time_C = _dense(window_shares(words, classes, num_windows, window_s), num_windows).sum(axis=0) * window_s
    np.testing.assert_allclose(time_C[1:], np.bincount(at_ms, minlength=NUM_CLASSES)[1:] / 1000, atol=1e-4)


def test_words_that_overlap_share() -> None:
    words = [Word("a", 0.0, 0.04), Word("b", 0.0, 0.04)]
    assert window_shares(words, [[1], [2]], 1, 0.04) == {(0, 1): 0.5, (0, 2): 0.5}


def test_units_are_the_tokens_of_the_texts() -> None:
    text = TEXTS[0]
    sequence = UNITS.sequence(text, PROMPTS)
    assert [UNITS.token_ids[number - 1] for number in sequence] == PROMPTS.target(text)[:-1]
    assert UNITS.num_classes == len(UNITS.token_ids) + 1
    assert BLANK not in sequence
    assert Units.of_vocabulary(PROMPTS).num_classes == PROMPTS.vocabulary.size + 1
    assert Units.of_texts(["bin"], PROMPTS).sequence("bin zzz bin", PROMPTS) == [
        *Units.of_texts(["bin"], PROMPTS).sequence("bin", PROMPTS) * 2
    ]


def _labels(window_s: float = 0.04) -> tuple[TimedLabels, list[int]]:
    """Two rows whose tokens each fill three windows and are followed by a blank one; a third without word times."""
    texts = (TEXTS[0], TEXTS[3], TEXTS[1])
    words: list[tuple[Word, ...]] = []
    lengths = []
    for text in texts:
        edges, its_words = 0, []
        for word in text.split():
            num_tokens = len(PROMPTS.word_ids(word))
            its_words.append(Word(word, edges * window_s, (edges + 3 * num_tokens) * window_s))
            edges += 3 * num_tokens + 1
        words.append(tuple(its_words))
        lengths.append(edges)
    words[2] = ()
    return TimedLabels.of(words, texts, UNITS, PROMPTS, lengths=lengths, window_s=window_s), lengths


def _shares(labels: TimedLabels, lengths: list[int]) -> torch.Tensor:
    shares_BKC = torch.zeros(len(lengths), max(lengths), UNITS.num_classes)
    shares_BKC[tuple(labels.places_3S)] = labels.shares_S
    return shares_BKC


def test_perfect_logits_have_no_loss() -> None:
    labels, lengths = _labels()
    # A blank between equal neighbours is what CTC needs too; none of these texts repeats a token within a word.
    logits_BKC = 60.0 * _shares(labels, lengths)[:2]
    sequences = labels.sequence_BL[:2], labels.sequence_lengths_B[:2]
    timed = TimedLabels(labels.places_3S, labels.shares_S, *sequences)
    assert float(timed.share_loss(logits_BKC)) == pytest.approx(0.0, abs=1e-4)
    assert float(timed.ctc_loss(logits_BKC, torch.tensor(lengths[:2]))) == pytest.approx(0.0, abs=1e-4)
    wrong_BKC = logits_BKC.roll(1, dims=-1)
    assert float(timed.share_loss(wrong_BKC)) > 10.0
    assert float(timed.ctc_loss(wrong_BKC, torch.tensor(lengths[:2]))) > 10.0
    read = greedy_classes(logits_BKC, torch.tensor(lengths[:2]))
    assert read == [UNITS.sequence(text, PROMPTS) for text in (TEXTS[0], TEXTS[3])]


def test_share_loss_is_a_mean_over_timed_windows() -> None:
    labels, lengths = _labels()
    shares_BKC = _shares(labels, lengths)
    logits_BKC = torch.randn(shares_BKC.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = labels.share_loss(logits_BKC)
    windows = [
        functional.cross_entropy(logits_BKC[row, window], shares_BKC[row, window])
        for row in (0, 1)
        for window in range(lengths[row])
    ]
    torch.testing.assert_close(loss, torch.stack(windows).mean())
    torch.autograd.backward(loss)
    assert logits_BKC.grad is not None
    assert not logits_BKC.grad[2].any(), "a row without word times was learned from"
    shorter = min(lengths[:2])
    assert not logits_BKC.grad[lengths.index(shorter), shorter:].any(), "padding was learned from"
    assert logits_BKC.grad[0].any()


def test_embedding_loss_is_a_mean_squared_distance() -> None:
    labels, lengths = _labels()
    shares_BKC = _shares(labels, lengths)
    classes_CE = torch.randn(UNITS.num_classes, 6, generator=torch.Generator().manual_seed(0))
    wanted_BKE = shares_BKC @ classes_CE
    assert float(labels.embedding_loss(wanted_BKE, classes_CE)) == pytest.approx(0.0, abs=1e-6)
    tokens_BKE = torch.randn(wanted_BKE.shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = labels.embedding_loss(tokens_BKE, classes_CE)
    windows = [
        (tokens_BKE - wanted_BKE)[row, window].square().sum() for row in (0, 1) for window in range(lengths[row])
    ]
    torch.testing.assert_close(loss, torch.stack(windows).mean() / classes_CE.var(dim=0).sum())
    torch.autograd.backward(loss)
    assert tokens_BKE.grad is not None
    assert not tokens_BKE.grad[2].any(), "a row without word times was learned from"
    nothing = TimedLabels.of([(), ()], TEXTS[:2], UNITS, PROMPTS, lengths=[0, 0], window_s=0.04)
    assert float(nothing.embedding_loss(torch.zeros(2, 0, 6), classes_CE)) == 0.0


def test_ctc_loss_is_a_mean_over_tokens() -> None:
    labels, lengths = _labels()
    logits_BKC = torch.randn(_shares(labels, lengths).shape, generator=torch.Generator().manual_seed(1))
    total = torch.tensor(0.0)
    for row, length in enumerate(lengths):
        sequence = labels.sequence_BL[row, : labels.sequence_lengths_B[row]]
        log_probs = logits_BKC[row, :length].log_softmax(-1)[:, None]
        lengths_1, sizes_1 = torch.tensor([length]), torch.tensor([len(sequence)])
        total += functional.ctc_loss(log_probs, sequence[None], lengths_1, sizes_1, reduction="sum")
    expected = total / labels.sequence_lengths_B.sum()
    torch.testing.assert_close(labels.ctc_loss(logits_BKC, torch.tensor(lengths)), expected)


def test_rows_too_short_for_their_text_count_as_zero() -> None:
    labels, lengths = _labels()
    logits_BKC = torch.randn(
        _shares(labels, lengths).shape, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    loss = labels.ctc_loss(logits_BKC, torch.tensor([lengths[0], 2, 0]))
    torch.autograd.backward(loss)
    assert logits_BKC.grad is not None
    assert logits_BKC.grad.isfinite().all()
    assert logits_BKC.grad[0].any()
    assert not logits_BKC.grad[1:].any()


def test_a_batch_without_windows_has_no_loss() -> None:
    labels = TimedLabels.of([(), ()], TEXTS[:2], UNITS, PROMPTS, lengths=[0, 0], window_s=0.04)
    logits_BKC = torch.zeros(2, 0, UNITS.num_classes, requires_grad=True)
    loss = labels.share_loss(logits_BKC) + labels.ctc_loss(logits_BKC, torch.tensor([0, 0]))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0


def test_greedy_reading_merges_and_drops_blanks() -> None:
    best = torch.tensor([[1, 1, 0, 1, 2, 2, 3], [0, 0, 4, 4, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2]])
    logits_BKC = functional.one_hot(best, NUM_CLASSES).float()
    assert greedy_classes(logits_BKC, torch.tensor([7, 4, 0])) == [[1, 1, 2, 3], [4], []]


def test_token_error_rate() -> None:
    assert token_error_rate([[1, 2, 3], [4]], [[1, 2, 3], [4]]) == 0.0
    assert token_error_rate([[1, 2, 3], [4]], [[1, 3], [5]]) == pytest.approx(2 / 4)
    assert token_error_rate([[1, 2], []], [[1, 2], [3]]) == pytest.approx(1 / 2)  # tokens outside of training
