"""Beam search: exhaustive where it is wide enough, greedy where it is one wide, the same in any batch."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsk.inference.beam import Beams, Hypothesis, beam_search
from mtsk.inference.decoding import greedy, loop_surplus, num_repeats
from mtsk.inference.prefixes import PrefixScorer
from mtsk.model.avsr import AvsrModel
from mtsk.model.ctc import Alphabet
from mtsk.model.fusion import LlmInput
from mtsk.scale import Scale
from mtsk.types import Batch
from tests.tiny import row_of, tiny_batch, tiny_model

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]
ALLOWED = (40, 70, 100)  # tokens of the small language


@torch.inference_mode()
def _search(
    model: AvsrModel, batch: Batch, scales: list[Scale], limits: list[int], beams: Beams
) -> list[list[Hypothesis]]:
    inputs = model.embed(model.encode(batch, scales), scales, [[]] * len(scales))
    return beam_search(model, inputs, scales, limits, beams)


def _speak_little(model: AvsrModel, monkeypatch: pytest.MonkeyPatch, scale: float = 0.1) -> Callable[[Tensor], Tensor]:
    """Leaves the model a handful of tokens and the end, none of them much likelier than the others."""
    allowed = [*ALLOWED, *model.prompts.vocabulary.ends]

    def restrict(logits: Tensor) -> Tensor:
        few = torch.full_like(logits, -torch.inf)
        few[..., allowed] = logits[..., allowed] * scale
        return few

    next_logits = model.next_logits
    monkeypatch.setattr(model, "next_logits", lambda inputs, cache: restrict(next_logits(inputs, cache)))
    return restrict


@torch.no_grad()
def _all_texts(
    model: AvsrModel, batch: Batch, scale: Scale, limit: int, restrict: Callable[[Tensor], Tensor], power: float
) -> list[tuple[tuple[int, ...], float]]:
    """Every text up to the limit with its normalised log-probability, computed without a cache, the best first."""
    encoded = model.encode(batch, [scale])
    end = model.prompts.vocabulary.eos
    scored = []
    for length in range(limit + 1):
        for tokens in itertools.product(ALLOWED, repeat=length):
            written = [*tokens, end] if length < limit else [*tokens]
            inputs = model.embed(encoded, [scale], [written[:-1]])
            with model.select([scale]):
                logits = model.llm(inputs_embeds=inputs.embeds_BSE).logits[0, -len(written) :]
            logprobs = restrict(logits).log_softmax(dim=-1)
            total = sum(float(logprobs[i, token]) for i, token in enumerate(written))
            scored.append((tokens, total / len(written) ** power))
    return sorted(scored, key=lambda pair: -pair[1])


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, limit = tiny_model("mss"), row_of(tiny_batch(), 0), 3
    expected = _all_texts(model, batch, SCALES[0], limit, restrict := _speak_little(model, monkeypatch), power)
    assert restrict is not None
    assert len(expected) == sum(3**length for length in range(limit + 1))
    found = _search(model, batch, SCALES[:1], [limit], Beams(len(expected), len(expected), power))[0]
    assert [text.tokens for text in found] == [tokens for tokens, _ in expected]
    assert [text.score for text in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    few = _search(model, batch, SCALES[:1], [limit], Beams(len(expected), 4, power))[0]
    assert [text.tokens for text in few] == [tokens for tokens, _ in expected[:4]], "it may stop sooner, not elsewhere"


def test_with_a_second_reader_the_best_of_all_texts_is_that_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, limit, weight = tiny_model("mss"), row_of(tiny_batch(), 0), 3, 0.7
    texts = _all_texts(model, batch, SCALES[0], limit, _speak_little(model, monkeypatch), power=0.0)
    alphabet, spelled = Alphabet(" ab"), dict(zip(ALLOWED, (" a", "b", " ba"), strict=True))
    read_SC = torch.randn(12, alphabet.num_classes, generator=torch.Generator().manual_seed(3)).log_softmax(dim=-1)
    scorer = PrefixScorer(read_SC, alphabet, lambda token: spelled.get(token, ""))
    expected = []
    for tokens, logprob in texts:
        prefix = scorer.start()
        for token in tokens:
            [prefix] = scorer.extend([prefix], [token])
        heard = prefix.whole_logprob if len(tokens) < limit else prefix.logprob
        expected.append((tokens, logprob + weight * heard))
    expected.sort(key=lambda pair: -pair[1])
    assert [tokens for tokens, _ in expected] != [tokens for tokens, _ in texts]
    beams = Beams(len(texts), len(texts), 0.0, weight)
    inputs = model.embed(model.encode(batch, SCALES[:1]), SCALES[:1], [[]])
    found = beam_search(model, inputs, SCALES[:1], [limit], beams, [scorer])[0]
    assert [text.tokens for text in found] == [tokens for tokens, _ in expected]
    assert [text.score for text in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    alone = dict(texts)
    assert [text.logprob for text in found] == pytest.approx([alone[text.tokens] for text in found], abs=1e-4)


def _without_giving_up(monkeypatch: pytest.MonkeyPatch) -> None:
    extend = PrefixScorer.extend
    monkeypatch.setattr(PrefixScorer, "extend", lambda self, prefixes, tokens, _: extend(self, prefixes, tokens))


def test_giving_up_on_what_cannot_win_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one character to three a token, some that end and some that the head can not read, several rows."""
    model, alphabet = tiny_model("mss"), Alphabet(" abcd")
    spelled = ["".join(text) for n in (1, 2, 3) for text in itertools.product(" abc", repeat=n)]
    draws = torch.Generator().manual_seed(5)

    def spell(token: int) -> str:
        return (
            "" if token in model.prompts.vocabulary.ends else "?" if token % 7 == 0 else spelled[token % len(spelled)]
        )

    reads = [torch.randn(9 + row, alphabet.num_classes, generator=draws).mul(3).log_softmax(-1) for row in range(3)]
    scorers = [PrefixScorer(read_SC, alphabet, spell) for read_SC in reads]
    inputs = model.embed(model.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    drafts = [[40, 70, model.prompts.vocabulary.eos], [], [100]]
    num_given_up = 0
    extend = PrefixScorer.extend

    def counted(self: PrefixScorer, prefixes: Any, tokens: Any, least: Any = None) -> Any:
        nonlocal num_given_up
        read, all_read = extend(self, prefixes, tokens, least), extend(self, prefixes, tokens)
        num_given_up += sum(a.logprob != b.logprob for a, b in zip(read, all_read, strict=True))
        return read

    for width in (1, 2, 4):
        beams = Beams(width, width, 0.0, 0.7)
        with monkeypatch.context() as patch:
            patch.setattr(PrefixScorer, "extend", counted)
            found = beam_search(model, inputs, SCALES, [6, 5, 4], beams, scorers, drafts)
        with monkeypatch.context() as patch:
            _without_giving_up(patch)
            assert found == beam_search(model, inputs, SCALES, [6, 5, 4], beams, scorers, drafts)
    assert num_given_up > 100


def test_after_what_the_head_can_not_read_every_token_is_weighed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model("mss"), row_of(tiny_batch(), 0)
    end, alphabet = model.prompts.vocabulary.eos, Alphabet(" ab")
    inputs = model.embed(model.encode(batch, SCALES[:1]), SCALES[:1], [[]])
    num_heard = int(inputs.mask_BS.sum())

    def next_logits(next_: LlmInput, cache: object) -> Tensor:
        logits_V = torch.full((model.prompts.vocabulary.size,), -torch.inf)
        step = int(next_.positions_BS.max()) + 1 - num_heard
        many = {0: {40: 0.0}, 1: {70: 1.0, 71: 0.9, 100: 0.5}}.get(step, {end: 0.0})
        for token, logit in many.items():
            logits_V[token] = logit
        return logits_V.expand(len(next_.mask_BS), -1)

    monkeypatch.setattr(model, "next_logits", next_logits)
    read_SC = torch.full((4, alphabet.num_classes), -9.0)
    read_SC[0, 3] = read_SC[1, 0] = read_SC[2, 0] = read_SC[3, 0] = 0.0  # a clear b
    spell = {40: "?", 70: "a", 71: "a", 100: "b", end: ""}.__getitem__
    scorer = PrefixScorer(read_SC.log_softmax(dim=-1), alphabet, spell)
    [[best]] = beam_search(model, inputs, SCALES[:1], [5], Beams(1, 1, 0.0, 1.0), [scorer])
    assert best.tokens == (40, 100)


def test_a_draft_is_looked_at_even_where_the_llm_expects_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, drafted = tiny_model("mss"), row_of(tiny_batch(), 0), 70
    expected = [token for token in range(60) if token not in model.prompts.vocabulary.ends]
    logits_V = torch.full((model.prompts.vocabulary.size,), -torch.inf)
    logits_V[expected], logits_V[drafted], logits_V[model.prompts.vocabulary.eos] = 0.0, -3.0, -1.0
    monkeypatch.setattr(model, "next_logits", lambda inputs, cache: logits_V.expand(len(inputs.mask_BS), -1))
    alphabet = Alphabet(" ab")
    read_SC = torch.full((2, alphabet.num_classes), -9.0)
    read_SC[[0, 1], [2, 3]] = 0.0  # an a, then a b
    scorer = PrefixScorer(read_SC.log_softmax(dim=-1), alphabet, lambda token: " ab" if token == drafted else " b")
    inputs = model.embed(model.encode(batch, SCALES[:1]), SCALES[:1], [[]])
    beams = Beams(2, 1, 0.0, 1.0)
    for drafts, is_found in ((None, False), ([[drafted, model.prompts.vocabulary.eos]], True)):
        [[best]] = beam_search(model, inputs, SCALES[:1], [3], beams, [scorer], drafts)
        assert (best.tokens == (drafted,)) == is_found
    [[best]] = beam_search(model, inputs, SCALES[:1], [3], beams, [None], [[drafted]])
    assert drafted not in best.tokens, "without a second reader it has no advocate"


def test_what_the_head_can_not_read_is_written_only_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = tiny_model("mss"), row_of(tiny_batch(), 0)
    end, alphabet = model.prompts.vocabulary.eos, Alphabet(" ab")
    read_SC = torch.zeros(6, alphabet.num_classes).log_softmax(dim=-1)
    scorer = PrefixScorer(read_SC, alphabet, {40: "?", 70: "a", 100: "b", end: ""}.__getitem__)
    inputs = model.embed(model.encode(batch, SCALES[:1]), SCALES[:1], [[]])
    for tokens, expected in (((40, 70, 100), (70,)), ((40,), (40,))):
        logits_V = torch.full((model.prompts.vocabulary.size,), -torch.inf)
        logits_V[40], logits_V[list(tokens[1:])] = 5.0, 4.0 - torch.arange(len(tokens) - 1)
        monkeypatch.setattr(
            model, "next_logits", lambda inputs, cache, row=logits_V: row.expand(len(inputs.mask_BS), -1)
        )
        [[best]] = beam_search(model, inputs, SCALES[:1], [1], Beams(2, 1, 0.0, 0.1), [scorer])
        assert best.tokens == expected


def test_one_beam_follows_the_draft_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though both readers like every token of it less, in a narrow beam, the whole of it is best."""
    model, batch, end = tiny_model("mss"), row_of(tiny_batch(), 0), 70
    model.prompts.vocabulary = replace(model.prompts.vocabulary, eos=end)
    logits_V = torch.full((model.prompts.vocabulary.size,), -torch.inf)
    logits_V[[40, 41, 42, 100]] = torch.tensor([3.0, 2.9, 2.8, 0.0])
    logits_V[end] = 1.0
    monkeypatch.setattr(model, "next_logits", lambda inputs, cache: logits_V.expand(len(inputs.mask_BS), -1))
    alphabet = Alphabet(" ab")
    read_SC = torch.full((3, alphabet.num_classes), -4.0)
    read_SC[[0, 1, 2], [3, 0, 3]] = 0.0  # b, blank, b
    scorer = PrefixScorer(read_SC.log_softmax(dim=-1), alphabet, lambda token: {100: "b", end: ""}.get(token, "a"))
    inputs = model.embed(model.encode(batch, SCALES[:1]), SCALES[:1], [[]])
    draft, beams = [100, 100, end], Beams(2, 2, 0.0, 0.1)
    [without] = beam_search(model, inputs, SCALES[:1], [6], beams, [scorer])
    [followed] = beam_search(model, inputs, SCALES[:1], [6], beams, [scorer], [draft])
    assert (100, 100) not in [text.tokens for text in without]
    assert (100, 100) in [text.tokens for text in followed]


def test_the_power_of_the_length_decides_between_short_and_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model("mss"), row_of(tiny_batch(), 0)
    _speak_little(model, monkeypatch)
    by_power = [_search(model, batch, SCALES[:1], [3], Beams(40, 1, power))[0][0] for power in (0.0, 3.0)]
    assert len(by_power[0].tokens) < len(by_power[1].tokens)


@pytest.mark.parametrize("strategy", ["ms", "mss"])
def test_a_beam_of_one_is_greedy(strategy: str) -> None:
    model, batch, limits = tiny_model(strategy), tiny_batch(), [9, 14, 0]
    found = _search(model, batch, SCALES, limits, Beams())
    inputs = model.embed(model.encode(batch, SCALES), SCALES, [[]] * 3)
    decoded = greedy(model, inputs, SCALES, limits)
    assert [list(row[0].tokens) for row in found] == list(decoded.tokens)
    assert all(len(row) == 1 for row in found)
    assert [row[0].logprob for row in found] == pytest.approx([sum(each) for each in decoded.log_probs], abs=1e-4)


def test_a_mixed_batch_finds_what_each_row_finds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts end at different times, so that the batch shrinks and its rows move."""
    model, batch, limits, beams = tiny_model("mss"), tiny_batch(), [6, 9, 4], Beams(5, 3)
    _speak_little(model, monkeypatch, scale=1.0)
    together = _search(model, batch, SCALES, limits, beams)
    assert len({row[0].tokens for row in together}) == 3, "the rows must differ to tell them apart"
    for row, (scale, limit) in enumerate(zip(SCALES, limits, strict=True)):
        alone = _search(model, row_of(batch, row), [scale], [limit], beams)[0]
        assert [text.tokens for text in alone] == [text.tokens for text in together[row]]
        assert [text.score for text in alone] == pytest.approx([text.score for text in together[row]], abs=1e-4)
        assert len(alone) == 3
        assert [text.score for text in alone] == sorted((text.score for text in alone), reverse=True)


@pytest.mark.parametrize(("width", "num_best", "power", "said"), [
    (0, 1, 1.0, "0 beams; allowed is 1 or more"),
    (2, 3, 1.0, "the 3 best of 2 beams; allowed is from 1 to 2"),
    (2, 0, 1.0, "the 0 best"),
    (1, 1, -1.0, "length power of -1.0"),
    (1, 1, 1.0, "character weight of -1.0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(width: int, num_best: int, power: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Beams(width, num_best, power, -1.0 if "character" in said else 0.3)


# Loops.


def test_a_loop_ends_a_text_and_leaves_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that would rather say the same again than end."""
    model, batch = tiny_model("mss"), row_of(tiny_batch(), 0)
    first, second = ALLOWED[:2]
    end = model.prompts.vocabulary.eos
    logits_V = torch.full((model.prompts.vocabulary.size,), -torch.inf)
    logits_V[[first, second, end]] = torch.tensor([0.0, -2.0, -4.0])
    logprobs_V = logits_V.log_softmax(dim=-1)
    num_steps = 0

    def next_logits(inputs: LlmInput, cache: object) -> Tensor:
        nonlocal num_steps
        num_steps += 1
        return logits_V.expand(len(inputs.mask_BS), -1)

    monkeypatch.setattr(model, "next_logits", next_logits)
    [alone] = _search(model, batch, SCALES[:1], [100], Beams())
    assert [text.tokens for text in alone] == [(first,)]
    assert alone[0].logprob == pytest.approx(float(logprobs_V[first])), "of what is kept"
    assert num_steps == num_repeats(1)
    num_steps = 0
    [found] = _search(model, batch, SCALES[:1], [100], Beams(4, 4))
    assert num_steps < 30
    assert (first,) in [text.tokens for text in found]
    assert all(loop_surplus(text.tokens) == 0 for text in found)
    assert [text.score for text in found] == sorted((text.score for text in found), reverse=True)
