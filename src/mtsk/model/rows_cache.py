"""Keys and values of rows of unlike length. A column's place in its row is its position, so rows need no padding, a
column that was read in vain is simply written over, and a row has the same places whatever is beside it.

Letters: B rows, S new columns, T places that are looked at, C places that there are, K heads of keys, D channels of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

PLACES = 64
"""Places come in so many: for each number of them a processor prepares its products anew."""


class Places:
    """Where the columns of the current pass belong."""

    num: int = 0
    """T: no column of the pass is further than that."""

    def __init__(self) -> None:
        self._positions_BS = torch.zeros(0, 0, dtype=torch.int64)
        self._index: tuple[int, int, Tensor] | None = None

    def set(self, positions_BS: Tensor) -> None:
        """From now on the columns of these positions are written, and those up to them seen."""
        self._positions_BS, self._index = positions_BS, None
        self.num = -(-(int(positions_BS.max()) + 1) // PLACES) * PLACES

    def visible(self) -> Tensor:
        """(B, S, T), true where a column of the pass sees a place."""
        place_T = torch.arange(self.num, device=self._positions_BS.device)
        return place_T <= self._positions_BS[..., None]

    def index(self, num_heads: int, capacity: int) -> Tensor:
        """(B * K * S,) where the columns are in all places of all rows and heads."""
        if self._index is None or self._index[:2] != (num_heads, capacity):
            num_rows, device = len(self._positions_BS), self._positions_BS.device
            first_BK = torch.arange(num_rows * num_heads, device=device).view(num_rows, num_heads) * capacity
            index_BKS = first_BK[..., None] + self._positions_BS[:, None]
            self._index = num_heads, capacity, index_BKS.flatten()
        return self._index[2]


class RowsLayer(DynamicLayer):
    """What one layer has read: `keys` and `values` (B, K, C, D)."""

    is_croppable = False

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = places

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Puts columns (B, K, S, D) into their places; returns all that the pass may look at, (B, K, T, D)."""
        del args, kwargs
        num = self._places.num
        self.keys, self.values = _with_room(self.keys, key_states, num), _with_room(self.values, value_states, num)
        self.is_initialized = True
        index = self._places.index(*self.keys.shape[1:3])
        for into, new in ((self.keys, key_states), (self.values, value_states)):
            into.view(-1, into.shape[-1]).index_copy_(0, index, new.reshape(-1, new.shape[-1]))
        return self.keys[:, :, :num], self.values[:, :, :num]


def _with_room(held: Tensor | None, new: Tensor, num_places: int) -> Tensor:
    """Room for so many places. Empty ones are zero: what is not seen still enters a sum, with weight 0."""
    if held is not None and held.shape[2] >= num_places:
        return held
    wide = new.new_zeros(*new.shape[:2], num_places, new.shape[3])
    if held is not None:
        wide[:, :, : held.shape[2]] = held
    return wide


class RowsCache(Cache):
    """A cache of rows for a model whose layers all attend to everything before them.

    Attributes:
        places: to be set before a pass.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.places = Places()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `RowsLayer.update`. Layers are added as they are met."""
        del args, kwargs
        return self._layer(layer_idx).update(key_states, value_states)

    def _layer(self, number: int) -> RowsLayer:
        while len(self.layers) <= number:
            self.layers.append(RowsLayer(self.places))
        layer = self.layers[number]
        assert isinstance(layer, RowsLayer)
        return layer

    def follow(self, parents: Sequence[int], since: Sequence[int], until: int) -> None:
        """From now on there are `len(parents)` rows: row i goes on from what was row `parents[i]`.

        Args:
            parents: a number that is a row still has itself as its parent, or is nobody's: no row is written over
                before it is taken.
            since: of each row, from which place on it is taken from its parent; the caller knows that before it both
                have the same.
            until: the first place that no row has.
        """
        assert all(parents[parent] == parent for parent in parents if parent < len(parents)), parents
        moved = [(i, parent, since[i]) for i, parent in enumerate(parents) if i != parent]
        for layer in map(self._layer, range(len(self.layers))):
            if not layer.is_initialized:  # reads with the keys of another
                continue
            for name in ("keys", "values"):
                held = getattr(layer, name)
                if len(held) < len(parents):
                    wide = held.new_zeros(len(parents), *held.shape[1:])
                    wide[: len(held)] = held
                    held = wide
                for row, parent, first in moved:
                    held[row, :, first:until] = held[parent, :, first:until]
                setattr(layer, name, held[: len(parents)])

    def row(self, row: int, num_places: int) -> RowsCache:
        """A copy of the first places of a row, as the cache of that row alone."""
        copy = RowsCache()
        copy.put(0, 1, self, row, num_places)
        return copy

    def put(self, row: int, num_rows: int, other: RowsCache, its_row: int = 0, num_places: int | None = None) -> None:
        """Puts what another cache has of a row into a row of this one, which has so many."""
        for number in range(len(other.layers)):
            its, layer = other._layer(number), self._layer(number)
            if not its.is_initialized:  # reads with the keys of another
                continue
            for name in ("keys", "values"):
                new, held = getattr(its, name)[its_row, :, :num_places], getattr(layer, name)
                held = new.new_zeros(num_rows, *new.shape) if held is None else _with_room(held, held, new.shape[1])
                held[row, :, : new.shape[1]] = new
                held[row, :, new.shape[1] :] = 0.0  # what is not seen still enters a sum, and may not be a number
                setattr(layer, name, held)
            layer.is_initialized = True
