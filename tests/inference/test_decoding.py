"""Greedy decoding: a mixed batch writes what each row writes alone, and what a loop without a cache writes; a draft,
right or wrong, changes the number of steps and not the text."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Cache, DynamicCache

from mtsk.inference import decoding
from mtsk.inference.beam import Beams, beam_search
from mtsk.inference.decoding import Decoded, greedy, num_repeats
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.model.llm import Llm
from mtsk.model.rows_cache import RowsCache
from mtsk.scale import Scale
from mtsk.types import Batch
from tests.tiny import TEXTS, row_of, tiny_batch, tiny_causal_lm, tiny_model, tiny_tokenizer

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]
LIMITS = [9, 14, 5]


@torch.inference_mode()
def _decoded(
    model: AvsrModel, batch: Batch, scales: list[Scale], limits: list[int], drafts: list[list[int]] | None = None
) -> Decoded:
    inputs = model.embed(model.encode(batch, scales), scales, [[]] * len(scales))
    return greedy(model, inputs, scales, limits, drafts)


def _greedy(model: AvsrModel, batch: Batch, scales: list[Scale], limits: list[int]) -> list[list[int]]:
    return list(_decoded(model, batch, scales, limits).tokens)


@torch.no_grad()
def _naive(model: AvsrModel, batch: Batch, scale: Scale, limit: int) -> tuple[list[int], list[float]]:
    """One row, the whole sequence computed again for each token: tokens, log-probabilities."""
    encoded = model.encode(batch, [scale])
    written: list[int] = []
    log_probs: list[float] = []
    while len(written) < limit:
        inputs = model.embed(encoded, [scale], [written])
        with model.adapters.select([scale], "cpu"):
            log_probs_V = model.llm(inputs_embeds=inputs.embeds_BSE).logits[0, -1].log_softmax(dim=-1)
        best = int(log_probs_V.argmax())
        log_probs.append(float(log_probs_V[best]))
        if best == model.prompts.vocabulary.eos:
            break
        written.append(best)
    return written, log_probs


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("strategy", ["ms", "ss", "mss"])
def test_a_mixed_batch_writes_what_each_row_writes_alone(kind: str, strategy: str) -> None:
    model, batch = tiny_model(strategy, kind=kind), tiny_batch()
    decoded = _decoded(model, batch, SCALES, LIMITS)
    together = decoded.tokens
    assert [len(row) for row in together] == LIMITS, "chosen so that no row ends by itself"
    assert len({tuple(row[:5]) for row in together}) == 3, "the rows must differ to tell them apart"
    for row, (scale, limit) in enumerate(zip(SCALES, LIMITS, strict=True)):
        alone = row_of(batch, row)
        assert _greedy(model, alone, [scale], [limit]) == [together[row]]
        written, log_probs = _naive(model, alone, scale, limit)
        assert written == together[row]
        assert decoded.log_probs[row] == pytest.approx(log_probs, abs=1e-4)
        assert decoded.num_steps[row] == limit


def test_a_row_ends_at_the_end_of_sequence_and_the_others_go_on() -> None:
    model, batch = tiny_model("mss"), tiny_batch()
    before = _decoded(model, batch, SCALES, LIMITS)
    # Let the third token of the second row be an end of sequence from now on, and the second of the first another.
    eos, other = before.tokens[1][2], before.tokens[0][1]
    model.prompts.vocabulary = replace(model.prompts.vocabulary, eos=eos, other_ends=(other,))
    after = _decoded(model, batch, SCALES, LIMITS)
    for row in range(3):
        tokens = before.tokens[row]
        end = min((i for i, token in enumerate(tokens) if token in (eos, other)), default=len(tokens))
        assert after.tokens[row] == tokens[:end]
        assert len(after.log_probs[row]) == min(end + 1, len(tokens)), "the end has a log-probability too"
    assert len(after.tokens[1]) <= 2
    assert len(after.tokens[0]) <= 1


def test_limits() -> None:
    model, batch = tiny_model(), tiny_batch()
    full = _greedy(model, batch, SCALES, LIMITS)
    assert _greedy(model, batch, SCALES, [0, 0, 0]) == [[], [], []]
    assert _greedy(model, batch, SCALES, [0, 3, 1]) == [[], full[1][:3], full[2][:1]]


@torch.inference_mode()
def test_untrained_scale_is_refused() -> None:
    model, batch = tiny_model(), tiny_batch()
    inputs = model.embed(model.encode(batch, SCALES), SCALES, [[]] * 3)
    with pytest.raises(ValueError, match="a8 was not trained"):
        greedy(model, inputs, [Scale.parse("a8")] * 3, LIMITS)


# Drafts.


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> AvsrModel:
    return tiny_model("mss", kind=request.param)


@pytest.mark.parametrize("limits", [[9, 14, 5], [3, 0, 24]])
def test_a_right_draft_takes_one_step(model: AvsrModel, limits: list[int]) -> None:
    batch = tiny_batch()
    plain = _decoded(model, batch, SCALES, limits)
    drafts = [[*row, model.prompts.vocabulary.eos] for row in plain.tokens]
    drafted = _decoded(model, batch, SCALES, limits, drafts)
    assert drafted.tokens == plain.tokens
    assert drafted.num_steps == tuple(min(1, limit) for limit in limits)
    for one, other in zip(drafted.log_probs, plain.log_probs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_no_draft_changes_the_text(model: AvsrModel) -> None:
    """Drafts of other rows, of nothing, too long, with errors of every kind: each in a batch of unlike ones."""
    batch, rng = tiny_batch(), np.random.default_rng(0)
    plain = _decoded(model, batch, SCALES, [12, 14, 9])
    size = model.prompts.vocabulary.size
    right = [list(row) for row in plain.tokens]
    cases = [[[], right[1], right[2] * 3], right[1:] + right[:1], [[], [], [size - 1]], [row[::-1] for row in right]]
    for _ in range(12):
        wrong = []
        for row in right:
            tokens = list(row)
            for _ in range(rng.integers(0, 4)):
                place = int(rng.integers(0, len(tokens)))
                kind = rng.integers(0, 3)
                tokens[place : place + (kind != 1)] = [] if kind == 0 else [int(rng.integers(0, size))]
            wrong.append(tokens)
        cases.append(wrong)
    for drafts in cases:
        drafted = _decoded(model, batch, SCALES, [12, 14, 9], drafts)
        assert drafted.tokens == plain.tokens, drafts
        assert all(fewer <= most for fewer, most in zip(drafted.num_steps, plain.num_steps, strict=True))
        for i, (scale, limit) in enumerate(zip(SCALES, [12, 14, 9], strict=True)):
            alone = _decoded(model, row_of(batch, i), [scale], [limit], [drafts[i]])
            assert (alone.tokens[0], alone.num_steps[0]) == (plain.tokens[i], drafted.num_steps[i])


@pytest.mark.parametrize("num_seats", [1, 2, 5])
def test_where_a_row_ends_another_begins(model: AvsrModel, monkeypatch: pytest.MonkeyPatch, num_seats: int) -> None:
    scales, limits = SCALES * 3, [9, 14, 5, 3, 0, 8, 12, 1, 14]
    batch = tiny_batch(TEXTS[:3] * 3, (1.31, 0.735, 2.0) * 3, (30, 19, 47) * 3)
    plain = _decoded(model, batch, scales, limits)
    assert [len(row) for row in plain.tokens] == limits, "chosen so that no row ends by itself"
    drafts = [row[1:] + row[:3] for row in plain.tokens]
    num_passes: dict[int, int] = {}
    exact = model.last_logits

    def last_logits(inputs: LlmInput, cache: Cache, num_columns: int) -> torch.Tensor:
        num_rows = len(inputs.mask_BS)
        num_passes[num_rows] = num_passes.get(num_rows, 0) + 1
        return exact(inputs, cache, num_columns)

    monkeypatch.setattr(model, "last_logits", last_logits)
    monkeypatch.setattr(decoding, "_MOST_ROWS", num_seats)
    decoded = _decoded(model, batch, scales, limits)
    assert decoded.tokens == plain.tokens
    assert decoded.num_steps == plain.num_steps
    assert set(num_passes) == {num_seats}
    assert num_passes[num_seats] <= sum(limits) / num_seats + max(limits)
    assert _decoded(model, batch, scales, limits, drafts).tokens == plain.tokens


def test_a_draft_is_checked_as_far_as_it_was_right(model: AvsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that is wrong throughout soon one token in each pass, of a right one twice as many as before."""
    batch = row_of(tiny_batch(), 1)
    right = _greedy(model, batch, [SCALES[1]], [14])[0]
    odd = next(token for token in range(model.prompts.vocabulary.size) if token not in right)
    monkeypatch.setattr(decoding, "_FIRST_REACH", 4)
    num_checked: list[int] = []
    exact = model.last_logits

    def last_logits(inputs: LlmInput, cache: Cache, num_columns: int) -> torch.Tensor:
        num_checked.append(num_columns - 1)
        return exact(inputs, cache, num_columns)

    monkeypatch.setattr(model, "last_logits", last_logits)
    assert _decoded(model, batch, [SCALES[1]], [14], [[odd] * 14]).tokens[0] == right
    assert num_checked == [4, 2, *[1] * 11, 0]
    num_checked.clear()
    assert _decoded(model, batch, [SCALES[1]], [14], [right]).num_steps == (2,)
    assert num_checked == [4, 8]  # a pass writes one more than it checks


@pytest.mark.parametrize("kind", ["substituted", "inserted", "left out"])
def test_one_error_costs_one_step(model: AvsrModel, kind: str) -> None:
    batch = row_of(tiny_batch(), 1)
    right = _greedy(model, batch, [SCALES[1]], [14])[0]
    place = next(i for i in range(3, 10) if len(set(right[i - 1 : i + 2])) == 3)
    odd = next(token for token in range(model.prompts.vocabulary.size) if token not in right)
    draft = {
        "substituted": [*right[:place], odd, *right[place + 1 :]],
        "inserted": [*right[:place], odd, *right[place:]],
        "left out": [*right[:place], *right[place + 1 :]],
    }[kind]
    drafted = _decoded(model, batch, [SCALES[1]], [14], [draft])
    assert drafted.tokens[0] == right
    assert drafted.num_steps[0] <= (2 if kind == "substituted" else 3)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_state_that_can_not_be_taken_back_is_read_row_by_row(
    model: AvsrModel, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    batch, eos = tiny_batch(), model.prompts.vocabulary.eos
    inputs = model.embed(model.encode(batch, SCALES), SCALES, [[]] * 3)

    def texts() -> list[list[int]]:
        if beams > 1:
            return [list(row[0].tokens) for row in beam_search(model, inputs, SCALES, LIMITS, Beams(beams))]
        return list(greedy(model, inputs, SCALES, LIMITS, [[eos], [5, 6], []]).tokens)

    plain = texts()
    monkeypatch.setitem(vars(model._llm), "reads_rows", False)
    assert isinstance(model.new_cache(64), DynamicCache)
    num_rows: list[int] = []
    exact = model.last_logits

    def last_logits(inputs: LlmInput, cache: Cache, num_columns: int) -> torch.Tensor:
        num_rows.append(len(inputs.mask_BS))
        return exact(inputs, cache, num_columns)

    monkeypatch.setattr(model, "last_logits", last_logits)
    assert texts() == plain
    assert max(num_rows) == beams
    monkeypatch.undo()
    config = model.llm.config
    monkeypatch.setattr(config, "layer_types", ["full_attention", "sliding_attention"], raising=False)
    monkeypatch.setattr(config, "sliding_window", 80, raising=False)
    assert isinstance(model.new_cache(79), RowsCache)
    assert isinstance(model.new_cache(80), DynamicCache)


@torch.inference_mode()
def test_near_ties_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch and the draft change the rounding: without the rule for near ties a text changes too.

    Here rounding is drawn, by the shape of what is computed, so that it does not depend on the machine.
    """
    scales = [Scale.parse(text) for text in ("a4", "a16v5", "v2")] * 4
    batch = tiny_batch(TEXTS[:3] * 4, (1.31, 0.735, 2.0) * 4, (30, 19, 47) * 4)
    model = tiny_model("mss").to(torch.bfloat16)
    inputs = model.embed(model.encode(batch, scales), scales, [[]] * 12)
    exact = model.last_logits

    def last_logits(read: LlmInput, cache: Cache, num_columns: int) -> torch.Tensor:
        logits_BDV = exact(read, cache, num_columns)
        key = torch.Generator().manual_seed(hash((read.embeds_BSE.shape, read.mask_BS.shape, num_columns)) % 2**31)
        share_BDV = torch.rand(logits_BDV.shape, generator=key) - 0.5
        coarse_BDV = logits_BDV.float() + 64.0  # where bfloat16 has steps of 0.5
        return (coarse_BDV + 0.2 * share_BDV).to(logits_BDV.dtype)

    monkeypatch.setattr(model, "last_logits", last_logits)

    def texts() -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        plain = list(greedy(model, inputs, scales, [24] * 12).tokens)
        drafts = [row[:5] + row[6:] for row in plain]
        alone: list[list[int]] = []
        for row, scale in enumerate(scales):
            real_S = inputs.mask_BS[row].bool()
            parts = (inputs.embeds_BSE, inputs.mask_BS, inputs.positions_BS)
            one = LlmInput(*(part[row : row + 1, real_S] for part in parts))
            alone += greedy(model, one, [scale], [24]).tokens
        return plain, list(greedy(model, inputs, scales, [24] * 12, drafts).tokens), alone

    plain, drafted, alone = texts()
    assert drafted == plain
    assert alone == plain
    monkeypatch.setattr(decoding, "_NEAR_TIE_EPS", -1.0)
    plain, drafted, alone = texts()
    assert drafted != plain or alone != plain, "rounding changes nothing here: this test can't fail"


# Loops.


@pytest.mark.parametrize(
    ("tokens", "num_surplus"),
    [
        ([7, 7, 7], 0),  # "no no no"
        ([7] * 11, 0),
        ([1, *[7] * 12], 11),
        ([3, *[1, 2] * 5], 0),
        ([3, *[1, 2] * 6], 10),
        ([*[1, 2] * 5, 1], 0),
        ([3, *[1, 2, 4] * 4], 9),
        ([*range(8)] * 4, 24),
        ([*range(9)] * 4, 0),
        ([], 0),
    ],
)
def test_what_a_loop_is(tokens: list[int], num_surplus: int) -> None:
    assert decoding.loop_surplus(tokens) == num_surplus


def test_a_loop_ends_a_row_and_leaves_one_copy(model: AvsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that always says the same; with drafts of the loop too."""
    batch, token = tiny_batch(), model.prompts.word_ids("blue")[0]

    def last_logits(inputs: object, cache: object, num_columns: int) -> torch.Tensor:
        logits_BDV = torch.zeros(3, num_columns, model.prompts.vocabulary.size)
        logits_BDV[..., token] = 5.0
        return logits_BDV

    monkeypatch.setattr(model, "last_logits", last_logits)
    for drafts in (None, [[token] * 30, [token] * 3, []]):
        decoded = _decoded(model, batch, SCALES, [40, 40, 5], drafts)
        assert decoded.tokens == ([token], [token], [token] * 5)
        assert [len(log_probs) for log_probs in decoded.log_probs] == [1, 1, 5]
    assert num_repeats(1) == 12


def test_ends_of_the_generation_config() -> None:
    lm, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    assert Llm.build(lm, tokenizer).prompts.vocabulary.ends == (tokenizer.eos_token_id,)
    lm.generation_config.eos_token_id = [9, tokenizer.eos_token_id, 5]
    assert Llm.build(lm, tokenizer).prompts.vocabulary.ends == (tokenizer.eos_token_id, 5, 9)
