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
from dataclasses import dataclass, replace

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
    last = read_prompts(model, inputs, scales, cache, [limit > 0 for limit in max_new_tokens])
    ends, drafts = model.prompts.vocabulary.ends, drafts or [()] * len(scales)
    rows = [
        _Row(limit, ends, draft, None if model.is_exact else functools.partial(_alone, model, last, scales, row, cache))
        for row, (limit, draft) in enumerate(zip(max_new_tokens, drafts, strict=True))
    ]
    is_open_B1 = torch.tensor([[int(row.is_open)] for row in rows], device=last.mask_BS.device)
    next_ = replace(last, mask_BS=is_open_B1, positions_BS=last.positions_BS * is_open_B1)
    with model.select(scales):
        while any(row.is_open for row in rows):
            spare = max(0, _MOST_COLUMNS - sum(row.is_open for row in rows))
            longest = spare // max(1, sum(row.is_open and row.has_draft for row in rows))
            proposals = [row.proposal(longest) for row in rows]
            read = _with_drafts(next_, proposals, model.embedding_VE)
            logits_BDV = model.last_logits(read, cache, read.mask_BS.shape[1])
            agreed = [
                row.take(proposal, logits_DV) if row.is_open else 0
                for row, proposal, logits_DV in zip(rows, proposals, logits_BDV, strict=True)
            ]
            next_ = _next(next_, agreed, [row.written[-1] if row.is_open else None for row in rows], model.embedding_VE)
    return _decoded(rows)


def _decoded(rows: Sequence[_Row]) -> Decoded:
    return Decoded(*(tuple(part) for part in zip(*((r.written, r.num_steps, r.log_probs) for r in rows), strict=True)))


def _one_by_one(model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], limits: Sequence[int]) -> Decoded:
    """For a state that sums up the past, or a window of it: each row alone, step by step, without drafts."""
    rows = [_Row(limit, model.prompts.vocabulary.ends, (), None) for limit in limits]
    for number, row in enumerate(rows):
        cache, next_ = DynamicCache(config=model.llm.config), row_of(inputs, number)
        with model.select([scales[number]]):
            while row.is_open:
                row.take((), model.last_logits(next_, cache, 1)[0])
                next_ = _next(row_of(next_, 0, slice(-1, None)), [0], row.written[-1:] or [None], model.embedding_VE)
    return _decoded(rows)


class _Row:
    """What a row has written, and what is left of its draft.

    Args:
        alone: decides near ties, from what is written; None: there is nothing to be decided.
    """

    def __init__(
        self, limit: int, ends: Sequence[int], draft: Sequence[int], alone: Callable[[list[int]], Tensor] | None
    ) -> None:
        self.written: list[int] = []
        self.log_probs: list[float] = []
        self.num_steps = 0
        self.is_open = limit > 0
        self._limit, self._ends, self._draft, self._alone = limit, ends, Draft.of(draft), alone
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
            if self._alone is not None:
                rounding = torch.finfo(logits_V.dtype).eps * max(map(abs, values))
                if values[0] - values[1] <= _NEAR_TIE_EPS * rounding:
                    logits_V = self._alone(self.written)
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


def read_prompts(
    model: AvsrModel,
    inputs: LlmInput,
    scales: Sequence[Scale],
    cache: RowsCache,
    is_read: Sequence[bool] | None = None,
) -> LlmInput:
    """Reads all of the prompts but the last column, row by row: what the cache has of a row does not depend on others,
    and nothing is spent on padding.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        cache: an empty one.
        is_read: the rows whose prompts are needed; default: all.

    Returns:
        What the cache has not seen: the last column.
    """
    for row, scale in enumerate(scales):
        prompt = row_of(inputs, row)
        if prompt.mask_BS.shape[1] > 1 and (is_read is None or is_read[row]):
            alone = RowsCache()
            with model.select([scale]):
                model.read(row_of(prompt, 0, slice(0, -1)), alone)
            cache.put(row, len(scales), alone)
    return LlmInput(inputs.embeds_BSE[:, -1:], inputs.mask_BS[:, -1:], inputs.positions_BS[:, -1:])


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
    model: AvsrModel, last: LlmInput, scales: Sequence[Scale], row: int, cache: RowsCache, written: Sequence[int]
) -> Tensor:
    """(V,) logits after what a row has written, computed from nothing but the row itself.

    Args:
        last: the last column of each prompt.
        cache: has the columns before them.
    """
    table_VE, num_read = model.embedding_VE, int(last.positions_BS[row])
    text_KE = torch.nn.functional.embedding(torch.tensor(written, dtype=torch.int64, device=table_VE.device), table_VE)
    positions_1S = torch.arange(num_read, num_read + 1 + len(written), device=table_VE.device)[None]
    rest = LlmInput(torch.cat((last.embeds_BSE[row], text_KE))[None], torch.ones_like(positions_1S), positions_1S)
    with model.select([scales[row]]):
        return model.last_logits(rest, cache.row(row, num_read), 1)[0, -1]
