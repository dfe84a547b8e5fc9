"""Prompts read row by row: the cache of a batch has what each row alone has, and grows without copies."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from mtsk.inference.prompt_cache import RoomyLayer, is_joinable, read_prompts, row_of
from mtsk.scale import Scale
from tests.tiny import tiny_batch, tiny_model

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]


@pytest.mark.parametrize("is_flat", [False, True])
@torch.inference_mode()
def test_a_batch_has_of_a_row_what_it_has_alone(is_flat: bool) -> None:
    model = tiny_model("mss").to(torch.bfloat16)
    if is_flat:
        model.flatten()
    inputs = model.embed(model.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    cache, last = read_prompts(model, inputs, SCALES, [True, False, True])
    num_read = inputs.mask_BS.shape[1] - 1
    assert torch.equal(last.embeds_BSE, inputs.embeds_BSE[:, -1:])
    assert cache.get_seq_length() == num_read
    for row in (0, 2):
        first = num_read - int(inputs.mask_BS[row, :-1].sum())
        one = type(inputs)(*(part[row : row + 1, first:] for part in vars(inputs).values()))
        alone, _ = read_prompts(model, one, [SCALES[row]], [True])
        taken = row_of(model, cache, row, first, num_read)
        layers: list[tuple[Any, Any]] = list(zip(taken.layers, alone.layers, strict=True))
        for found, expected in layers:
            assert torch.equal(found.keys, expected.keys), "bit for bit: a near tie is decided with it"
            assert torch.equal(found.values, expected.values)
    unread: Any = cache.layers[0]
    assert not unread.keys[1].any()


def test_a_roomy_layer_is_a_plain_one() -> None:
    config = tiny_model().llm.config
    plain, roomy = DynamicCache(config=config), DynamicCache(config=config)
    assert is_joinable(plain)
    roomy.layers = [RoomyLayer() for _ in roomy.layers]  # type: ignore[no-untyped-call]
    assert not is_joinable(roomy)
    generator = torch.Generator().manual_seed(0)
    for num_columns, num_dropped, rows in ((5, 0, None), (3, 2, None), (70, 1, [1, 1, 0]), (1, 0, None), (90, 3, None)):
        new = torch.randn(3, 2, num_columns, 4, generator=generator)
        for found, expected in zip(roomy.update(new, -new, 0), plain.update(new, -new, 0), strict=True):
            assert torch.equal(found, expected)
        for cache in (plain, roomy):
            cache.crop(-num_dropped)
            if rows is not None:
                cache.batch_select_indices(torch.tensor(rows))
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_columns_to_come_are_written_into_the_room() -> None:
    layer: Any = RoomyLayer()  # type: ignore[no-untyped-call]
    new = torch.ones(1, 1, 1, 2)
    before, _ = layer.update(new, new)
    after, _ = layer.update(new, new)
    assert after.data_ptr() == before.data_ptr()
