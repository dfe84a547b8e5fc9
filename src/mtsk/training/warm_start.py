"""Stage 2: trains each projector alone, so that what it makes of some time is near the embedding of what is said then.

The logit of a token is s * projection . embedding; the blank's embedding and s are learned and then dropped. Not in the
paper: with random projectors the LLM learns the grammar of the texts long before it listens.
Letters: B rows, K tokens, C classes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mtsk.config import WarmStartStageConfig
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.ctc import Alphabet
from mtsk.scale import FEATURE_S
from mtsk.training.ctc_stage import characters_loss
from mtsk.training.labels import BLANK, TimedLabels, Units, greedy_classes, token_error_rate
from mtsk.training.optim import ParameterGroup
from mtsk.training.reading_stage import silence_embedding
from mtsk.training.source import BatchSource, Encoder
from mtsk.types import Batch, Features

_LOGIT_SCALE_LR_FACTOR = 5.0


class _Reader(nn.Module):
    """Reads projected tokens as token classes."""

    classes_CE: Tensor

    def __init__(self, classes_CE: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.register_buffer("classes_CE", classes_CE, persistent=False)
        self.blank_E = nn.Parameter(torch.zeros_like(classes_CE[0]))
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))

    def forward(self, tokens_BKE: Tensor) -> Tensor:
        """(B, K, E) -> (B, K, C)."""
        scaled_BKE = self.logit_scale * tokens_BKE
        logits_BKC = scaled_BKE @ self.classes_CE.T
        # Set afterwards: another table with the blank in it would copy a whole vocabulary at every step.
        logits_BKC[..., BLANK] = (scaled_BKE @ self.blank_E).to(logits_BKC.dtype)
        return logits_BKC


class _WarmModules(nn.Module):
    def __init__(self, model: AvsrModel, units: Units, logit_scale: float, *, with_characters: bool) -> None:
        super().__init__()
        self.projectors = model.projectors
        units_UE = model.embedding_VE[list(units.token_ids)].detach().float()
        classes_CE = torch.cat((silence_embedding(model)[None], units_UE))
        names = [f"{name}_{rate}" for name, at in model.rate_projectors().items() for rate in at.rates]
        self.readers = nn.ModuleDict({name: _Reader(classes_CE, logit_scale) for name in names})
        self.ctc = model.ctc if with_characters else nn.ModuleDict()


class WarmStartStage:
    """See `trainer.Stage`. Trains the model's projectors in place, all rates side by side.

    With several processes the loss is the mean of theirs, each over its own windows and tokens. The batches last about
    equally long, so this is near the loss of one large batch.
    """

    name = "warm_start"

    def __init__(
        self, config: WarmStartStageConfig, model: AvsrModel, units: Units, *,
        source: BatchSource, encoder: Encoder, dev: Callable[[], Iterator[Batch]],
    ) -> None:  # fmt: skip
        self.optim = config.optim
        self._alphabet = Alphabet(model.config.ctc.alphabet) if model.config.ctc and config.character_weight else None
        self.modules: _WarmModules = _WarmModules(
            model, units, config.initial_logit_scale, with_characters=self._alphabet is not None
        ).to(model.device)
        self._config, self._model, self._units = config, model, units
        self._source, self._encoder, self._dev = source, encoder, dev

    def groups(self) -> list[ParameterGroup]:
        """Projectors and blanks at the stage's rate, the logit scales at five times that, what spells at its own."""
        named = dict(self.modules.named_parameters())
        scales = {name: p for name, p in named.items() if name.endswith("logit_scale")}
        spells = {name: p for name, p in named.items() if name.startswith("ctc.") or ".context." in name}
        others = {name: p for name, p in named.items() if name not in scales.keys() | spells.keys()}
        lr, context_lr = self.optim.lr, self._config.context_lr
        groups = [
            ParameterGroup(others, lr),
            ParameterGroup(scales, lr * _LOGIT_SCALE_LR_FACTOR, decay=False),
            ParameterGroup(spells, lr if context_lr is None else context_lr),
        ]
        return [group for group in groups if group.parameters]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """See `trainer.Stage`."""
        return self._source.from_step(start_step)

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """Cross-entropy against the share that each token has of each window, plus CTC where windows are short."""
        del step
        accelerator = self._source.accelerator
        self.modules.train()
        with accelerator.autocast():
            with torch.no_grad():  # adapters of the lip encoder wait for the next stage
                encoded = self._encoder(batch)
            encoded = self._model.in_context(encoded)
            read = dict(self._read(encoded))
            characters = {} if self._alphabet is None else self._model.characters(encoded)
        figures = {"tokens": 0.0}
        total = torch.zeros((), device=self._model.device)
        if self._alphabet is not None:
            total, its_figures = characters_loss(characters, batch, self._alphabet, self._config.character_weight)
            figures |= its_figures
        for (name, rate), (logits_BKC, tokens) in read.items():
            window_s = FEATURE_S[name] * rate
            labels = self._labels(batch, tokens, window_s)
            loss = labels.share_loss(logits_BKC)
            if self._config.embedding_weight:
                classes_CE = self.modules.readers[f"{name}_{rate}"].get_buffer("classes_CE")
                distance = labels.embedding_loss(tokens.values_BTD, classes_CE)
                figures[f"{name[0]}{rate}_distance"] = float(distance.detach())
                loss = loss + self._config.embedding_weight * distance
            if window_s <= self._config.ctc_max_token_s:
                loss = loss + self._config.ctc_weight * labels.ctc_loss(logits_BKC, tokens.lengths_B)
            figures[f"{name[0]}{rate}"] = float(loss.detach())
            figures["tokens"] += float(tokens.lengths_B.sum())
            total = total + loss
        accelerator.backward(total / accelerator.num_processes)
        return figures

    def _read(self, encoded: Encoded) -> Iterator[tuple[tuple[str, int], tuple[Tensor, Features]]]:
        for name, features in (("audio", encoded.audio), ("video", encoded.video)):
            if features is not None:
                projectors = self._model.rate_projectors()[name]
                for rate in projectors.rates:
                    tokens = projectors.read(features, rate)
                    reader = self.modules.readers[f"{name}_{rate}"]
                    yield (name, rate), (reader(tokens.values_BTD), tokens)

    def _labels(self, batch: Batch, tokens: Features, window_s: float) -> TimedLabels:
        lengths, prompts = tokens.lengths_B.tolist(), self._model.prompts
        return TimedLabels.of(batch.words, batch.texts, self._units, prompts, lengths=lengths, window_s=window_s)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Token error rate of greedy reading, for each projector; of little meaning where windows hold many words."""
        self.modules.eval()
        said: list[list[int]] = []
        read: dict[tuple[str, int], list[list[int]]] = {}
        for batch in self._dev():
            said += [self._units.sequence(text, self._model.prompts) for text in batch.texts]
            encoded = self._model.in_context(self._model.encode(batch.to(self._model.device), self._model.grid))
            for key, (logits_BKC, tokens) in self._read(encoded):
                read.setdefault(key, []).extend(greedy_classes(logits_BKC, tokens.lengths_B))
        return {f"{name[0]}{rate}": token_error_rate(said, rows) for (name, rate), rows in read.items()}
