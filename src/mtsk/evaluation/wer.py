"""Word error rate: counts per utterance, and the corpus rate with a 95 % bootstrap interval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

CONFIDENCE = 0.95


_WORD = re.compile(r"[\w']+")


@dataclass(frozen=True)
class WordErrors:
    """Word edits that turn one reference into its hypothesis, and the number of reference words."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def total(self) -> int:
        """All edits; more than `words` where many words were invented."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Rate:
    """A corpus WER as a fraction (1.0 is 100 %, larger values are possible) with its 95 % interval."""

    value: float
    low: float
    high: float
    words: int  # reference words
    utterances: int


def normalize(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation except apostrophes, split at the rest.

    On texts without punctuation, such as those of GRID, LRS2 and LRS3, it is the method's own `lower().split()`.
    """
    return _WORD.findall(text.lower())


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Counts the edits of a shortest alignment. Against an empty reference every word is an insertion."""
    words = normalize(reference)
    aligned = jiwer.process_words(" ".join(words), " ".join(normalize(hypothesis)))
    return WordErrors(aligned.substitutions, aligned.deletions, aligned.insertions, len(words))


def aligned_hits(reference: str, hypothesis: str) -> list[bool]:
    """Whether each reference word was recognised, by position. Insertions belong to no position."""
    words = normalize(reference)
    aligned = jiwer.process_words(" ".join(words), " ".join(normalize(hypothesis)))
    hits = [False] * len(words)
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            hits[chunk.ref_start_idx : chunk.ref_end_idx] = [True] * (chunk.ref_end_idx - chunk.ref_start_idx)
    return hits


def wer_with_interval(errors: Sequence[WordErrors], *, num_resamples: int = 1000, seed: int = 0) -> Rate:
    """Corpus WER (all edits over all reference words) with a percentile bootstrap interval over utterances.

    Utterances are drawn, not words, because errors within one utterance depend on each other. The same seed and number
    of utterances give the same draws, so that rates of several systems on one list share them. Where no utterance has
    an error the interval has no width: the bootstrap cannot see errors that did not happen.

    Args:
        errors: one entry per utterance.
        num_resamples: bootstrap draws, each of as many utterances as there are.
        seed: of the draws.

    Raises:
        ValueError: if there is no utterance, or no reference has a word.
    """
    counts = np.array([(error.total, error.words) for error in errors], dtype=np.int64).reshape(-1, 2)
    num_errors, num_words = (int(count) for count in counts.sum(axis=0))
    if num_words == 0:
        raise ValueError(f"WER needs at least one reference word; {len(errors)} utterances have none")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, not {num_resamples}")
    generator = np.random.default_rng(seed)
    num_utterances = len(counts)
    draws = np.stack(
        [counts[generator.integers(num_utterances, size=num_utterances)].sum(axis=0) for _ in range(num_resamples)]
    )
    # A draw of nothing but empty references has no WER; the full list has words, so it is rare and left out.
    draws = draws[draws[:, 1] > 0]
    value = num_errors / num_words
    rates = draws[:, 0] / draws[:, 1] if len(draws) else np.array([value])
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Rate(value, float(low), float(high), num_words, num_utterances)


def corpus_rate(references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0) -> Rate:
    """WER with interval of hypotheses against their references.

    Raises:
        ValueError: if their numbers differ, or no reference has a word.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    errors = [word_errors(reference, hypothesis) for reference, hypothesis in zip(references, hypotheses, strict=True)]
    return wer_with_interval(errors, seed=seed)
