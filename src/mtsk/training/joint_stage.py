"""Stage 3: adapters, projectors and delimiters together, at the scales of the grid; character heads too, if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from mtsk.config import JointStageConfig
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.ctc import Alphabet
from mtsk.scale import FEATURE_S, Scale, ScaleGrid
from mtsk.training.ctc_stage import characters_loss
from mtsk.training.draws import scales_of_step
from mtsk.training.feature_changes import changed
from mtsk.training.objective import backward_scales, read_once
from mtsk.training.optim import ParameterGroup, adapter_groups
from mtsk.training.source import BatchSource, Encoder
from mtsk.types import Batch

FINE_TOKEN_S = 0.1  # a token of at most so much holds one word, and its projector was warm-started near its end


class JointStage:
    """See `trainer.Stage`. The encoders stay frozen, but for adapters of the lip encoder.

    Args:
        validator: figures on the development split, called at the end.
    """

    name = "joint"

    def __init__(
        self,
        config: JointStageConfig,
        model: AvsrModel,
        *,
        source: BatchSource,
        encoder: Encoder,
        seed: int,
        validator: Callable[[AvsrModel], dict[str, float]],
    ) -> None:
        self.optim = config.optim
        self._config, self._model = config, model
        self._source, self._encoder, self._seed, self._validator = source, encoder, seed, validator
        self._alphabet = Alphabet(model.config.ctc.alphabet) if model.config.ctc and config.character_weight else None
        self.modules: nn.Module = model

    def groups(self) -> list[ParameterGroup]:
        """Adapters (of lips too), delimiters and character heads; fine projectors and context; coarse projectors."""
        learns = {"video_encoder.": self._model.config.trains_lips, "ctc.": self._alphabet is not None}
        frozen = tuple(part for part, its in learns.items() if not its)
        trained = {n: p for n, p in self._model.trained_parameters().items() if not n.startswith(frozen)}
        fine_rates = [
            f"projectors.{name}.at_rate.{rate}."
            for name, at in self._model.rate_projectors().items()
            for rate in at.rates
            if rate * FEATURE_S[name] <= FINE_TOKEN_S
        ]
        fine_rates += [f"projectors.{name}.context." for name in self._model.rate_projectors()]
        fine = {n: p for n, p in trained.items() if n.startswith(tuple(fine_rates))}
        coarse = {n: p for n, p in trained.items() if n.startswith("projectors.") and n not in fine}
        rest = {n: p for n, p in trained.items() if not n.startswith("projectors.")}
        groups = [
            *adapter_groups(rest, self.optim.lr),
            ParameterGroup(fine, self._config.projector_lr),
            ParameterGroup(coarse, self._config.coarse_projector_lr),
        ]
        return [group for group in groups if group.parameters]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """See `trainer.Stage`."""
        return self._source.from_step(start_step)

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """The weighted loss over the step's scales, see `backward_scales`, and that of the character heads."""
        self._model.train()
        with self._source.accelerator.autocast():
            encoded = self._model.in_context(changed(self._encoder(batch), self._config.features))
        weights = {scale: self._config.weight(scale) for scale in self.scales(step, self._usable(encoded))}
        with read_once(encoded) as once:
            figures = backward_scales(self._model, once, batch.texts, weights, self._source.accelerator)
            return figures | self._backward_characters(once, batch)

    def _backward_characters(self, encoded: Encoded, batch: Batch) -> dict[str, float]:
        if self._alphabet is None:
            return {}
        accelerator = self._source.accelerator
        with accelerator.autocast():
            read = self._model.characters(encoded)
        total, figures = characters_loss(read, batch, self._alphabet, self._config.character_weight)
        accelerator.backward(total / accelerator.num_processes)
        return figures

    def _usable(self, encoded: Encoded) -> ScaleGrid:
        """The scales that a row of the batch, of any process, has the modalities for; the grid if that is none."""
        grid, accelerator = self._model.grid, self._source.accelerator
        rows = range(len(encoded))
        reached = torch.tensor([float(any(encoded.reaches(row, scale) for row in rows)) for scale in grid])
        reached = accelerator.reduce(reached.to(accelerator.device), reduction="sum")
        usable = tuple(scale for scale, num in zip(grid, reached.tolist(), strict=True) if num)
        return ScaleGrid(usable) if usable else grid

    def scales(self, step: int, usable: ScaleGrid) -> list[Scale]:
        """All of them, or as many as configured, drawn by step number so that all processes agree."""
        return scales_of_step(self._config, usable, self._seed, step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Whatever the validator measures."""
        self._model.eval()
        return self._validator(self._model)
