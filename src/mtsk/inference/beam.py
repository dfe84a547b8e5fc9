"""Beam search of a batch with a key-value cache. Rows may have different scales and limits.

The beam of a row narrows: a text that has ended takes one of its places for good. So a beam of one is the greedy text,
and one as wide as there are texts finds the best of all. A text that runs into a loop ends too, with one copy of it
(`decoding.num_repeats`). The LLM reads the open texts of all rows as one batch, which shrinks as they end.

Letters: B rows, H open texts of all rows together, S sequence, V vocabulary.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import Cache

from mtsk.inference.decoding import loop_surplus, read_prompts, row_of
from mtsk.inference.drafts import Draft
from mtsk.inference.prefixes import Prefix, PrefixScorer
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.model.rows_cache import RowsCache
from mtsk.scale import Scale

_CANDIDATES = 8  # times the beam's width: tokens that are looked at after each text where two readers decide


@dataclass(frozen=True)
class Beams:
    """How wide to search.

    Attributes:
        width: texts of a row that are followed at once; 1 is the greedy text.
        num_best: texts of a row that are wanted; at most `width`.
        length_power: a text's log-probability is divided by its number of tokens to this power. 0 prefers short texts.
        character_weight: what the character heads say of a text counts so much, beside the LLM's log-probability. Above
            0 no text has characters that the heads do not know, such as punctuation, unless their alphabet has them.

    Raises:
        ValueError: if a value is out of range.
    """

    width: int = 1
    num_best: int = 1
    length_power: float = 1.0
    character_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"{self.width} beams; allowed is 1 or more")
        if not 1 <= self.num_best <= self.width:
            raise ValueError(f"the {self.num_best} best of {self.width} beams; allowed is from 1 to {self.width}")
        if self.length_power < 0:
            raise ValueError(f"a length power of {self.length_power}; allowed is 0 or more")
        if self.character_weight < 0:
            raise ValueError(f"a character weight of {self.character_weight}; allowed is 0 or more")


GREEDY = Beams()


@dataclass(frozen=True)
class Hypothesis:
    """A text that a row may say."""

    tokens: tuple[int, ...]  # without the end of sequence
    logprob: float  # the LLM's, of all its tokens and, unless the limit or a loop cut it off, its end
    score: float  # both readers' log-probability, normalised by the length


@dataclass(frozen=True)
class _Open:
    row: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # the LLM's, of its beginnings: without tokens, with one, ...
    totals: tuple[float, ...]  # both readers', of its beginnings
    read: Prefix | None  # as the character head has it; None without
    draft: Draft

    def drafts(self, token: int) -> bool:
        """Whether the text, with one more token, is the beginning of its draft."""
        tokens = (*self.tokens, token)
        return tokens == self.draft.tokens[: len(tokens)]


@dataclass(frozen=True)
class _Follower:
    """An open text and one more token."""

    place: int  # of the open text
    token: int
    logprob: float
    total: float
    read: Prefix | None


@torch.inference_mode()
def beam_search(
    model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], max_new_tokens: Sequence[int], beams: Beams,
    scorers: Sequence[PrefixScorer | None] | None = None, drafts: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """The likeliest texts of each row.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        max_new_tokens: limit of each row; a text that reaches it is cut off there.
        beams: how wide to search, and how texts of unlike length compare.
        scorers: of each row, what its character head says of texts; None: the LLM alone decides.
        drafts: of each row, what its character head read, as tokens, its end too. How a draft goes on is among what is
            looked at, however little the LLM expects it, and one of the beams follows the draft itself: so a search
            that has lost its place finds back. Only for rows with a scorer.

    Returns:
        For each row its texts, the best score first: `beams.num_best`, or fewer if there are no more.
    """
    found: list[list[Hypothesis]] = [[] for _ in scales]
    scorers = scorers if scorers and beams.character_weight else [None] * len(scales)
    opened = [
        _Open(row, (), (0.0,), (0.0,), scorer.start() if scorer else None, Draft.of(draft if scorer else ()))
        for row, (scorer, draft) in enumerate(zip(scorers, drafts or [()] * len(scales), strict=True))
    ]
    for row, limit in enumerate(max_new_tokens):
        if limit < 1:
            found[row].append(Hypothesis((), 0.0, 0.0))
    opened = [text for text in opened if max_new_tokens[text.row] > 0]
    is_batch = isinstance(model.new_cache(_most_columns(inputs, max_new_tokens)), RowsCache)
    groups = [opened] if is_batch and opened else [[text] for text in opened]
    for group in groups:
        _search(model, inputs, scales, max_new_tokens, beams, scorers, group, found)
    return [sorted(texts, key=lambda text: -text.score)[: beams.num_best] for texts in found]


def _search(
    model: AvsrModel, prompts: LlmInput, scales: Sequence[Scale], max_new_tokens: Sequence[int], beams: Beams,
    scorers: Sequence[PrefixScorer | None], opened: list[_Open], found: list[list[Hypothesis]],
) -> None:  # fmt: skip
    """Follows texts, one of each row as yet, to their ends, which go to `found`."""
    rows = [text.row for text in opened]
    num_heard = dict(zip(rows, prompts.mask_BS[rows].sum(dim=1).tolist(), strict=True))
    prompts = LlmInput(*(part[rows] for part in vars(prompts).values()))
    cache: Cache = model.new_cache(_most_columns(prompts, max_new_tokens))
    if isinstance(cache, RowsCache):
        inputs = read_prompts(model, prompts, [scales[row] for row in rows], cache)
    else:
        inputs = row_of(prompts, 0)
    while opened:
        with model.select([scales[text.row] for text in opened]):
            logits_HV = model.next_logits(inputs, cache)
        logprobs_HV = logits_HV.float().log_softmax(dim=-1)
        rows_before = [text.row for text in opened]
        opened, parents = _extend(opened, logprobs_HV, scorers, found, max_new_tokens, model, beams)
        if not opened:
            break
        if isinstance(cache, RowsCache):
            opened, parents, is_same = _seated(opened, parents, rows_before)
            # Texts of a row have read the same prompt.
            since = [num_heard[text.row] if same else 0 for text, same in zip(opened, is_same, strict=True)]
            cache.follow(parents, since, int(inputs.positions_BS.max()) + 1)
        elif parents != list(range(len(rows_before))):
            cache.batch_select_indices(torch.tensor(parents, device=model.device))
        inputs = _next_column(inputs, parents, [text.tokens[-1] for text in opened], model.embedding_VE)


def _extend(
    opened: Sequence[_Open], logprobs_HV: Tensor, scorers: Sequence[PrefixScorer | None],
    found: list[list[Hypothesis]], limits: Sequence[int], model: AvsrModel, beams: Beams,
) -> tuple[list[_Open], list[int]]:  # fmt: skip
    """The open texts one token later, and where their beginnings stood. Those that end go to `found`."""
    ends = model.prompts.vocabulary.ends
    # No text has more among the best of its row, unless another reader may prefer what the LLM likes less.
    width = beams.width if not any(scorers) else _CANDIDATES * beams.width
    best = logprobs_HV.topk(min(width, logprobs_HV.shape[1]))
    steps_HW, tokens_HW = best.values.tolist(), best.indices.tolist()
    _look_at_drafts(opened, logprobs_HV, steps_HW, tokens_HW)
    following: list[_Open] = []
    parents: list[int] = []
    for row in dict.fromkeys(text.row for text in opened):
        likely = [
            (place, token, opened[place].logprobs[-1] + step)
            for place, text in enumerate(opened)
            if text.row == row
            for step, token in zip(steps_HW[place], tokens_HW[place], strict=True)
            if step > -math.inf
        ]
        still_open = []
        followers = _followers(opened, likely, scorers[row], ends, beams)
        chosen = heapq.nlargest(beams.width - len(found[row]), followers, key=lambda each: each.total)
        drafted = next((each for each in followers if opened[each.place].drafts(each.token)), None)
        if drafted is not None and chosen and drafted not in chosen:
            chosen[-1:] = [drafted]
        for next_ in chosen:
            parent = opened[next_.place]
            tokens, totals = (*parent.tokens, next_.token), (*parent.totals, next_.total)
            logprobs = (*parent.logprobs, next_.logprob)
            text = _Open(row, tokens, logprobs, totals, next_.read, parent.draft.after(next_.token))
            if next_.token in ends:
                found[row].append(_ended(parent.tokens, text, len(tokens), beams))
            elif num_surplus := loop_surplus(tokens):
                kept = len(tokens) - num_surplus
                found[row].append(_ended(tokens[:kept], text, kept, beams))
            elif len(tokens) == limits[row]:
                found[row].append(_ended(tokens, text, len(tokens), beams))
            else:
                still_open.append((text, next_.place))
        if _may_improve(found[row], [text for text, _ in still_open], limits[row], beams):
            following += [text for text, _ in still_open]
            parents += [place for _, place in still_open]
    return following, parents


def _look_at_drafts(
    opened: Sequence[_Open], logprobs_HV: Tensor, steps_HW: list[list[float]], tokens_HW: list[list[int]]
) -> None:
    """Adds to what is looked at after each text how its draft goes on, if that is not there already."""
    drafted = [(place, text.draft.rest()[:1]) for place, text in enumerate(opened)]
    new = [(place, rest[0]) for place, rest in drafted if rest and rest[0] not in tokens_HW[place]]
    if not new:
        return
    places, tokens = zip(*new, strict=True)
    for place, token, step in zip(places, tokens, logprobs_HV[list(places), list(tokens)].tolist(), strict=True):
        steps_HW[place].append(step)
        tokens_HW[place].append(token)


def _followers(
    opened: Sequence[_Open], likely: Sequence[tuple[int, int, float]], scorer: PrefixScorer | None,
    ends: Sequence[int], beams: Beams,
) -> list[_Follower]:  # fmt: skip
    """What may come next in a row, scored by both readers."""
    if scorer is None:
        return [_Follower(place, token, logprob, logprob, None) for place, token, logprob in likely]
    weight = beams.character_weight

    def heard(some: Sequence[tuple[int, int, float]], least_total: float = -math.inf) -> list[_Follower]:
        before = [opened[place].read or scorer.start() for place, _, _ in some]
        least = [(least_total - logprob) / weight for _, _, logprob in some]
        read = scorer.extend(before, [token for _, token, _ in some], least)
        scored = []
        for (place, token, logprob), old, new in zip(some, before, read, strict=True):
            total = logprob + weight * (old.whole_logprob if token in ends else new.logprob)
            scored.append(_Follower(place, token, logprob, total, new))
        return scored

    # The LLM's favourites and what is drafted first: after a character or two most others are worse for good.
    likely = sorted(likely, key=lambda each: each[2], reverse=True)
    is_drafted = [opened[place].drafts(token) for place, token, _ in likely]
    # Twice as many as are wanted, as some are impossible.
    is_first = [number < 2 * beams.width or drafted for number, drafted in enumerate(is_drafted)]
    followers = heard(list(itertools.compress(likely, is_first)))
    best = heapq.nlargest(beams.width, (each.total for each in followers))
    least_total = best[-1] if len(best) == beams.width else -math.inf
    followers += heard([each for each, first in zip(likely, is_first, strict=True) if not first], least_total)
    heard_at_all = [each for each in followers if each.total > -math.inf]
    return heard_at_all or [replace(each, total=each.logprob) for each in followers]


def _ended(tokens: tuple[int, ...], text: _Open, num_counted: int, beams: Beams) -> Hypothesis:
    """The beginning of a text that has so many tokens, an end included, as one that says nothing more."""
    return Hypothesis(tokens, text.logprobs[num_counted], text.totals[num_counted] / num_counted**beams.length_power)


def _may_improve(found: Sequence[Hypothesis], still_open: Sequence[_Open], limit: int, beams: Beams) -> bool:
    """Whether an open text can still come among the best: its log-probability only falls, so that the longest text
    that costs nothing more is the best it can become."""
    if len(found) < beams.num_best:
        return True
    worst = sorted((text.score for text in found), reverse=True)[beams.num_best - 1]
    return any(text.totals[-1] / limit**beams.length_power > worst for text in still_open)


def _most_columns(inputs: LlmInput, limits: Sequence[int]) -> int:
    return inputs.mask_BS.shape[1] + max(limits, default=0)


def _seated(
    opened: Sequence[_Open], parents: Sequence[int], rows_before: Sequence[int]
) -> tuple[list[_Open], list[int], list[bool]]:
    """The same texts and parents in the order of their places in the cache, so that little of it has to move: one of
    each parent's texts stands where the parent stood, the others where a text of the same row stood, if they can.

    Args:
        rows_before: whose texts stood in each place.

    Returns:
        Texts, parents, and whether in each place a text of the same row stood.
    """
    places: list[int | None] = [None] * len(parents)
    others = []
    for index, parent in enumerate(parents):
        if parent < len(places) and places[parent] is None:
            places[parent] = index
        else:
            others.append(index)
    free = [place for place, index in enumerate(places) if index is None]
    rows = [*rows_before, *[None] * len(places)]
    for index in others:
        place = next((place for place in free if rows[place] == opened[index].row), free[0])
        free.remove(place)
        places[place] = index
    order = [index for index in places if index is not None]
    is_same = [rows[place] == opened[index].row for place, index in enumerate(order)]
    return [opened[index] for index in order], [parents[index] for index in order], is_same


def _next_column(inputs: LlmInput, parents: Sequence[int], tokens: Sequence[int], table_VE: Tensor) -> LlmInput:
    """The next column of texts that go on from these parents."""
    token_H1 = torch.tensor(tokens, device=table_VE.device)[:, None]
    positions_H1 = inputs.positions_BS[list(parents), -1:] + 1
    return LlmInput(torch.nn.functional.embedding(token_H1, table_VE), torch.ones_like(token_H1), positions_H1)
