"""Between stages 2 and 3: the LLM's adapters learn to read what projectors write, from texts and word times alone.

A window of time becomes the mean embedding of the tokens that are said in it, with some noise; silence becomes the mean
of all embeddings, as it does in stage 2. A language model copies a plain row of its own embeddings at once, but not one
in which tokens last for several windows and silence lies between: SmolLM2-135M has 1.0 nats a token there and 5.1 here,
as without any input. It learns to within a hundred steps; on what fresh projectors write that takes thousands.
Letters: K windows of time, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtsk.config import ReadingStageConfig
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import IGNORED
from mtsk.scale import FEATURE_S, Scale
from mtsk.training.labels import BLANK, Units, window_shares
from mtsk.training.optim import ParameterGroup, adapter_groups
from mtsk.training.source import BatchSource
from mtsk.types import Batch, Word


def silence_embedding(model: AvsrModel) -> Tensor:
    """(E,) float32: what windows without speech are to look like."""
    return model.embedding_VE.detach().float().mean(dim=0)


class ReadingStage:
    """See `trainer.Stage`. Trains adapters and delimiters in place; the scale of a step is drawn by its number."""

    name = "reading"

    def __init__(
        self, config: ReadingStageConfig, model: AvsrModel, *,
        source: BatchSource, seed: int, dev: Callable[[], Iterator[Batch]],
    ) -> None:  # fmt: skip
        self.optim = config.optim
        self.modules: nn.Module = model
        self._config, self._model, self._source, self._seed, self._dev = config, model, source, seed, dev
        self._units = Units.of_vocabulary(model.prompts)
        # The table is frozen, and both are passes over a whole vocabulary.
        self._silence_E, self._spread = silence_embedding(model), model.embedding_VE.detach().float().std()

    def groups(self) -> list[ParameterGroup]:
        """Adapters of the LLM, and delimiters."""
        others = ("projectors.", "video_encoder.", "ctc.")
        trained = {n: p for n, p in self._model.trained_parameters().items() if not n.startswith(others)}
        return adapter_groups(trained, self.optim.lr)

    def batches(self, start_step: int) -> Iterator[Batch]:
        """See `trainer.Stage`."""
        return self._source.from_step(start_step)

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """Cross-entropy of the texts, over the valid tokens of all processes."""
        self._model.train()
        accelerator = self._source.accelerator
        rng = np.random.default_rng((self._seed, step))
        grid = list(self._model.grid)
        scale = grid[int(rng.integers(len(grid)))]
        rows = [row for row in range(len(batch)) if batch.words[row]]
        num_local = sum(len(self._model.prompts.target(batch.texts[row])) for row in rows)
        count = torch.tensor(float(num_local), device=self._model.device)
        num_global = accelerator.reduce(count, reduction="sum")
        if not rows:
            return {"tokens": 0.0}
        with self._model.select([scale] * len(rows)):
            with accelerator.autocast():
                total, num_positions = self._loss(batch, rows, scale, rng)
            accelerator.backward(total / num_global)
        return {str(scale): float(total.detach()) / num_local, "tokens": float(num_positions + num_local)}

    def _loss(self, batch: Batch, rows: list[int], scale: Scale, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Summed over the text tokens of the rows, and the number of media tokens."""
        starts_s = rng.uniform(0.0, 0.3, len(batch))
        audio, video = (
            [self._written(batch.words[row], name, rate, float(starts_s[row])) for row in rows]
            for name, rate in (("audio", scale.audio), ("video", scale.video))
        )
        texts = [batch.texts[row] for row in rows]
        prediction = self._model.predict(audio, video, [scale] * len(rows), texts)
        logits_NV, labels_N = prediction.logits_BLV.flatten(0, 1).float(), prediction.labels_BL.flatten()
        total = functional.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="sum")
        return total, sum(map(len, (*audio, *video)))

    def _written(self, words: tuple[Word, ...], name: str, rate: int | None, start_s: float) -> Tensor:
        """(K, E) what a good projector would write at a rate, if the words began `start_s` later."""
        table_VE = self._model.embedding_VE
        if rate is None:
            return table_VE.new_zeros(0, table_VE.shape[1])
        window_s = FEATURE_S[name] * rate
        later = [Word(word.text, word.start_s + start_s, word.end_s + start_s) for word in words]
        num_windows = max(1, int((later[-1].end_s + 0.3) / window_s))
        classes = self._units.classes([word.text for word in words], self._model.prompts)
        written_KE = torch.zeros(num_windows, table_VE.shape[1], device=table_VE.device)
        for (window, number), share in window_shares(later, classes, num_windows, window_s).items():
            embedding_E = self._silence_E if number == BLANK else table_VE[self._units.token_ids[number - 1]]
            written_KE[window] += share * embedding_E.float()
        noise_KE = torch.randn(written_KE.shape, device=written_KE.device)
        return written_KE + self._config.noise * self._spread * noise_KE

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy per token at each scale, over utterances of the development split that have word times."""
        self._model.eval()
        totals: dict[str, float] = {}
        num_tokens = 0
        for batch in self._dev():
            rows = [row for row in range(len(batch)) if batch.words[row]]
            if not rows:
                continue
            num_tokens += sum(len(self._model.prompts.target(batch.texts[row])) for row in rows)
            for scale in self._model.grid:
                with self._model.select([scale] * len(rows)):
                    total, _ = self._loss(batch, rows, scale, np.random.default_rng(self._seed))
                totals[str(scale)] = totals.get(str(scale), 0.0) + float(total)
        return {scale: total / num_tokens for scale, total in totals.items()}
