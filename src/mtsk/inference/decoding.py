"""Greedy decoding of a batch with a key-value cache. Rows may have different scales and limits.

A draft of a row's text makes it quicker, and no different: one pass of the LLM says what it would write after every
token of the draft, as far as that was right before. As far as the two agree that is what it would have written step by
step; the rest of the draft is aligned anew with what was written (`drafts.Draft`), and checked in the next pass
(Leviathan et al. 2023, with a draft from elsewhere).

The logits of a token differ by rounding with what is computed beside it: other rows, padding, the columns of a draft.
In bfloat16 the best two of some tokens are that close. Such a near tie is decided by a pass over the row alone, its
prompt and what it has written, nothing else: so what is written for given inputs depends neither on the batch nor on
drafts. (The inputs themselves may differ by rounding, where encoders run in bfloat16.) Prompts are read row by row, so
that this pass can go on from the prompt's keys and values in the cache of the batch, which are those of the row alone.
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
from mtsk.inference.prompt_cache import is_joinable, read_prompts, row_of
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.scale import Scale

MAX_REPEATED = 8
"""Longest n-gram of tokens whose repetition ends a row."""


_NEAR_TIE_EPS = 2.0
"""Logits nearer than so many units of rounding at their size are a near tie. The difference between two logits varies
by 0.4 units (root mean square, measured in bfloat16)."""


_FIRST_REACH = 32
"""Tokens of a draft that are checked in a row's first pass: a sentence."""


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
    ends = model.prompts.vocabulary.ends
    cache = DynamicCache(config=model.llm.config)
    most_columns = inputs.mask_BS.shape[1] + sum(max_new_tokens) + max(max_new_tokens, default=0)
    takes_back = _takes_back(cache, most_columns)
    if drafts is None or not takes_back:
        drafts = [()] * len(scales)
    prompts, num_read = inputs, 0
    if takes_back and is_joinable(cache):
        cache, inputs = read_prompts(model, inputs, scales, [limit > 0 for limit in max_new_tokens])
        num_read = prompts.mask_BS.shape[1] - 1
    rows = [
        _Row(limit, ends, draft, functools.partial(_alone, model, prompts, scales, row, cache, num_read))
        for row, (limit, draft) in enumerate(zip(max_new_tokens, drafts, strict=True))
    ]
    with model.select(scales):
        while any(row.is_open for row in rows):
            proposals = [row.proposal() for row in rows]
            num_drafted = max(map(len, proposals))
            extended = _with_drafts(inputs, proposals, model.embedding_VE)
            logits_BDV = model.last_logits(extended, cache, 1 + num_drafted)
            agreed = [
                row.take(proposal, logits_DV) if row.is_open else 0
                for row, proposal, logits_DV in zip(rows, proposals, logits_BDV, strict=True)
            ]
            last = [row.written[-1] if row.is_open else None for row in rows]
            inputs = _next(extended, cache, agreed, num_drafted, last, model.embedding_VE)
    return Decoded(*(tuple(part) for part in zip(*((r.written, r.num_steps, r.log_probs) for r in rows), strict=True)))


class _Row:
    """What a row has written, and what is left of its draft."""

    def __init__(
        self, limit: int, ends: Sequence[int], draft: Sequence[int], alone: Callable[[list[int]], Tensor]
    ) -> None:
        self.written: list[int] = []
        self.log_probs: list[float] = []
        self.num_steps = 0
        self.is_open = limit > 0
        self._limit, self._ends, self._draft, self._alone = limit, ends, Draft.of(draft), alone
        self._reach = _FIRST_REACH

    def proposal(self) -> Sequence[int]:
        """How the text may go on, as far as it is worth a check."""
        return self._draft.rest()[: min(self._reach, self._limit - len(self.written) - 1)] if self.is_open else ()

    def take(self, proposal: Sequence[int], logits_DV: Tensor) -> int:
        """Writes what the LLM chose, as far as it was asked rightly; returns with how many of the proposal it agreed.

        Args:
            logits_DV: what it chose from after the last token, and after each one of the proposal.
        """
        self.num_steps += 1
        for i, best_two in enumerate(logits_DV[: len(proposal) + 1].topk(2, dim=-1).values.tolist()):
            logits_V = logits_DV[i]
            rounding = torch.finfo(logits_V.dtype).eps * max(map(abs, best_two))
            if best_two[0] - best_two[1] <= _NEAR_TIE_EPS * rounding:
                logits_V = self._alone(self.written)
                self.num_steps += 1
            token = int(logits_V.argmax())
            self._write(token, float(logits_V.float().log_softmax(dim=-1)[token]))
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


def _takes_back(cache: DynamicCache, most_columns: int) -> bool:
    """Whether what was read can be forgotten again: not by a state that sums up the past, or a window of it."""
    windows = [window for layer in cache.layers if (window := getattr(layer, "sliding_window", None)) is not None]
    return not any(cache.is_linear) and min(windows, default=most_columns + 1) > most_columns


def _with_drafts(inputs: LlmInput, proposals: Sequence[Sequence[int]], table_VE: Tensor) -> LlmInput:
    """The input and the proposed tokens after it, padded on the right."""
    num_drafted = max(map(len, proposals))
    if num_drafted == 0:
        return inputs
    padded = [[*proposal, *[-1] * (num_drafted - len(proposal))] for proposal in proposals]
    ids_BD = torch.tensor(padded, device=table_VE.device)
    mask_BD = (ids_BD >= 0).long()
    embeds_BDE = torch.nn.functional.embedding(ids_BD.clamp(min=0), table_VE) * mask_BD[..., None].to(table_VE.dtype)
    later_D = torch.arange(1, num_drafted + 1, device=table_VE.device)
    return LlmInput(
        torch.cat((inputs.embeds_BSE, embeds_BDE), dim=1),
        torch.cat((inputs.mask_BS, mask_BD), dim=1),
        torch.cat((inputs.positions_BS, inputs.positions_BS[:, -1:] + later_D), dim=1),
    )


def _next(
    read: LlmInput, cache: DynamicCache, agreed: Sequence[int], num_drafted: int, last: Sequence[int | None],
    table_VE: Tensor,
) -> LlmInput:  # fmt: skip
    """One column with the last token of each open row, after those that the row agreed with; of others it is padding.

    What no row agreed with leaves the cache; what this or that row did not agree with is masked there.
    """
    num_kept = max(agreed)
    if num_kept < num_drafted:
        cache.crop(num_kept - num_drafted)
    agreed_B1 = torch.tensor(agreed, device=table_VE.device)[:, None]
    num_read = read.mask_BS.shape[1] - num_drafted
    kept_BD = (torch.arange(num_kept, device=table_VE.device) < agreed_B1).long()
    is_open_B1 = torch.tensor([token is not None for token in last], device=table_VE.device)[:, None]
    tokens_B1 = torch.tensor([token or 0 for token in last], device=table_VE.device)[:, None]
    return LlmInput(
        torch.nn.functional.embedding(tokens_B1, table_VE),
        torch.cat((read.mask_BS[:, :num_read], kept_BD, is_open_B1.long()), dim=1),
        read.positions_BS[:, read.positions_BS.shape[1] - num_drafted - 1, None] + agreed_B1 + 1,
    )


def _alone(
    model: AvsrModel, prompts: LlmInput, scales: Sequence[Scale], row: int, cache: DynamicCache, num_read: int,
    written: Sequence[int],
) -> Tensor:  # fmt: skip
    """(V,) logits after what a row has written, computed from nothing but the row itself.

    Args:
        cache: has the first columns of the prompts.
        num_read: how many, padding too, each row read alone; if there are none the cache is not used.
    """
    table_VE = model.embedding_VE
    text_KE = torch.nn.functional.embedding(torch.tensor(written, dtype=torch.int64, device=table_VE.device), table_VE)
    is_real_S = prompts.mask_BS[row].bool()
    first = num_read - int(is_real_S[:num_read].sum())
    its_cache = row_of(model, cache, row, first, num_read) if num_read else DynamicCache(config=model.llm.config)
    embeds_1SE = torch.cat((prompts.embeds_BSE[row, num_read:][is_real_S[num_read:]], text_KE))[None]
    mask_1T = torch.ones(1, num_read - first + embeds_1SE.shape[1], dtype=torch.int64, device=table_VE.device)
    positions_1T = torch.arange(mask_1T.shape[1], device=table_VE.device)[None]
    rest = LlmInput(embeds_1SE, mask_1T, positions_1T[:, num_read - first :])
    with model.select([scales[row]]):
        return model.last_logits(rest, its_cache, 1)[0, -1]
