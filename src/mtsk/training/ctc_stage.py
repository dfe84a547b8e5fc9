"""The character heads, from word times and CTC, as two stages.

Stage 4, `ctc`: on features that are what they are. Nothing else learns here and the texts of the other parts do not
depend on the heads, so this may be done for a model that was trained long ago.
Before stage 2, `spelling`: together with the layers that let features hear their neighbours. Letters carry over to
words that were never heard in training.
Letters: B rows, S steps of 20 ms, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mtsk.config import CtcConfig, CtcStageConfig
from mtsk.model.avsr import AvsrModel
from mtsk.model.ctc import BLANK, STEP_S, Alphabet
from mtsk.training.feature_changes import changed
from mtsk.training.labels import greedy_classes, token_error_rate
from mtsk.training.optim import ParameterGroup
from mtsk.training.source import BatchSource, Encoder
from mtsk.types import Batch, Features, Word

_FRAME_SHARE = 0.2


class CtcStage:
    """See `trainer.Stage`. Trains the model's character heads in place, those of sound and of lips side by side.

    With several processes the loss is the mean of theirs, each over its own steps and characters. The batches last
    about equally long, so this is near the loss of one large batch.

    Args:
        name: `spelling`, which trains the layers of context too, or `ctc`.
    """

    def __init__(
        self, name: Literal["spelling", "ctc"], config: CtcStageConfig, heads: CtcConfig, model: AvsrModel, *,
        source: BatchSource, encoder: Encoder, dev: Callable[[], Iterator[Batch]],
    ) -> None:  # fmt: skip
        self.name: str = name
        self.optim = config.optim
        self.modules: nn.Module = model.ctc
        if name == "spelling":
            contexts = {of: at.context for of, at in model.rate_projectors().items() if at.context is not None}
            self.modules = nn.ModuleDict({"ctc": model.ctc, "context": nn.ModuleDict(contexts)})
        self._config, self._model, self._alphabet = config, model, Alphabet(heads.alphabet)
        self._source, self._encoder, self._dev = source, encoder, dev

    def groups(self) -> list[ParameterGroup]:
        """Everything at one rate."""
        return [ParameterGroup(dict(self.modules.named_parameters()), self.optim.lr)]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """See `trainer.Stage`."""
        return self._source.from_step(start_step)

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """Frame cross-entropy + CTC, by the configured weights."""
        del step
        config, accelerator = self._config, self._source.accelerator
        self._model.eval()  # the stage before leaves it so only in the process that validates
        self.modules.train()
        with accelerator.autocast():
            with torch.no_grad():
                encoded = changed(self._encoder(batch), config.features)
            with torch.set_grad_enabled(self.name == "spelling"):
                encoded = self._model.in_context(encoded)
            read = self._model.characters(encoded)
        figures = {"tokens": float(sum(logits.lengths_B.sum() for logits in read.values()))}
        total = torch.zeros((), device=self._model.device)
        for name, logits in read.items():
            weights = config.frame_weight, config.ctc_weight
            loss, its_figures = character_loss(name, logits, batch, self._alphabet, weights)
            figures |= its_figures
            total = total + loss
        accelerator.backward(total / accelerator.num_processes)
        return figures

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Character error rate of greedy reading, for each head."""
        self.modules.eval()
        said: list[list[int]] = []
        read: dict[str, list[list[int]]] = {}
        for batch in self._dev():
            said += [self._alphabet.classes(text) for text in batch.texts]
            encoded = self._model.encode(batch.to(self._model.device), self._model.grid)
            for name, logits in self._model.characters(encoded).items():
                read.setdefault(name, []).extend(greedy_classes(logits.values_BTD, logits.lengths_B))
        return {f"{name}_cer": token_error_rate(said, rows) for name, rows in read.items()}


def characters_loss(
    read: Mapping[str, Features], batch: Batch, alphabet: Alphabet, weight: float
) -> tuple[Tensor, dict[str, float]]:
    """What the heads' losses add to that of another stage, and the figures for the log.

    The cross-entropy against word times has a fifth of CTC's weight: as much as that, it teaches times in place of
    letters (CTC loss in training after the warm start 1.0, from 0.8 before).
    """
    figures: dict[str, float] = {}
    total = torch.zeros((), device=batch.waveform_BN.device)
    for name, logits in read.items():
        loss, its_figures = character_loss(name, logits, batch, alphabet, (weight * _FRAME_SHARE, weight))
        total = total + loss
        figures |= its_figures
    return total, figures


def character_loss(
    name: str, logits: Features, batch: Batch, alphabet: Alphabet, weights: tuple[float, float]
) -> tuple[Tensor, dict[str, float]]:
    """Weighted frame cross-entropy and CTC of a head, and both for the log."""
    frame, ctc = frame_loss(logits, batch.words, alphabet), ctc_loss(logits, batch.texts, alphabet)
    figures = {f"{name}_frame": float(frame.detach()), f"{name}_ctc": float(ctc.detach())}
    return weights[0] * frame + weights[1] * ctc, figures


def frame_loss(logits: Features, words: Sequence[Sequence[Word]], alphabet: Alphabet) -> Tensor:
    """Cross-entropy against what is said at each step, mean over the steps of rows with word times."""
    num_rows, num_steps, num_classes = logits.values_BTD.shape
    shares_BSC = np.zeros((num_rows, num_steps, num_classes), np.float32)
    for row, (its_words, length) in enumerate(zip(words, logits.lengths_B.tolist(), strict=True)):
        if its_words:
            shares_BSC[row, :length] = step_shares(its_words, alphabet, length)
    on_device = torch.from_numpy(shares_BSC).to(logits.values_BTD.device)
    total = -(on_device * logits.values_BTD.log_softmax(dim=-1)).sum()
    return total / on_device.sum().clamp(min=1.0)


def ctc_loss(logits: Features, texts: Sequence[str], alphabet: Alphabet) -> Tensor:
    """CTC, mean over characters; rows that are too short for their text count as zero."""
    if logits.values_BTD.shape[1] == 0:  # refused by torch; here every row is too short
        return logits.values_BTD.sum()
    device = logits.values_BTD.device
    sequences = [alphabet.classes(text) for text in texts]
    lengths_B = torch.tensor([len(sequence) for sequence in sequences], device=device)
    joined_L = torch.tensor(list(itertools.chain(*sequences)), dtype=torch.int64, device=device)
    log_probs_SBC = logits.values_BTD.log_softmax(dim=-1).transpose(0, 1)
    total = functional.ctc_loss(
        log_probs_SBC, joined_L, logits.lengths_B, lengths_B, blank=BLANK, reduction="sum", zero_infinity=True
    )
    return total / lengths_B.sum().clamp(min=1)


def step_shares(words: Sequence[Word], alphabet: Alphabet, num_steps: int) -> NDArray[np.float32]:
    """Share of each step that each class holds, (S, C), rows summing to 1.

    A word's time is split evenly over its characters, with a blank between equal ones, as CTC needs one there. The time
    between words is a space, for a step at least; what is left is blank.
    """
    slots = list(_slots(words, alphabet))
    number_N = np.array([number for _, _, number in slots], np.int64)
    low_N, high_N = (np.array([slot[i] for slot in slots], np.float64)[:, None] / STEP_S for i in (0, 1))
    steps_S = np.arange(num_steps)
    held_NS = np.clip(np.minimum(high_N, steps_S + 1) - np.maximum(low_N, steps_S), 0.0, None)
    shares_SC = (held_NS.T @ np.eye(alphabet.num_classes)[number_N]).astype(np.float32)
    shares_SC[:, BLANK] += np.clip(1.0 - shares_SC.sum(axis=1), 0.0, None)
    return np.asarray(shares_SC / shares_SC.sum(axis=1, keepdims=True), np.float32)


def _slots(words: Sequence[Word], alphabet: Alphabet) -> Iterator[tuple[float, float, int]]:
    """Start and end in seconds, and class."""
    end_of_last_s: float | None = None
    for word in words:
        classes = alphabet.word_classes(word.text)
        if not classes:
            continue
        if end_of_last_s is not None:
            lacking_s = max(0.0, STEP_S - (word.start_s - end_of_last_s))
            yield end_of_last_s - lacking_s / 2, word.start_s + lacking_s / 2, alphabet.space
        apart = [[first] if first != second else [first, BLANK] for first, second in itertools.pairwise(classes)]
        numbers = [*itertools.chain(*apart), classes[-1]]
        edges_s = np.linspace(word.start_s, word.end_s, len(numbers) + 1).tolist()
        yield from zip(edges_s[:-1], edges_s[1:], numbers, strict=True)
        end_of_last_s = word.end_s
