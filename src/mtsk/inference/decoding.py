"""Greedy decoding of a batch with a key-value cache. Rows may have different scales and limits.

A draft of a row's text makes it quicker, and no different: one pass of the LLM says what it would write after every
token of the draft, as far as that was right before. As far as the two agree that is what it would have written step by
step; the rest of the draft is aligned anew with what was written (`drafts.Draft`), and checked in the next pass
(Leviathan et al. 2023, with a draft from elsewhere).

On many devices the logits of a token differ by rounding with what is computed beside it: other rows, or a draft. In
bfloat16 the best two of some tokens are that close. Such a near tie is decided by a pass over the row alone, its prompt
and what it has written, nothing else: so what is written for given inputs depends neither on the batch nor on drafts.
(The inputs themselves may differ by rounding, where encoders run in bfloat16.) Where logits are measured not to differ
(`AvsrModel.is_exact`) there is nothing to decide.
Letters: B rows, D draft columns, S sequence, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from mtsk.inference.drafts import Draft
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.model.rows_cache import RowsCache
from mtsk.scale import Scale

MAX_REPEATED = 8
"""Longest n-gram of tokens whose repetition ends a row."""


_NEAR_TIE_EPS = 2.0
"""Logits nearer than so many units of rounding at their size are a near tie. The difference between two logits varies
by 0.4 units (root mean square, measured in bfloat16)."""


_FIRST_REACH = 32
"""Tokens of a draft that are checked in a row's first pass: a sentence."""


_MOST_ROWS = 24
"""That are read at once: where one ends, another begins."""


_MOST_COLUMNS = 64
"""That a pass reads of all rows, drafts among them: so many take about twice the time of one, on a processor."""


def num_repeats(n: int) -> int:
    """How often an n-gram has to come in a row to be a loop: people do say "no no no", and numbers with many zeros."""
    return max(4, math.ceil(12 / n))


@dataclass(frozen=True)
class Decoded:
    """What was written for each row of a batch."""

    tokens: tuple[list[int], ...]
    """Without the end of sequence; of a loop one copy."""
    num_steps: tuple[int, ...]
    """Passes of the LLM that a row needed, those for near ties among them."""
    log_probs: tuple[list[float], ...]
    """Of each token, and of the end of sequence where the row ended by it."""

    def mean_log_prob(self, row: int) -> float:
        """0 for a row of which nothing was asked."""
        return sum(self.log_probs[row]) / max(1, len(self.log_probs[row]))

    def min_log_prob(self, row: int) -> float:
        """0 for a row of which nothing was asked."""
        return min(self.log_probs[row], default=0.0)


@torch.inference_mode()
def greedy(
    model: AvsrModel,
    inputs: LlmInput,
    scales: Sequence[Scale],
    max_new_tokens: Sequence[int],
    drafts: Sequence[Sequence[int]] | None = None,
) -> Decoded:
    """The most likely next token, until an end of sequence, a loop (see `num_repeats`) or a row's limit.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        max_new_tokens: limit of each row.
        drafts: a guess of each row's tokens, the end of sequence included; it changes the number of steps alone.
    """
    cache = model.new_cache(inputs.mask_BS.shape[1] + max(max_new_tokens, default=0))
    if not isinstance(cache, RowsCache):
        return _one_by_one(model, inputs, scales, max_new_tokens)
    ends, drafts = model.prompts.vocabulary.ends, drafts or [()] * len(scales)
    rows = [_Row(limit, ends, draft) for limit, draft in zip(max_new_tokens, drafts, strict=True)]
    # Long ones first: so the last ones to be seated are soon done.
    waiting = sorted((i for i, row in enumerate(rows) if row.is_open), key=lambda i: int(inputs.mask_BS[i].sum()))
    table = _Table(model, inputs, scales, cache, min(len(waiting), _MOST_ROWS))
    while waiting or any(rows[i].is_open for i in table.seated):
        for seat in table.free(rows)[: len(waiting)]:
            table.sit(seat, waiting.pop(), rows)
        with model.select([scales[i] for i in table.seated]):
            table.step(rows)
            while not (waiting and table.free(rows)) and any(rows[i].is_open for i in table.seated):
                table.step(rows)
    return _decoded(rows)


class _Table:
    """The rows that are read at once, each in its seat, a row of the cache; when it is done another may sit there."""

    def __init__(
        self, model: AvsrModel, prompts: LlmInput, scales: Sequence[Scale], cache: RowsCache, num_seats: int
    ) -> None:
        self._model, self._prompts, self._scales, self._cache = model, prompts, scales, cache
        self._num_seats = num_seats
        self.seated: list[int] = []
        self._next = LlmInput(*(part[:num_seats, -1:].clone() for part in vars(prompts).values()))

    def free(self, rows: Sequence[_Row]) -> list[int]:
        """Seats whose row is done, and those where none was yet."""
        done = [seat for seat, i in enumerate(self.seated) if not rows[i].is_open]
        return done + list(range(len(self.seated), self._num_seats))

    def sit(self, seat: int, i: int, rows: Sequence[_Row]) -> None:
        """Reads the prompt of row `i`, all but its last column, into the cache."""
        self.seated[seat : seat + 1] = [i]
        last = read_prompt(self._model, self._prompts, i, self._scales[i], self._cache, seat, self._num_seats)
        for into, part in zip(vars(self._next).values(), vars(last).values(), strict=True):
            into[seat] = part[0]
        if not self._model.is_exact:
            rows[i].alone = functools.partial(_alone, self._model, last, self._scales[i], seat, self._cache)

    def step(self, rows: Sequence[_Row]) -> None:
        """One pass of the LLM over all seats."""
        table_VE, seated = self._model.embedding_VE, [rows[i] for i in self.seated]
        spare = max(0, _MOST_COLUMNS - sum(row.is_open for row in seated))
        longest = spare // max(1, sum(row.is_open and row.has_draft for row in seated))
        proposals = [row.proposal(longest) for row in seated]
        read = _with_drafts(self._next, proposals, table_VE)
        logits_BDV = self._model.last_logits(read, self._cache, read.mask_BS.shape[1])
        agreed = [
            row.take(proposal, logits_DV) if row.is_open else 0
            for row, proposal, logits_DV in zip(seated, proposals, logits_BDV, strict=True)
        ]
        self._next = _next(self._next, agreed, [row.written[-1] if row.is_open else None for row in seated], table_VE)


def _decoded(rows: Sequence[_Row]) -> Decoded:
    return Decoded(*(tuple(part) for part in zip(*((r.written, r.num_steps, r.log_probs) for r in rows), strict=True)))


def _one_by_one(model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], limits: Sequence[int]) -> Decoded:
    """For a state that sums up the past, or a window of it: each row alone, step by step, without drafts."""
    rows = [_Row(limit, model.prompts.vocabulary.ends) for limit in limits]
    for number, row in enumerate(rows):
        cache, next_ = DynamicCache(config=model.llm.config), row_of(inputs, number)
        with model.select([scales[number]]):
            while row.is_open:
                row.take((), model.last_logits(next_, cache, 1)[0])
                next_ = _next(row_of(next_, 0, slice(-1, None)), [0], row.written[-1:] or [None], model.embedding_VE)
    return _decoded(rows)


class _Row:
    """What a row has written, and what is left of its draft."""

    alone: Callable[[list[int]], Tensor] | None = None
    """Decides near ties, from what is written; None: there is nothing to be decided."""

    def __init__(self, limit: int, ends: Sequence[int], draft: Sequence[int] = ()) -> None:
        self.written: list[int] = []
        self.log_probs: list[float] = []
        self.num_steps = 0
        self.is_open = limit > 0
        self._limit, self._ends, self._draft = limit, ends, Draft.of(draft)
        self._reach = _FIRST_REACH

    @property
    def has_draft(self) -> bool:
        """Whether there was one, of which something may be left."""
        return bool(self._draft.tokens)

    def proposal(self, longest: int) -> Sequence[int]:
        """How the text may go on, as far as it is worth a check, and at most so far."""
        num = min(self._reach, longest, self._limit - len(self.written) - 1)
        return self._draft.rest()[:num] if self.is_open else ()

    def take(self, proposal: Sequence[int], logits_DV: Tensor) -> int:
        """Writes what the LLM chose, as far as it was asked rightly; returns with how many of the proposal it agreed.

        Args:
            logits_DV: what it chose from after the last token, and after each one of the proposal.
        """
        self.num_steps += 1
        best_D2 = logits_DV[: len(proposal) + 1].topk(2, dim=-1)
        for i, (values, tokens) in enumerate(zip(best_D2.values.tolist(), best_D2.indices.tolist(), strict=True)):
            logits_V, token = logits_DV[i], tokens[0]
            if self.alone is not None:
                rounding = torch.finfo(logits_V.dtype).eps * max(map(abs, values))
                if values[0] - values[1] <= _NEAR_TIE_EPS * rounding:
                    logits_V = self.alone(self.written)
                    self.num_steps += 1
                    token = int(logits_V.argmax())
            self._write(token, float(logits_V[token].float() - logits_V.float().logsumexp(dim=-1)))
            if not self.is_open or i == len(proposal) or token != proposal[i]:
                break
        if proposal:  # checking what is wrong is not free
            self._reach = max(2 * i + 1, self._reach // (1 if i == len(proposal) else 2))
        return i

    def _write(self, token: int, log_prob: float) -> None:
        self.log_probs.append(log_prob)
        if token in self._ends:
            self.is_open = False
            return
        self.written.append(token)
        self.is_open = len(self.written) < self._limit
        num_surplus = loop_surplus(self.written)
        if num_surplus:
            self.is_open = False
            del self.written[-num_surplus:], self.log_probs[-num_surplus:]
        self._draft = self._draft.after(token)


def loop_surplus(tokens: Sequence[int]) -> int:
    """How many tokens at the end repeat those before them, if they are a loop; else 0."""
    for n in range(1, MAX_REPEATED + 1):
        num_tokens = n * num_repeats(n)
        tail = tokens[-num_tokens:]
        if len(tail) == num_tokens and tail[n:] == tail[:-n]:
            return num_tokens - n
    return 0


def read_prompts(model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], cache: RowsCache) -> LlmInput:
    """Reads all of the prompts but the last column, row by row: what the cache has of a row does not depend on others,
    and nothing is spent on padding.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        cache: an empty one.

    Returns:
        What the cache has not seen: the last column.
    """
    for row, scale in enumerate(scales):
        read_prompt(model, inputs, row, scale, cache, row, len(scales))
    return LlmInput(*(part[:, -1:] for part in vars(inputs).values()))


def read_prompt(
    model: AvsrModel, inputs: LlmInput, row: int, scale: Scale, cache: RowsCache, seat: int, num_seats: int
) -> LlmInput:
    """Reads the prompt of a row, all but its last column, into a row of a cache that has so many; returns the last."""
    prompt = row_of(inputs, row)
    if prompt.mask_BS.shape[1] > 1:
        alone = RowsCache()
        with model.select([scale]):
            model.read(row_of(prompt, 0, slice(0, -1)), alone)
        cache.put(seat, num_seats, alone)
    return row_of(prompt, 0, slice(-1, None))


def row_of(inputs: LlmInput, row: int, columns: slice = slice(None)) -> LlmInput:
    """A row of an input alone, without its padding."""
    real_S = inputs.mask_BS[row].nonzero()[columns, 0]
    return LlmInput(*(part[row, None, real_S] for part in vars(inputs).values()))


def _with_drafts(next_: LlmInput, proposals: Sequence[Sequence[int]], table_VE: Tensor) -> LlmInput:
    """The next column and the proposed tokens after it, padded on the right."""
    num_drafted = max(map(len, proposals))
    if num_drafted == 0:
        return next_
    padded = [[*proposal, *[-1] * (num_drafted - len(proposal))] for proposal in proposals]
    ids_BD = torch.tensor(padded, device=table_VE.device)
    later_D = torch.arange(1, num_drafted + 1, device=table_VE.device)
    return LlmInput(
        torch.cat((next_.embeds_BSE, torch.nn.functional.embedding(ids_BD.clamp(min=0), table_VE)), dim=1),
        torch.cat((next_.mask_BS, (ids_BD >= 0).long()), dim=1),
        torch.cat((next_.positions_BS, next_.positions_BS + later_D), dim=1),
    )


def _next(read: LlmInput, agreed: Sequence[int], last: Sequence[int | None], table_VE: Tensor) -> LlmInput:
    """The last token of each open row, after those that the row agreed with; other rows are padding, at place 0."""
    device = table_VE.device
    tokens_B1 = torch.tensor([[token or 0] for token in last], device=device)
    is_open_B1 = torch.tensor([[int(token is not None)] for token in last], device=device)
    positions_B1 = read.positions_BS + torch.tensor([[num + 1] for num in agreed], device=device)
    return LlmInput(torch.nn.functional.embedding(tokens_B1, table_VE), is_open_B1, positions_B1 * is_open_B1)


def _alone(
    model: AvsrModel, last: LlmInput, scale: Scale, seat: int, cache: RowsCache, written: Sequence[int]
) -> Tensor:
    """(V,) logits after what a row has written, computed from nothing but the row itself.

    Args:
        last: the last column of its prompt.
        cache: has the columns before it, in a row of its own.
    """
    table_VE, num_read = model.embedding_VE, int(last.positions_BS)
    text_KE = torch.nn.functional.embedding(torch.tensor(written, dtype=torch.int64, device=table_VE.device), table_VE)
    positions_1S = torch.arange(num_read, num_read + 1 + len(written), device=table_VE.device)[None]
    rest = LlmInput(torch.cat((last.embeds_BSE[0], text_KE))[None], torch.ones_like(positions_1S), positions_1S)
    with model.select([scale]):
        return model.last_logits(rest, cache.row(seat, num_read), 1)[0, -1]
