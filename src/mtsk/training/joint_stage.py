"""Stage 3: adapters, projectors and delimiters together, at the scales of the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from mtsk.config import JointStageConfig
from mtsk.model.avsr import AvsrModel
from mtsk.scale import Scale
from mtsk.training.draws import DRAWS
from mtsk.training.objective import backward_scales
from mtsk.training.optim import ParameterGroup
from mtsk.training.source import BatchSource, Encoder
from mtsk.types import Batch


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
        self.modules: nn.Module = model

    def groups(self) -> list[ParameterGroup]:
        """Adapters (of the lip encoder too) and delimiters; the finest projector of each modality; the others."""
        frozen = () if self._model.config.trains_lips else ("video_encoder.",)
        trained = {n: p for n, p in self._model.trained_parameters().items() if not n.startswith(frozen)}
        by_modality = self._model.rate_projectors().items()
        finest = tuple(f"projectors.{name}.at_rate.{at.rates[0]}." for name, at in by_modality)
        fine = {n: p for n, p in trained.items() if n.startswith(finest)}
        coarse = {n: p for n, p in trained.items() if n.startswith("projectors.") and n not in fine}
        rest = {n: p for n, p in trained.items() if not n.startswith("projectors.")}
        magnitudes = {
            n: rest.pop(n) for n in list(rest) if n.endswith("magnitude_AO")
        }  # of DoRA; they start far from 0
        groups = [
            ParameterGroup(rest, self.optim.lr),
            ParameterGroup(magnitudes, self.optim.lr, decay=False),
            ParameterGroup(fine, self._config.projector_lr),
            ParameterGroup(coarse, self._config.coarse_projector_lr),
        ]
        return [group for group in groups if group.parameters]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """See `trainer.Stage`."""
        return self._source.from_step(start_step)

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """The mean loss over the step's scales."""
        self._model.train()
        with self._source.accelerator.autocast():
            encoded = self._encoder(batch)
        weights = {scale: self._config.weight(scale) for scale in self.scales(step)}
        return backward_scales(self._model, encoded, batch.texts, weights, self._source.accelerator)

    def scales(self, step: int) -> list[Scale]:
        """All of the grid's, or as many as configured, drawn by step number so that all processes agree."""
        wanted = self._config.scales_per_step
        if wanted is None:
            return list(self._model.grid)
        return DRAWS[self._config.draw](self._model.grid, wanted, np.random.default_rng((self._seed, step)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Whatever the validator measures."""
        self._model.eval()
        return self._validator(self._model)
