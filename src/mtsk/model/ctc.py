"""A second reader of the features: characters at every moment, without the LLM. For drafts, word times, confidences.

It writes its text in one pass (CTC: Graves et al. 2006). Letters: B rows, T features in time, S steps of 20 ms,
D channels, C classes: 0 is the blank, i is character i - 1 of the alphabet.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from mtsk.config import CtcConfig
from mtsk.model.masking import zero_beyond
from mtsk.scale import FEATURE_S
from mtsk.types import Features

BLANK = 0
STEP_S = min(FEATURE_S.values())  # of every head: that of lips says two steps per feature


@dataclass(frozen=True)
class Alphabet:
    """Characters as classes, and back."""

    characters: str

    @property
    def num_classes(self) -> int:
        """Classes with the blank."""
        return len(self.characters) + 1

    @property
    def space(self) -> int:
        """The class between words."""
        return self.characters.index(" ") + 1

    def word_classes(self, word: str) -> list[int]:
        """Classes of a word; accents and characters outside of the alphabet are left out."""
        plain = unicodedata.normalize("NFKD", word.lower())
        return [self.characters.index(each) + 1 for each in plain if each != " " and each in self.characters]

    def classes(self, text: str) -> list[int]:
        """Classes of a text, its words a space apart."""
        spelled: list[int] = []
        for word in filter(None, map(self.word_classes, text.split())):
            spelled += [self.space, *word] if spelled else word
        return spelled

    def read(self, best: Sequence[int]) -> str:
        """The text of the best class of each step: repeats merged, blanks dropped."""
        merged = [number for number, _ in groupby(best) if number != BLANK]
        return " ".join("".join(self.characters[number - 1] for number in merged).split())


class CtcHead(nn.Module):
    """Linear, then convolutions with residuals, then the classes.

    Args:
        dim: channels of a feature.
        feature_s: time between features; a feature gets as many steps as fit.
    """

    def __init__(self, dim: int, feature_s: float, config: CtcConfig) -> None:
        super().__init__()
        self._num_classes = Alphabet(config.alphabet).num_classes
        self._steps_per_feature = round(feature_s / STEP_S)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(dim, config.hidden)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.hidden, config.hidden, config.kernel, padding=config.kernel // 2)
            for _ in range(config.num_layers)
        )
        self.classes = nn.Linear(config.hidden, self._steps_per_feature * self._num_classes)

    def logits(self, features: Features) -> Features:
        """(B, T, D) -> (B, S, C), float32; zero beyond each row's length."""
        lengths_B = features.lengths_B
        hidden_BTD = torch.nn.functional.gelu(self.down(self.dropout(self.norm(features.values_BTD))))
        for convolution in self.convolutions if hidden_BTD.shape[1] else ():  # torch convolves no empty rows
            hidden_BTD = zero_beyond(hidden_BTD, lengths_B)
            change_BTD = torch.nn.functional.gelu(convolution(hidden_BTD.transpose(1, 2)).transpose(1, 2))
            hidden_BTD = hidden_BTD + self.dropout(change_BTD)
        num_rows, num_features = hidden_BTD.shape[:2]
        num_steps = num_features * self._steps_per_feature
        logits_BSC = self.classes(hidden_BTD).float().reshape(num_rows, num_steps, self._num_classes)
        lengths_B = lengths_B * self._steps_per_feature
        return Features(zero_beyond(logits_BSC, lengths_B), lengths_B)


def unpadded_log_probs(logits: Features) -> list[Tensor]:
    """Log-probabilities (S, C) of each row of logits (B, S, C), without padding."""
    rows = zip(logits.values_BTD.log_softmax(dim=-1), logits.lengths_B.tolist(), strict=True)
    return [log_probs_SC[:length] for log_probs_SC, length in rows]
