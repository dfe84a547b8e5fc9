"""What the character heads read, per row and scale, and drafts of it for the LLM.

Letters: S steps of 20 ms, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.ctc import Alphabet, unpadded_log_probs
from mtsk.scale import Scale

_SURE_ENOUGH = 0.85  # below, the drafts of the default model save less than a third of the steps, and widen each


@dataclass(frozen=True)
class Readings:
    """Log-probabilities (S, C) of characters for each row of a batch, by modality; empty without heads."""

    alphabet: Alphabet
    by_modality: dict[str, list[Tensor]]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: AvsrModel, encoded: Encoded) -> Readings:
        """Runs the heads once; what they read serves all scales."""
        config = model.config.ctc
        read = {name: unpadded_log_probs(logits) for name, logits in model.characters(encoded).items()}
        return cls(Alphabet(config.alphabet if config else ""), read)

    def at(self, row: int, scale: Scale) -> Tensor | None:
        """What was read of the modalities of a scale: of two, by the head that is surer; None if nothing was."""
        wanted = [name for name, rate in (("audio", scale.audio), ("video", scale.video)) if rate is not None]
        read = [self.by_modality[name][row] for name in wanted if name in self.by_modality]
        return max((each for each in read if len(each)), key=sureness, default=None)


def sureness(log_probs_SC: Tensor) -> float:
    """Mean probability of the likeliest class."""
    return float(log_probs_SC.amax(dim=-1).exp().mean())


def draft_texts(
    model: AvsrModel, readings: Readings, scales: Sequence[Scale], least_sureness: float = _SURE_ENOUGH
) -> list[list[int]]:
    """A draft of each row: the tokens of its likeliest characters; empty where nothing was read, or nothing surely
    enough: for `greedy`, checking a draft full of errors takes longer than writing step by step."""
    drafts: list[list[int]] = []
    for row, scale in enumerate(scales):
        log_probs_SC = readings.at(row, scale)
        if log_probs_SC is None or sureness(log_probs_SC) < least_sureness:
            drafts.append([])
        else:
            drafts.append(model.prompts.target(readings.alphabet.read(log_probs_SC.argmax(dim=-1).tolist())))
    return drafts
