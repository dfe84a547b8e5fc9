"""Rows of unlike length in one cache: what it has of a row is what the row has alone, wherever a text goes back."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mtsk.inference.decoding import read_prompts, row_of
from mtsk.model.exactness import reads_exactly
from mtsk.model.flat import FlatDecoder
from mtsk.model.fusion import LlmInput
from mtsk.model.rows_cache import PLACES, RowsCache
from mtsk.scale import Scale
from tests.tiny import tiny_batch, tiny_model

NUM_DRAFTED = 4
SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]


@pytest.mark.parametrize("is_flat", [False, True])
@torch.inference_mode()
def test_a_batch_has_of_a_row_what_it_has_alone(is_flat: bool) -> None:
    model = tiny_model("mss").to(torch.bfloat16)
    if is_flat:
        model.flatten()
    inputs = model.embed(model.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    cache = RowsCache()
    last = read_prompts(model, inputs, SCALES, cache)
    assert torch.equal(last.embeds_BSE, inputs.embeds_BSE[:, -1:])
    assert last.positions_BS[:, 0].tolist() == (inputs.mask_BS.sum(dim=1) - 1).tolist()
    for row in range(3):
        num_read, alone = int(last.positions_BS[row]), RowsCache()
        read_prompts(model, row_of(inputs, row), [SCALES[row]], alone)
        layers: list[tuple[Any, Any]] = list(zip(cache.row(row, num_read).layers, alone.layers, strict=True))
        for found, expected in layers:
            assert torch.equal(found.keys[0], expected.keys[0, :, :num_read]), "bit for bit: it decides near ties"
            assert torch.equal(found.values[0], expected.values[0, :, :num_read])


def _update(cache: RowsCache, positions: list[list[int]], new_BKSD: Tensor) -> Tensor:
    cache.places.set(torch.tensor(positions))
    keys, values = cache.update(new_BKSD, -new_BKSD, 0)
    assert torch.equal(values, -keys)
    return keys


def test_columns_come_to_their_places_and_may_be_written_over() -> None:
    cache, draws = RowsCache(), torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 4, 5, generator=draws), torch.randn(2, 3, 2, 5, generator=draws)
    keys = _update(cache, [[0, 1, 2, 3], [0, 1, 2, 3]], first)
    assert keys.shape == (2, 3, PLACES, 5)
    assert torch.equal(keys[:, :, :4], first)
    assert not keys[:, :, 4:].any()
    keys = _update(cache, [[4, 5], [2, 3]], second)  # the second row goes back by two
    assert torch.equal(keys[0, :, :6], torch.cat((first[0], second[0]), dim=1))
    assert torch.equal(keys[1, :, :4], torch.cat((first[1, :, :2], second[1]), dim=1))
    assert cache.places.visible()[:, :, :7].long().sum(dim=2).tolist() == [[5, 6], [3, 4]]


def test_nothing_is_left_of_a_row_in_whose_place_another_is_put() -> None:
    cache, other = RowsCache(), RowsCache()
    _update(cache, [[0, 1, 2]] * 2, torch.full((2, 3, 3, 5), torch.inf))
    _update(other, [[0, 1]], torch.ones(1, 3, 2, 5))
    cache.put(1, 2, other, num_places=2)
    keys = _update(cache, [[3], [2]], torch.ones(2, 3, 1, 5))
    assert keys[0].isinf().sum() == 3 * 3 * 5
    assert keys[1].sum() == 3 * 3 * 5, "its own two columns and the new one"


def test_rows_go_on_from_others() -> None:
    cache, draws = RowsCache(), torch.Generator().manual_seed(0)
    read = torch.randn(3, 2, 6, 5, generator=draws)
    _update(cache, [list(range(6))] * 3, read)
    cache.follow([0, 1, 1, 0], [0, 0, 0, 4], 6)  # the last two are new
    keys = _update(cache, [[6]] * 4, torch.ones(4, 2, 1, 5))
    assert torch.equal(keys[:3, :, :6], read[[0, 1, 1]])
    assert torch.equal(keys[3, :, 4:6], read[0, :, 4:])
    assert not keys[3, :, :4].any(), "nothing is copied that is said to be there already"
    cache.follow([2, 1], [2, 0], 7)
    keys = _update(cache, [[7], [PLACES + 1]], torch.ones(2, 2, 1, 5))
    assert keys.shape == (2, 2, 2 * PLACES, 5)
    assert torch.equal(keys[0, :, :2], read[0, :, :2])
    assert torch.equal(keys[0, :, 2:6], read[1, :, 2:])
    assert torch.equal(keys[1, :, :6], read[1])
    with pytest.raises(AssertionError):
        cache.follow([1, 0], [0, 0], 7)


@torch.inference_mode()
def test_exactness_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose results depend a little on the number of columns is found out; one that is the same is not."""
    model = tiny_model()
    model.flatten()
    shift = 0.0

    def decoder(self: FlatDecoder, inputs: LlmInput, cache: RowsCache) -> Tensor:
        """Nothing but the embeddings, and what the size of the pass adds to them."""
        cache.update(torch.zeros(len(inputs.mask_BS), 1, inputs.mask_BS.shape[1], 1), torch.zeros(1), 0)
        return self._norm(inputs.embeds_BSE + shift * inputs.mask_BS.numel())

    monkeypatch.setattr(RowsCache, "update", lambda *_: None)
    monkeypatch.setattr(FlatDecoder, "__call__", decoder)
    model._flat.head = lambda hidden: hidden  # type: ignore[union-attr]
    assert reads_exactly(model)
    shift = 1e-6
    assert not reads_exactly(model)


@pytest.mark.parametrize("strategy", ["ms", "mss"])
@torch.inference_mode()
def test_where_it_is_exact_it_is_so_for_other_rows_too(strategy: str) -> None:
    model = tiny_model(strategy).cast("cpu", torch.bfloat16)
    model.flatten()
    if not model.is_exact:
        pytest.skip("this processor sums the rows of a product in bfloat16 differently in each batch")
    inputs = model.embed(model.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    together = RowsCache()
    last = read_prompts(model, inputs, SCALES, together)
    places_BD = last.positions_BS + torch.arange(1 + NUM_DRAFTED)
    embeds_BDE = torch.cat((last.embeds_BSE, model.embedding_VE[None, 7 : 7 + NUM_DRAFTED].expand(3, -1, -1)), dim=1)
    with model.select(SCALES):
        drafted = LlmInput(embeds_BDE, torch.ones_like(places_BD), places_BD)
        logits_BDV = model.last_logits(drafted, together, 1 + NUM_DRAFTED)
    for row, scale in enumerate(SCALES):
        alone = RowsCache()
        with model.select([scale]):
            read_prompts(model, row_of(inputs, row), [scale], alone)
            for i in range(1 + NUM_DRAFTED):  # step by step
                one = LlmInput(*(part[row, None, i, None] for part in vars(drafted).values()))
                assert torch.equal(model.next_logits(one, alone)[0], logits_BDV[row, i])
