"""Word times -> what each window of time holds, as shares over token classes; and greedy reading of such classes.

Class 0 is the blank: silence, and the blank of CTC. Letters: B rows, K windows of time, C classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import jiwer
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtsk.model.masking import inside
from mtsk.model.prompt import PromptBuilder
from mtsk.types import Word

BLANK = 0


@dataclass(frozen=True)
class Units:
    """Tokens of the LLM as classes 1..n, such as those that occur in the training texts; class 0 is the blank."""

    token_ids: tuple[int, ...]

    @classmethod
    def of_vocabulary(cls, prompts: PromptBuilder) -> Units:
        """Takes every token that the LLM has."""
        return cls(tuple(range(prompts.vocabulary.size)))

    @classmethod
    def of_texts(cls, texts: Iterable[str], prompts: PromptBuilder) -> Units:
        """Collects the tokens of all words."""
        words = {word for text in texts for word in text.split()}
        return cls(tuple(sorted({token for word in words for token in prompts.word_ids(word)})))

    @property
    def num_classes(self) -> int:
        """Classes with the blank."""
        return len(self.token_ids) + 1

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {token: i + 1 for i, token in enumerate(self.token_ids)}

    def classes(self, words: Iterable[str], prompts: PromptBuilder) -> list[list[int]]:
        """For each word the classes of its tokens; tokens that are no class are left out."""
        number = self._numbers
        return [[number[token] for token in prompts.word_ids(word) if token in number] for word in words]

    def sequence(self, text: str, prompts: PromptBuilder) -> list[int]:
        """The classes of a text in order."""
        return [number for its_classes in self.classes(text.split(), prompts) for number in its_classes]


def window_shares(
    words: Sequence[Word], classes: Sequence[Sequence[int]], num_windows: int, window_s: float
) -> dict[tuple[int, int], float]:
    """(window, class) -> share of the window's time that the class holds; what is missing is 0, windows sum to 1.

    A word's time is split evenly over its tokens; what no token holds is blank.
    """
    held: dict[tuple[int, int], float] = defaultdict(float)
    for word, its_classes in zip(words, classes, strict=True):
        edges = np.linspace(word.start_s, word.end_s, len(its_classes) + 1) / window_s
        for number, low, high in zip(its_classes, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            for window in range(max(int(low), 0), min(math.ceil(high), num_windows)):
                held[window, number] += max(0.0, min(high, window + 1) - max(low, window))
    totals = [0.0] * num_windows
    for (window, _), share in held.items():
        totals[window] += share
    shares = {key: share / max(1.0, totals[key[0]]) for key, share in held.items() if share > 0}
    return shares | {(window, BLANK): 1.0 - total for window, total in enumerate(totals) if total < 1.0}


@dataclass(frozen=True)
class TimedLabels:
    """What the rows of a batch say, for windows of one length.

    Shares are a list of S of them, as a window holds few of many classes; a row without word times has none.
    """

    places_3S: Tensor  # int64: row, window, class
    shares_S: Tensor  # float32, above 0; those of a window sum to 1
    sequence_BL: Tensor  # int64 classes in order, padded with 0
    sequence_lengths_B: Tensor  # int64

    @classmethod
    def of(
        cls, words: Sequence[Sequence[Word]], texts: Sequence[str], units: Units, prompts: PromptBuilder,
        *, lengths: Sequence[int], window_s: float,
    ) -> TimedLabels:  # fmt: skip
        """Labels of rows; a row without word times gets its sequence alone."""
        shares: dict[tuple[int, int, int], float] = {}
        sequences = []
        for row, (its_words, text, length) in enumerate(zip(words, texts, lengths, strict=True)):
            sequences.append(units.sequence(text, prompts))
            if its_words:
                classes = units.classes([word.text for word in its_words], prompts)
                of_row = window_shares(its_words, classes, length, window_s)
                shares |= {(row, window, number): share for (window, number), share in of_row.items()}
        width = max(1, *map(len, sequences))
        padded = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
        places_3S = torch.tensor(list(shares), dtype=torch.int64).reshape(-1, 3).T
        shares_S = torch.tensor(list(shares.values()), dtype=torch.float32)
        return cls(places_3S, shares_S, padded, torch.tensor([len(sequence) for sequence in sequences]))

    def share_loss(self, logits_BKC: Tensor) -> Tensor:
        """Cross-entropy against the shares, mean over all windows of rows with word times."""
        rows_S, windows_S, classes_S = self.places_3S.to(logits_BKC.device)
        if not len(rows_S):
            return logits_BKC.float().sum() * 0.0
        log_probs_BKC = functional.log_softmax(logits_BKC.float(), dim=-1)
        shares_S = self.shares_S.to(logits_BKC.device)
        return -(shares_S * log_probs_BKC[rows_S, windows_S, classes_S]).sum() / shares_S.sum()

    def embedding_loss(self, tokens_BKE: Tensor, classes_CE: Tensor) -> Tensor:
        """Squared distance of tokens to the mean embedding of what their window holds, relative to the variance of the
        embeddings; mean over all windows of rows with word times.

        Args:
            tokens_BKE: projected.
            classes_CE: embeddings of the classes; the blank's is what silence is to look like.
        """
        rows_S, windows_S, classes_S = self.places_3S.to(tokens_BKE.device)
        if not len(rows_S):
            return tokens_BKE.float().sum() * 0.0
        shares_S = self.shares_S.to(tokens_BKE.device)
        wanted_BKE = torch.zeros(tokens_BKE.shape, device=tokens_BKE.device)
        wanted_BKE = wanted_BKE.index_put(
            (rows_S, windows_S), shares_S[:, None] * classes_CE[classes_S], accumulate=True
        )
        known_BK = torch.zeros(tokens_BKE.shape[:2], device=tokens_BKE.device)
        known_BK = known_BK.index_put((rows_S, windows_S), shares_S, accumulate=True)
        distance_BK = (tokens_BKE.float() - wanted_BKE).square().sum(dim=-1)
        return (known_BK * distance_BK).sum() / (known_BK.sum() * classes_CE.var(dim=0).sum())

    def ctc_loss(self, logits_BKC: Tensor, lengths_B: Tensor) -> Tensor:
        """CTC, mean over tokens; rows that are too short for their text count as zero."""
        if logits_BKC.shape[1] == 0:  # refused by torch; here every row is too short
            return logits_BKC.float().sum()
        log_probs_KBC = functional.log_softmax(logits_BKC.float(), dim=-1).transpose(0, 1)
        device = logits_BKC.device
        total = functional.ctc_loss(
            log_probs_KBC, self.sequence_BL.to(device), lengths_B, self.sequence_lengths_B.to(device),
            blank=BLANK, reduction="sum", zero_infinity=True,
        )  # fmt: skip
        return total / self.sequence_lengths_B.sum().clamp(min=1)


def greedy_classes(logits_BKC: Tensor, lengths_B: Tensor) -> list[list[int]]:
    """Best class per window, repeats merged, blanks dropped."""
    best_BK = logits_BKC.argmax(dim=-1).masked_fill(~inside(lengths_B, logits_BKC.shape[1]), BLANK)
    return [[number for number, _ in groupby(row) if number != BLANK] for row in best_BK.tolist()]


def token_error_rate(said: Sequence[Sequence[int]], read: Sequence[Sequence[int]]) -> float:
    """Edits per token that was said."""
    output = jiwer.process_words([" ".join(map(str, row)) for row in said], [" ".join(map(str, row)) for row in read])
    return float(output.wer)
