"""A guess of a text, from elsewhere than the LLM, and where in it a text that is being written stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Draft:
    """A draft beside what is written so far, aligned by edits of tokens.

    Attributes:
        tokens: the whole draft.
        distances: edits between what is written and each beginning of the draft, none and all of it included.
        last: the last token that was written.
    """

    tokens: tuple[int, ...]
    distances: tuple[int, ...]
    last: int | None = None

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Draft:
        """Beside an empty text."""
        return cls(tuple(tokens), tuple(range(len(tokens) + 1)))

    def after(self, token: int) -> Draft:
        """Beside the text with one more token."""
        before, distances = self.distances, [self.distances[0] + 1]
        for i, drafted in enumerate(self.tokens):
            change = before[i] + (drafted != token)
            distances.append(min(change, before[i + 1] + 1, distances[i] + 1))
        return Draft(self.tokens, tuple(distances), token)

    def rest(self) -> tuple[int, ...]:
        """How the text may go on: the draft, from where its beginning is most like what is written."""
        begin = min(
            range(len(self.distances)),
            # Of equally good places one that ends with the same token, and then the latest.
            key=lambda i: (self.distances[i], not (i and self.tokens[i - 1] == self.last), -i),
        )
        return self.tokens[begin:]
