"""The nested objective: the mean over scales of the cross-entropy of the transcription, with one backward per scale.

The gradients are those of the summed loss, the memory that of the largest scale alone. What comes before compression
and is trained (lip encoder, layers of context if they were run before) runs backward once, at the end. The only loop
over scales in training. Source: Cappellazzo et al. 2025 (arXiv 2503.06362), equation 2, where all weights are 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.fusion import IGNORED
from mtsk.scale import Scale
from mtsk.types import Features


def backward_scales(
    model: AvsrModel, encoded: Encoded, texts: Sequence[str], weights: Mapping[Scale, float], accelerator: Accelerator
) -> dict[str, float]:
    """Adds the gradients of the weighted sum of the scales' losses of one batch, divided by the number of scales.

    A row that lacks a modality of a scale, or is too short for one token of it, does not count for that scale. Each
    scale's loss is a sum divided by the number of valid tokens over all processes.

    Returns:
        The loss of each scale by name, and `tokens`, the number of LLM positions.
    """
    with read_once(encoded) as leaves:
        return _backward_each(model, leaves, texts, weights, accelerator)


@contextmanager
def read_once(encoded: Encoded) -> Iterator[Encoded]:
    """Features for several losses, each with a backward of its own: their gradients are collected, and at the end go
    back together through what made the features."""
    made: list[tuple[Tensor, Tensor]] = []

    def leaf(features: Features | None) -> Features | None:
        if features is None or not features.values_BTD.requires_grad:
            return features
        leaf_BTD = features.values_BTD.detach().requires_grad_()
        made.append((features.values_BTD, leaf_BTD))
        return Features(leaf_BTD, features.lengths_B)

    yield replace(encoded, audio=leaf(encoded.audio), video=leaf(encoded.video))
    used = [(values_BTD, leaf_BTD.grad) for values_BTD, leaf_BTD in made if leaf_BTD.grad is not None]
    if used:
        torch.autograd.backward([values_BTD for values_BTD, _ in used], [gradient_BTD for _, gradient_BTD in used])


def _backward_each(
    model: AvsrModel, encoded: Encoded, texts: Sequence[str], weights: Mapping[Scale, float], accelerator: Accelerator
) -> dict[str, float]:
    figures: dict[str, float] = {}
    num_positions = 0
    for scale, weight in weights.items():
        rows = [row for row in range(len(texts)) if encoded.reaches(row, scale)]
        spoken = [texts[row] for row in rows]
        num_local = sum(len(model.prompts.target(text)) for text in spoken)
        num_global = accelerator.reduce(torch.tensor(float(num_local), device=model.device), reduction="sum")
        if not rows:
            continue
        of_rows = encoded.rows(rows)
        # Recomputed activations need the same adapters, so the backward runs inside the selection too.
        with model.select([scale] * len(rows)):
            with accelerator.autocast():
                prediction = model(of_rows, [scale] * len(rows), spoken)
            total = functional.cross_entropy(
                prediction.logits_BLV.flatten(0, 1).float(),
                prediction.labels_BL.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            accelerator.backward(total * (weight / len(weights)) / num_global)
        figures[str(scale)] = float(total.detach()) / num_local
        num_positions += num_local + sum(of_rows.num_tokens(row, scale) for row in range(len(rows)))
    return {**figures, "tokens": float(num_positions)}
