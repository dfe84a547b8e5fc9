"""Word times and confidences of a text, from the log-probabilities of characters.

The likeliest path of CTC that spells the text says where its characters are (forced alignment by the algorithm of
Viterbi). Letters: S steps of 20 ms, C classes, K states: the characters, with a blank before, between and after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtsk.model.ctc import BLANK, STEP_S, Alphabet
from mtsk.types import Word

Floats = NDArray[np.float32]

_NEVER = np.float32(-1e30)
_LONGEST_SPACE_S = 2.5 * STEP_S


def align_words(log_probs_SC: Tensor, text: str, alphabet: Alphabet, start_s: float = 0.0) -> tuple[Word, ...]:
    """When each word of a text was said, and how well it fits.

    A word's confidence is the probability of its characters on the path, relative to that of the likeliest classes at
    the same time, per character (the geometric mean): 1 where the head would have written the word itself.

    Args:
        log_probs_SC: of one recording, without padding.
        text: words apart by white space; characters outside of the alphabet are ignored.
        start_s: time of the first step.

    Returns:
        One word per word of the text, spelled as there, in order. A word without a character of the alphabet lasts no
        time and has no confidence. Where the text is too long for the recording, all words share its time evenly and
        have confidence 0.
    """
    words = text.split()
    spelled = [alphabet.word_classes(word) for word in words]
    values_SC: Floats = log_probs_SC.float().cpu().numpy()
    path = best_path(values_SC, alphabet.classes(text))
    if path is None:
        edges_s = np.linspace(start_s, start_s + len(values_SC) * STEP_S, len(words) + 1).tolist()
        return tuple(Word(*each, 0.0) for each in zip(words, edges_s[:-1], edges_s[1:], strict=True))
    firsts, ends = path
    best_S = values_SC.max(axis=1)
    timed: list[Word] = []
    position, at_s = 0, start_s
    for word, classes in zip(words, spelled, strict=True):
        if not classes:
            timed.append(Word(word, at_s, at_s))
            continue
        characters = range(position, position + len(classes))
        first, end = int(firsts[characters[0]]), int(ends[characters[-1]])
        loss = float(best_S[first:end].sum()) - _path_score(values_SC, classes, firsts[characters], ends[characters])
        at_s = start_s + end * STEP_S
        timed.append(Word(word, start_s + first * STEP_S, at_s, float(np.exp(-max(0.0, loss) / len(classes)))))
        position += len(classes) + 1  # the space
    return _closed(timed)


def _closed(words: Sequence[Word]) -> tuple[Word, ...]:
    """Words with no pause between them meet: the space of a step or two that the path has there is shared."""
    closed = list(words)
    for i, (word, following) in enumerate(itertools.pairwise(words)):
        if 0.0 < following.start_s - word.end_s <= _LONGEST_SPACE_S:
            middle_s = (word.end_s + following.start_s) / 2
            closed[i] = replace(closed[i], end_s=middle_s)
            closed[i + 1] = replace(following, start_s=middle_s)
    return tuple(closed)


def text_confidence(log_probs_SC: Tensor, text: str, alphabet: Alphabet) -> float | None:
    """How well a text fits what was read, from 0 to 1: the mean confidence of its words, times the probability of the
    text relative to that of the text that the head itself would write, per character (the geometric mean), so that
    words that are missing count too.

    Returns:
        None if nothing was read; 0 if the text is too long for the recording.
    """
    if len(log_probs_SC) == 0:
        return None
    own_text = alphabet.read(log_probs_SC.argmax(dim=-1).tolist())
    classes, own_classes = alphabet.classes(text), alphabet.classes(own_text)
    gap = _log_likelihood(log_probs_SC, classes) - _log_likelihood(log_probs_SC, own_classes)
    relative = math.exp(min(0.0, gap) / max(1, len(classes), len(own_classes)))
    of_words = [word.confidence for word in align_words(log_probs_SC, text, alphabet) if word.confidence is not None]
    return relative * (sum(of_words) / len(of_words) if of_words else 1.0)


def _log_likelihood(log_probs_SC: Tensor, classes: Sequence[int]) -> float:
    """Of all paths that spell the classes."""
    lengths = torch.tensor(len(log_probs_SC)), torch.tensor(len(classes))
    target = torch.tensor(classes, dtype=torch.int64)
    return -float(functional.ctc_loss(log_probs_SC.float().cpu(), target, *lengths, blank=BLANK, reduction="sum"))


def best_path(values_SC: Floats, classes: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Where each class begins and ends (first step, step after the last) on the likeliest path that spells them all.

    Returns:
        Two arrays, as long as `classes`; None if there are too few steps.
    """
    num_steps, num_classes = len(values_SC), len(classes)
    num_equal = sum(a == b for a, b in itertools.pairwise(classes))
    if num_classes + num_equal > num_steps:
        return None
    if not classes:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    states_K = np.full(2 * num_classes + 1, BLANK)
    states_K[1::2] = classes
    emitted_SK = values_SC[:, states_K]
    # What it costs to come from two states before: nothing between unlike characters, past the blank.
    skip_K = np.full(len(states_K), _NEVER, np.float32)
    skip_K[3::2] = np.where(states_K[3::2] != states_K[1:-2:2], np.float32(0.0), _NEVER)
    # Two columns in front that can't be, so that the first states have predecessors.
    best_SK = np.full((num_steps, len(states_K) + 2), _NEVER, np.float32)
    best_SK[0, 2:4] = emitted_SK[0, :2]
    here_K = np.empty(len(states_K), np.float32)
    for before_K, now_K, emitted_K in zip(best_SK[:-1], best_SK[1:], emitted_SK[1:], strict=True):
        np.add(before_K[:-2], skip_K, out=here_K)
        np.maximum(here_K, before_K[1:-1], out=here_K)
        np.maximum(here_K, before_K[2:], out=here_K)
        np.add(here_K, emitted_K, out=now_K[2:])
    return _trace(best_SK, skip_K, num_classes)


def _trace(best_SK: Floats, skip_K: Floats, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Follows the best path back from the end; of equal ways the one that stays longest."""
    firsts, ends = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    num_steps = len(best_SK)
    state = 2 * num_classes - (1 if best_SK[-1, -2] > best_SK[-1, -1] else 0)
    for step in range(num_steps - 1, -1, -1):
        if state % 2:
            firsts[state // 2] = step
            ends[state // 2] = max(ends[state // 2], step + 1)
        if step:
            stay, one, two = best_SK[step - 1, state : state + 3][::-1].tolist()
            two += float(skip_K[state])
            state -= 0 if stay >= max(one, two) else 1 if one >= two else 2
    return firsts, ends


def _path_score(values_SC: Floats, classes: Sequence[int], firsts: NDArray[np.int64], ends: NDArray[np.int64]) -> float:
    """Log-probability of a word's stretch of the path: its characters, and blanks between them."""
    total = 0.0
    for position, (number, first, end) in enumerate(zip(classes, firsts.tolist(), ends.tolist(), strict=True)):
        total += float(values_SC[first:end, number].sum())
        if position:
            total += float(values_SC[int(ends[position - 1]) : first, BLANK].sum())
    return total
