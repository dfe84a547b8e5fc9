"""How well the beginnings of texts fit what a character head reads, for beam search: CTC prefix probabilities.

Source: Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition", in which a text is
scored by both. Here the recursion over time is a cumulative sum in the log domain, for all candidates at once.

Letters: N candidates, S steps of 20 ms, T = S + 1 points in time (the first is before the first step), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtsk.model.ctc import BLANK, Alphabet


@dataclass(frozen=True)
class Prefix:
    """A beginning of a text, and how it may have been read up to each point in time."""

    ends_2T: Tensor  # float64: log-probability of having read just it, ending in its last character; in a blank
    last: int  # class of its last character; the blank if there is none
    owes_space: bool  # a word ended: if another character comes, a space comes first
    logprob: float  # that what is read begins with it

    @property
    def whole_logprob(self) -> float:
        """That nothing follows."""
        return float(self.ends_2T[:, -1].logsumexp(dim=0))


class PrefixScorer:
    """Scores for texts of one utterance.

    Args:
        log_probs_SC: what the character head read, at least one step.
        spell: the text of a token, its spaces included.
    """

    def __init__(self, log_probs_SC: Tensor, alphabet: Alphabet, spell: Callable[[int], str]) -> None:
        self._steps_CS = log_probs_SC.T.double().cpu().contiguous()
        self._sums_CS = self._steps_CS.cumsum(dim=1)
        self._alphabet, self._spell = alphabet, spell

    def start(self) -> Prefix:
        """Nothing written yet."""
        blanks_T = torch.cat((torch.zeros(1, dtype=torch.float64), self._sums_CS[BLANK]))
        return Prefix(torch.stack((torch.full_like(blanks_T, -math.inf), blanks_T)), BLANK, False, 0.0)

    def extend(
        self, prefixes: Sequence[Prefix], tokens: Sequence[int], least: Sequence[float] | None = None
    ) -> list[Prefix]:
        """Each prefix with one more token.

        A character that the head does not know is impossible to it. If it cost nothing, a search that has lost its
        place would go on with signs and foreign letters for ever (measured: 2 or 3 texts of 50 ended so).

        Args:
            least: of each, the log-probability below which it is of no use. It only falls with each character: what
                gets there is left as it is, with a log-probability of -inf. A prefix that is impossible already, as
                it has a character that the head does not know, is none of those: its next one is possible again.
        """
        longer = list(prefixes)
        spelled = [list(self._spell(token)) for token in tokens]
        least = least or [-math.inf] * len(longer)
        while any(spelled):
            for index, rest in enumerate(spelled):
                if rest and -math.inf < longer[index].logprob < least[index]:
                    rest.clear()
                    longer[index] = replace(longer[index], logprob=-math.inf)
            classes = [self._next_class(longer, index, rest) for index, rest in enumerate(spelled)]
            places = [index for index, number in enumerate(classes) if number is not None]
            if places:
                grown = self._grow([longer[i] for i in places], [classes[i] or BLANK for i in places])
                for place, prefix in zip(places, grown, strict=True):
                    longer[place] = prefix
        return longer

    def _next_class(self, longer: list[Prefix], index: int, rest: list[str]) -> int | None:
        """Takes characters from `rest` up to the next that is written, a space that is owed first; None at the end."""
        prefix = longer[index]
        while rest:
            if rest[0].isspace():
                rest.pop(0)
                prefix = Prefix(prefix.ends_2T, prefix.last, prefix.last != BLANK, prefix.logprob)
                longer[index] = prefix
                continue
            classes = self._alphabet.word_classes(rest[0])
            if not classes:
                rest.clear()
                longer[index] = replace(prefix, logprob=-math.inf)
            elif prefix.owes_space:
                return self._alphabet.space
            else:
                rest.pop(0)
                return classes[0]
        return None

    def _grow(self, prefixes: Sequence[Prefix], classes: Sequence[int]) -> list[Prefix]:
        """Each prefix with one more character."""
        index = torch.tensor(classes)
        steps_NS, sums_NS = self._steps_CS[index], self._sums_CS[index]
        ends_N2T = torch.stack([prefix.ends_2T for prefix in prefixes])
        repeats_N = torch.tensor([prefix.last == number for prefix, number in zip(prefixes, classes, strict=True)])
        # From where the new character can be read: a repeated one needs a blank before it.
        before_N2T = ends_N2T.clone()
        before_N2T[repeats_N, 0] = -math.inf
        enters_NS = before_N2T[:, :, :-1].logsumexp(dim=1) + steps_NS
        letter_NS = sums_NS + (enters_NS - sums_NS).logcumsumexp(dim=1)
        blank_sums_S = self._sums_CS[BLANK]
        never_N1 = torch.full((len(prefixes), 1), -math.inf, dtype=torch.float64)
        letter_NT = torch.cat((never_N1, letter_NS), dim=1)
        rests_NS = letter_NT[:, :-1] + self._steps_CS[BLANK] - blank_sums_S
        blank_NS = blank_sums_S + rests_NS.logcumsumexp(dim=1)
        grown_N2T = torch.stack((letter_NT, torch.cat((never_N1, blank_NS), dim=1)), dim=1)
        logprobs = enters_NS.logsumexp(dim=1).tolist()
        return [
            Prefix(ends_2T, number, False, logprob)
            for ends_2T, number, logprob in zip(grown_N2T, classes, logprobs, strict=True)
        ]
