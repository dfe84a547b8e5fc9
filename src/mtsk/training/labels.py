"""Word times -> what each window of time holds, as shares over token classes; and greedy reading of such classes.

Class 0 is the blank: silence, and the blank of CTC. Letters: B rows, K windows of time, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtsk.model.masking import inside
from mtsk.model.prompt import PromptBuilder
from mtsk.types import Word

BLANK = 0


@dataclass(frozen=True)
class Units:
    """The LLM's tokens that occur in the training texts, as classes 1..n; class 0 is the blank."""

    token_ids: tuple[int, ...]

    @classmethod
    def of_texts(cls, texts: Iterable[str], prompts: PromptBuilder) -> Units:
        """Collects the tokens of all words."""
        words = {word for text in texts for word in text.split()}
        return cls(tuple(sorted({token for word in words for token in prompts.word_ids(word)})))

    @property
    def num_classes(self) -> int:
        """Classes with the blank."""
        return len(self.token_ids) + 1

    def classes(self, words: Iterable[str], prompts: PromptBuilder) -> list[list[int]]:
        """For each word the classes of its tokens; tokens outside of the training texts are left out."""
        number = {token: i + 1 for i, token in enumerate(self.token_ids)}
        return [[number[token] for token in prompts.word_ids(word) if token in number] for word in words]

    def sequence(self, text: str, prompts: PromptBuilder) -> list[int]:
        """The classes of a text in order."""
        return [number for its_classes in self.classes(text.split(), prompts) for number in its_classes]


def window_shares(
    words: Sequence[Word], classes: Sequence[Sequence[int]], num_windows: int, window_s: float, num_classes: int
) -> NDArray[np.float32]:
    """Share of each window's time that each class holds, (K, C), rows summing to 1.

    A word's time is split evenly over its tokens; what no token holds is blank.
    """
    shares_KC = np.zeros((num_windows, num_classes), np.float32)
    for word, its_classes in zip(words, classes, strict=True):
        edges = np.linspace(word.start_s, word.end_s, len(its_classes) + 1) / window_s
        for number, low, high in zip(its_classes, edges[:-1], edges[1:], strict=True):
            for window in range(max(int(low), 0), min(int(np.ceil(high)), num_windows)):
                shares_KC[window, number] += max(0.0, min(high, window + 1) - max(low, window))
    shares_KC[:, BLANK] = np.clip(1.0 - shares_KC[:, 1:].sum(axis=1), 0.0, None)
    return np.asarray(shares_KC / shares_KC.sum(axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class TimedLabels:
    """What the rows of a batch say, for windows of one length."""

    shares_BKC: Tensor  # float32; zero beyond a row's length, and for rows without word times
    sequence_BL: Tensor  # int64 classes in order, padded with 0
    sequence_lengths_B: Tensor  # int64

    @classmethod
    def of(
        cls, words: Sequence[Sequence[Word]], texts: Sequence[str], units: Units, prompts: PromptBuilder,
        *, lengths: Sequence[int], window_s: float,
    ) -> TimedLabels:  # fmt: skip
        """Labels of rows; a row without word times gets its sequence alone."""
        shares_BKC = torch.zeros(len(texts), max(lengths), units.num_classes)
        sequences = []
        for row, (its_words, text, length) in enumerate(zip(words, texts, lengths, strict=True)):
            sequences.append(units.sequence(text, prompts))
            if its_words:
                classes = units.classes([word.text for word in its_words], prompts)
                shares = window_shares(its_words, classes, length, window_s, units.num_classes)
                shares_BKC[row, :length] = torch.from_numpy(shares)
        width = max(1, *map(len, sequences))
        padded = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
        return cls(shares_BKC, padded, torch.tensor([len(sequence) for sequence in sequences]))

    def share_loss(self, logits_BKC: Tensor) -> Tensor:
        """Cross-entropy against the shares, mean over all windows of rows with word times."""
        shares_BKC = self.shares_BKC.to(logits_BKC.device)
        total = -(shares_BKC * functional.log_softmax(logits_BKC.float(), dim=-1)).sum()
        return total / shares_BKC.sum().clamp(min=1.0)

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
