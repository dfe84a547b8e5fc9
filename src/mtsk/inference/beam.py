"""Beam search of a batch with a key-value cache. Rows may have different scales and limits.

The beam of a row narrows: a text that has ended takes one of its places for good. So a beam of one is the greedy text,
and one as wide as there are texts finds the best of all. The LLM reads the open texts of all rows as one batch, which
shrinks as they end.

Letters: B rows, H open texts of all rows together, S sequence, V vocabulary.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.scale import Scale


@dataclass(frozen=True)
class Beams:
    """How wide to search.

    Attributes:
        width: texts of a row that are followed at once; 1 is the greedy text.
        num_best: texts of a row that are wanted; at most `width`.
        length_power: a text's log-probability is divided by its number of tokens to this power. 0 prefers short texts.

    Raises:
        ValueError: if a value is out of range.
    """

    width: int = 1
    num_best: int = 1
    length_power: float = 1.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"{self.width} beams; allowed is 1 or more")
        if not 1 <= self.num_best <= self.width:
            raise ValueError(f"the {self.num_best} best of {self.width} beams; allowed is from 1 to {self.width}")
        if self.length_power < 0:
            raise ValueError(f"a length power of {self.length_power}; allowed is 0 or more")


@dataclass(frozen=True)
class Hypothesis:
    """A text that a row may say."""

    tokens: tuple[int, ...]  # without the end of sequence
    logprob: float  # of all its tokens and, unless the limit cut it off, its end
    score: float  # the log-probability, normalised by the length


@dataclass(frozen=True)
class _Open:
    row: int
    tokens: tuple[int, ...]
    logprob: float


@torch.inference_mode()
def beam_search(
    model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], max_new_tokens: Sequence[int], beams: Beams
) -> list[list[Hypothesis]]:
    """The likeliest texts of each row.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        max_new_tokens: limit of each row; a text that reaches it is cut off there.
        beams: how wide to search, and how texts of unlike length compare.

    Returns:
        For each row its texts, the best score first: `beams.num_best`, or fewer if there are no more.
    """
    found: list[list[Hypothesis]] = [[] for _ in scales]
    opened = [_Open(row, (), 0.0) for row in range(len(scales))]
    for row, limit in enumerate(max_new_tokens):
        if limit < 1:
            found[row].append(Hypothesis((), 0.0, 0.0))
    opened = [text for text in opened if max_new_tokens[text.row] > 0]
    if len(opened) < len(scales) and opened:
        inputs = _rows(inputs, [text.row for text in opened])
    cache = DynamicCache(config=model.llm.config)
    while opened:
        with model.select([scales[text.row] for text in opened]):
            logits_HV = model.next_logits(inputs, cache)
        opened, parents = _extend(opened, logits_HV.float().log_softmax(dim=-1), found, max_new_tokens, model, beams)
        if opened:
            inputs = _follow(inputs, cache, parents, [text.tokens[-1] for text in opened], model.embedding_VE)
    return [sorted(texts, key=lambda text: -text.score)[: beams.num_best] for texts in found]


def _extend(
    opened: Sequence[_Open], logprobs_HV: Tensor, found: list[list[Hypothesis]], limits: Sequence[int],
    model: AvsrModel, beams: Beams,
) -> tuple[list[_Open], list[int]]:  # fmt: skip
    """The open texts one token later, and where their beginnings stood. Those that end go to `found`."""
    ends = model.prompts.vocabulary.ends
    best = logprobs_HV.topk(min(beams.width, logprobs_HV.shape[1]))  # no text has more among the best of its row
    steps, tokens_HW = best.values.tolist(), best.indices.tolist()
    following: list[_Open] = []
    parents: list[int] = []
    for row in dict.fromkeys(text.row for text in opened):
        places = [place for place, text in enumerate(opened) if text.row == row]
        followers = (
            (opened[place].logprob + step, place, token)
            for place in places
            for step, token in zip(steps[place], tokens_HW[place], strict=True)
            if step > -math.inf
        )
        still_open = []
        for logprob, place, token in heapq.nlargest(beams.width - len(found[row]), followers):
            tokens = opened[place].tokens
            if token in ends:
                found[row].append(_ended(tokens, logprob, len(tokens) + 1, beams))
            elif len(tokens) + 1 == limits[row]:
                found[row].append(_ended((*tokens, token), logprob, len(tokens) + 1, beams))
            else:
                still_open.append((_Open(row, (*tokens, token), logprob), place))
        if _may_improve(found[row], [text for text, _ in still_open], limits[row], beams):
            following += [text for text, _ in still_open]
            parents += [place for _, place in still_open]
    return following, parents


def _ended(tokens: tuple[int, ...], logprob: float, num_tokens: int, beams: Beams) -> Hypothesis:
    return Hypothesis(tokens, logprob, logprob / num_tokens**beams.length_power)


def _may_improve(found: Sequence[Hypothesis], still_open: Sequence[_Open], limit: int, beams: Beams) -> bool:
    """Whether an open text can still come among the best: its log-probability only falls, so that the longest text
    that costs nothing more is the best it can become."""
    if len(found) < beams.num_best:
        return True
    worst = sorted((text.score for text in found), reverse=True)[beams.num_best - 1]
    return any(text.logprob / limit**beams.length_power > worst for text in still_open)


def _rows(inputs: LlmInput, rows: Sequence[int]) -> LlmInput:
    index = torch.tensor(rows, device=inputs.mask_BS.device)
    return LlmInput(inputs.embeds_BSE[index], inputs.mask_BS[index], inputs.positions_BS[index])


def _follow(
    inputs: LlmInput, cache: DynamicCache, parents: Sequence[int], tokens: Sequence[int], table_VE: Tensor
) -> LlmInput:
    """The next column: each text goes on from what its parent has read."""
    device = inputs.mask_BS.device
    if list(parents) != list(range(len(inputs.mask_BS))):
        cache.batch_select_indices(torch.tensor(parents, device=device))
    kept = _rows(inputs, parents)
    token_H1 = torch.tensor(tokens, device=device)[:, None]
    return replace(
        kept,
        embeds_BSE=torch.nn.functional.embedding(token_H1, table_VE),
        mask_BS=torch.cat((kept.mask_BS, torch.ones_like(token_H1)), dim=1),
        positions_BS=kept.positions_BS[:, -1:] + 1,
    )
