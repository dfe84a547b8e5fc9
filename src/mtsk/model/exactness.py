"""Whether what an LLM computes for a row depends, by rounding, on what is computed beside it. On some devices it does
not, and then nothing has to be decided twice: measured, as no library promises it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtsk.model.fusion import LlmInput
from mtsk.model.rows_cache import RowsCache

if TYPE_CHECKING:
    from mtsk.model.avsr import AvsrModel

_LENGTHS = 70, 3, 600, 40, 150, 9  # of the rows that are tried, in columns
_DRAFTS = 0, 1, 12  # columns that are read with the last one


@torch.inference_mode()
def reads_exactly(model: AvsrModel) -> bool:
    """Whether a few random rows have the same logits, bit for bit, alone and in a batch, with and without a draft. Of
    graphics cards nothing is believed: how they sum changes with sizes in more ways than are tried here.

    Args:
        model: reads rows side by side.
    """
    if model.device.type != "cpu":
        return False
    table_VE, grid = model.embedding_VE, model.grid.scales
    scales = [grid[row % len(grid)] for row in range(len(_LENGTHS))]
    draws = torch.Generator().manual_seed(0)
    num_columns = max(_LENGTHS) + max(_DRAFTS)
    ids_BS = torch.randint(len(table_VE), (len(_LENGTHS), num_columns), generator=draws).to(table_VE.device)

    def columns(rows: list[int], first: list[int], num: int) -> LlmInput:
        places_BS = torch.tensor(first, device=table_VE.device)[:, None] + torch.arange(num, device=table_VE.device)
        embeds_BSE = table_VE[ids_BS[rows].gather(1, places_BS)]
        return LlmInput(embeds_BSE, torch.ones_like(places_BS), places_BS)

    def logits_after(rows: list[int], cache: RowsCache, num_drafted: int) -> Tensor:
        last = columns(rows, [_LENGTHS[row] - 1 for row in rows], 1 + num_drafted)
        with model.select([scales[row] for row in rows]):
            return model.last_logits(last, cache, 1 + num_drafted)

    together, rows = RowsCache(), list(range(len(_LENGTHS)))
    for row, length in enumerate(_LENGTHS):
        alone = RowsCache()
        with model.select([scales[row]]):
            model.read(columns([row], [0], length - 1), alone)
        together.put(row, len(rows), alone)
    expected = [logits_after([row], together.row(row, _LENGTHS[row] - 1), 0)[0, 0] for row in rows]
    return all(
        torch.equal(logits_BDV[row, 0], expected[row])
        for logits_BDV in (logits_after(rows, together, num) for num in _DRAFTS)
        for row in rows
    )
