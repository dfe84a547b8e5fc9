"""Forced alignment against every path there is, and what becomes of a text that does not fit."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mtsk.inference.words import align_words, best_path, text_confidence
from mtsk.model.ctc import STEP_S, Alphabet
from mtsk.types import Word

ALPHABET = Alphabet(" 'abc")
STEP = STEP_S


def _log_probs(num_steps: int, seed: int = 0) -> Tensor:
    return torch.randn(num_steps, ALPHABET.num_classes, generator=torch.manual_seed(seed)).log_softmax(dim=-1)


def _sure(text: str) -> Tensor:
    """A step for each character of a text in which _ is the blank; the head is nearly sure of it."""
    logits = torch.zeros(len(text), ALPHABET.num_classes)
    for step, character in enumerate(text):
        logits[step, 0 if character == "_" else ALPHABET.characters.index(character) + 1] = 12.0
    return logits.log_softmax(dim=-1)


def _edges(words: Sequence[Word]) -> list[float]:
    return [edge_s for word in words for edge_s in (word.start_s, word.end_s)]


def _naive(values_SC: np.ndarray, classes: list[int]) -> tuple[float, list[tuple[int, ...]]]:
    """The best score of all paths that spell the classes, and those that have it (to rounding)."""
    scored = []
    for path in itertools.product(range(values_SC.shape[1]), repeat=len(values_SC)):
        if [number for number, _ in itertools.groupby(path) if number] == classes:
            scored.append((float(sum(values_SC[step, number] for step, number in enumerate(path))), path))
    best = max(score for score, _ in scored)
    return best, [path for score, path in scored if score > best - 1e-4]


@pytest.mark.parametrize("text", ["a", "ab", "aa", "a b", "aab", "b'b", "ca a"])
@pytest.mark.parametrize("num_steps", [5, 6])
def test_the_best_of_all_paths(text: str, num_steps: int) -> None:
    for seed in range(3):
        values_SC = _log_probs(num_steps, seed).numpy()
        classes = ALPHABET.classes(text)
        _, paths = _naive(values_SC, classes)
        assert len(paths) == 1
        expected, position = [], 0
        for number, group in itertools.groupby(paths[0]):
            length = len(list(group))
            if number:
                expected.append((position, position + length))
            position += length
        found = best_path(values_SC, classes)
        assert found is not None
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


def test_words_are_where_their_characters_are() -> None:
    words = align_words(_sure("__aab___   c_c__  b_"), "AB cc b", ALPHABET, start_s=1.0)[:2]
    assert [word.text for word in words] == ["AB", "cc"]
    assert _edges(words) == pytest.approx([1 + 2 * STEP, 1 + 5 * STEP, 1 + 11 * STEP, 1 + 14 * STEP])


def test_words_without_a_pause_meet() -> None:
    words = align_words(_sure("_aa bb__"), "a b", ALPHABET)
    assert _edges(words) == pytest.approx([STEP, 3.5 * STEP, 3.5 * STEP, 6 * STEP])


def test_characters_of_no_alphabet() -> None:
    log_probs_SC = _sure("_aa   b__")
    plain = align_words(log_probs_SC, "a b", ALPHABET)
    marked = align_words(log_probs_SC, "¿Á? – b!", ALPHABET)
    assert [word.text for word in marked] == ["¿Á?", "–", "b!"]
    times = [(word.start_s, word.end_s, word.confidence) for word in marked]
    assert [times[0], times[2]] == [(word.start_s, word.end_s, word.confidence) for word in plain]
    assert times[1] == (plain[0].end_s, plain[0].end_s, None)
    assert [word.confidence for word in align_words(log_probs_SC, "– 猫", ALPHABET)] == [None, None]
    assert align_words(log_probs_SC, " ", ALPHABET) == ()
    assert align_words(log_probs_SC[:0], "–", ALPHABET)[0].end_s == 0.0


def test_a_text_that_is_too_long_shares_the_time() -> None:
    words = align_words(_log_probs(4), "ab cab", ALPHABET)
    assert _edges(words) == pytest.approx([0.0, 2 * STEP, 2 * STEP, 4 * STEP])
    assert [word.confidence for word in words] == [0.0, 0.0]
    assert text_confidence(_log_probs(4), "ab cab", ALPHABET) == 0.0
    assert [word.confidence for word in align_words(_log_probs(0), "a b", ALPHABET)] == [0.0, 0.0]


def test_order_and_bounds_on_noise() -> None:
    for seed in range(5):
        words = align_words(_log_probs(60, seed), "abc cab a bb ca'b", ALPHABET)
        edges = _edges(words)
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= 60 * STEP
        assert all(0 <= (word.confidence or 0) <= 1 for word in words)


def test_confidence_of_words_and_texts() -> None:
    log_probs_SC = _sure("_aa   bb_")
    right, wrong = (align_words(log_probs_SC, text, ALPHABET) for text in ("a b", "a c"))
    assert right[0].confidence == pytest.approx(1.0)
    assert right[1].confidence == pytest.approx(1.0)
    assert wrong[0].confidence == pytest.approx(1.0)
    assert wrong[1].confidence is not None
    assert wrong[1].confidence < 0.01
    of_text = {text: text_confidence(log_probs_SC, text, ALPHABET) for text in ("a b", "a", "a c", "a b c", "")}
    assert of_text["a b"] == pytest.approx(1.0)
    assert all(value is not None and value < 0.5 for text, value in of_text.items() if text != "a b")
    assert text_confidence(_sure("___"), "", ALPHABET) == 1.0
    assert text_confidence(log_probs_SC[:0], "a", ALPHABET) is None


def test_confidence_of_a_text_counts_all_its_paths() -> None:
    values_SC, texts = _log_probs(5), {"text": "ab", "own": ""}
    texts["own"] = ALPHABET.read(values_SC.argmax(dim=-1).tolist())
    total = dict.fromkeys(texts, 0.0)
    for path in itertools.product(range(ALPHABET.num_classes), repeat=5):
        spelled = [number for number, _ in itertools.groupby(path) if number]
        for name, text in texts.items():
            if spelled == ALPHABET.classes(text):
                total[name] += math.exp(sum(float(values_SC[step, number]) for step, number in enumerate(path)))
    longer = max(len(ALPHABET.classes(text)) for text in texts.values())
    of_word = align_words(values_SC, "ab", ALPHABET)[0].confidence
    assert of_word is not None
    expected = min(1.0, total["text"] / total["own"]) ** (1 / longer) * of_word
    assert 0 < expected < 1
    assert text_confidence(values_SC, "ab", ALPHABET) == pytest.approx(expected, rel=1e-4)
