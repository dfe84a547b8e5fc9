"""Greedy decoding of a batch with a key-value cache. Rows may have different scales and limits.

Letters: B rows, S sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.scale import Scale


@torch.inference_mode()
def greedy(
    model: AvsrModel, inputs: LlmInput, scales: Sequence[Scale], max_new_tokens: Sequence[int]
) -> list[list[int]]:
    """The most likely next token, until the end of sequence or a row's limit.

    Args:
        inputs: prompts of B rows, padded on the left.
        scales: whose adapters each row uses.
        max_new_tokens: limit of each row.

    Returns:
        The new tokens of each row, without the end of sequence.
    """
    eos = model.prompts.vocabulary.eos
    cache = DynamicCache(config=model.llm.config)
    written: list[list[int]] = [[] for _ in scales]
    open_B = [limit > 0 for limit in max_new_tokens]
    with model.select(scales):
        while any(open_B):
            best_B = model.next_logits(inputs, cache).argmax(dim=-1)
            for row, token in enumerate(best_B.tolist()):
                if open_B[row] and token != eos:
                    written[row].append(token)
                open_B[row] = open_B[row] and token != eos and len(written[row]) < max_new_tokens[row]
            inputs = LlmInput(
                torch.nn.functional.embedding(best_B[:, None], model.embedding_VE),
                torch.cat((inputs.mask_BS, torch.ones_like(best_B)[:, None]), dim=1),
                inputs.positions_BS[:, -1:] + 1,
            )
    return written
