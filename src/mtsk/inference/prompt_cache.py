"""Prompts read row by row into the cache of a batch. What it has of a row is then the same in any batch, and costs no
padding. Letters: B rows, S columns, K heads of keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.scale import Scale

_SPARE = 64  # columns


class RoomyLayer(DynamicLayer):
    """A layer of a cache that has room for columns to come, so that a new one does not copy all before it."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds columns (B, K, S, D); returns all."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        room = self._room
        # Rows that were chosen anew are not in the room any more.
        is_roomy = room is not None and room[0].shape[-2] >= after and self.keys.data_ptr() == room[0].data_ptr()
        if room is None or not is_roomy:
            room = _widened(self.keys, key_states, after), _widened(self.values, value_states, after)
            self._room = room
        for wide, new in zip(room, (key_states, value_states), strict=True):
            wide[..., before:after, :] = new
        self.keys, self.values = (wide[..., :after, :] for wide in room)
        return self.keys, self.values


def _roomy() -> RoomyLayer:
    layer: RoomyLayer = RoomyLayer()  # type: ignore[no-untyped-call]
    return layer


def _widened(old: Tensor, new: Tensor, num_columns: int) -> Tensor:
    wide = new.new_empty(*new.shape[:-2], num_columns + _SPARE, new.shape[-1])
    if old.numel():
        wide[..., : old.shape[-2], :] = old
    return wide


def is_joinable(cache: DynamicCache) -> bool:
    """Whether keys and values are all that it holds."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def read_prompts(
    model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], is_read: Sequence[bool]
) -> tuple[DynamicCache, LlmInput]:
    """Reads all of the prompts but the last column.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        is_read: the rows whose prompts are needed; the others become padding in the cache.

    Returns:
        A cache of S - 1 columns, and what it has not seen: the last one.
    """
    num_read = inputs.mask_BS.shape[1] - 1
    joined = DynamicCache(config=model.llm.config)
    joined.layers = [_roomy() if type(layer) is DynamicLayer else layer for layer in joined.layers]
    for row, scale in enumerate(scales):
        first = num_read - int(inputs.mask_BS[row, :num_read].sum())
        if not is_read[row] or first == num_read:
            continue
        columns = slice(first, num_read)
        alone = DynamicCache(config=model.llm.config)
        with model.select([scale]):
            model.read(LlmInput(*(part[row, None, columns] for part in vars(inputs).values())), alone)
        _place(joined, alone, row, first, len(scales))
    last = LlmInput(inputs.embeds_BSE[:, -1:], inputs.mask_BS, inputs.positions_BS[:, -1:])
    return joined, last


def _place(joined: DynamicCache, alone: DynamicCache, row: int, first: int, num_rows: int) -> None:
    """Puts what one row has read into its place."""
    layers: list[tuple[Any, Any]] = list(zip(joined.layers, alone.layers, strict=True))
    for into, layer in layers:
        if not layer.is_initialized:  # reads with the keys of another
            continue
        parts = layer.keys, layer.values
        if not into.is_initialized:
            sizes = [(num_rows, part.shape[1], first + part.shape[2], part.shape[3]) for part in parts]
            into.update(*(part.new_zeros(size) for part, size in zip(parts, sizes, strict=True)))
        into.keys[row, :, first:], into.values[row, :, first:] = layer.keys[0], layer.values[0]


def row_of(model: AvsrModel, cache: DynamicCache, row: int, first: int, end: int) -> DynamicCache:
    """A copy of some columns of a row, as the cache of that row alone."""
    copy = DynamicCache(config=model.llm.config)
    layers: list[Any] = list(cache.layers)
    for number, layer in enumerate(layers):
        if layer.is_initialized:
            copy.update(layer.keys[row, None, :, first:end], layer.values[row, None, :, first:end], number)
    return copy
