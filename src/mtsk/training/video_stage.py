"""Stage 1: trains the lip encoder alone, from frame-wise token labels, CTC and, if asked, Whisper's own features.

Letters: B rows, T frames, C classes, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtsk.config import VideoStageConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.masking import inside
from mtsk.model.prompt import PromptBuilder
from mtsk.model.video_encoder import VideoEncoder
from mtsk.scale import AUDIO_FEATURE_RATE_HZ, VIDEO_FEATURE_RATE_HZ
from mtsk.training.labels import TimedLabels, Units, greedy_classes, token_error_rate
from mtsk.training.optim import ParameterGroup
from mtsk.training.source import BatchSource
from mtsk.types import Batch, Features

FRAME_S = 1.0 / VIDEO_FEATURE_RATE_HZ
_AUDIO_PER_VIDEO = AUDIO_FEATURE_RATE_HZ // VIDEO_FEATURE_RATE_HZ


class _LipModules(nn.Module):
    """The encoder and the heads that only training needs."""

    def __init__(self, encoder: VideoEncoder, num_classes: int, teacher_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = nn.Linear(encoder.dim, num_classes)
        self.teacher = nn.Linear(encoder.dim, teacher_dim)


class VideoStage:
    """See `trainer.Stage`.

    With several processes the loss is the mean of theirs, each over its own windows and tokens, and batches are
    normalised by each process alone. The batches last about equally long, so this is near the loss of one large batch.

    Args:
        encoder: is trained in place.
        teacher: the audio encoder whose features are targets if `config.distill_weight` is above 0.
        dev: batches of the development split.
    """

    name = "video_encoder"

    def __init__(
        self,
        config: VideoStageConfig,
        encoder: VideoEncoder,
        teacher: WhisperAudioEncoder | None,
        units: Units,
        prompts: PromptBuilder,
        *,
        source: BatchSource,
        dev: Callable[[], Iterator[Batch]],
    ) -> None:
        self.optim = config.optim
        lips = _LipModules(encoder, units.num_classes, teacher.dim if teacher else 1)
        self.modules: _LipModules = lips.to(source.accelerator.device)
        self._config, self._teacher, self._units, self._prompts = config, teacher, units, prompts
        self._source, self._dev = source, dev

    def groups(self) -> list[ParameterGroup]:
        """Everything at one rate; the teacher's head only if it is used."""
        used = {
            name: p
            for name, p in self.modules.named_parameters()
            if self._config.distill_weight or not name.startswith("teacher.")
        }
        for parameter in used.values():
            parameter.requires_grad_(True)
        return [ParameterGroup(used, self.optim.lr)]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """See `trainer.Stage`."""
        return self._source.from_step(start_step)

    def backward(self, batch: Batch, step: int) -> dict[str, float]:
        """Frame cross-entropy + CTC + distance to the teacher, by the configured weights."""
        del step
        config, accelerator = self._config, self._source.accelerator
        self.modules.train()
        labels = self._labels(batch)
        with accelerator.autocast():
            features = self.modules.encoder(batch.mouth_BTHW, batch.num_frames_B)
            logits_BTC = self.modules.classes(features.values_BTD)
        losses = {
            "frame": (config.frame_weight, labels.share_loss(logits_BTC)),
            "ctc": (config.ctc_weight, labels.ctc_loss(logits_BTC, features.lengths_B)),
        }
        if config.distill_weight:
            losses["distill"] = config.distill_weight, self._distance(batch, features)
        total = sum(weight * loss for weight, loss in losses.values()) / accelerator.num_processes
        assert isinstance(total, Tensor)
        accelerator.backward(total)
        figures = {name: float(loss.detach()) for name, (_, loss) in losses.items()}
        return {**figures, "tokens": float(batch.num_frames_B.sum())}

    def _labels(self, batch: Batch) -> TimedLabels:
        lengths = batch.num_frames_B.tolist()
        return TimedLabels.of(batch.words, batch.texts, self._units, self._prompts, lengths=lengths, window_s=FRAME_S)

    def _distance(self, batch: Batch, features: Features) -> Tensor:
        """1 - cosine to the mean of the teacher's features of the same 40 ms, over frames that both have."""
        assert self._teacher is not None
        with self._source.accelerator.autocast():
            sound = self._teacher(batch.waveform_BN, batch.num_samples_B)
        lengths_B = torch.minimum(features.lengths_B, sound.lengths_B // _AUDIO_PER_VIDEO)
        num_frames = int(lengths_B.max())
        pairs_BTD = (
            sound.values_BTD[:, : num_frames * _AUDIO_PER_VIDEO].unflatten(1, (num_frames, _AUDIO_PER_VIDEO)).mean(2)
        )
        with self._source.accelerator.autocast():
            guess_BTD = self.modules.teacher(features.values_BTD[:, :num_frames])
        distance_BT = 1.0 - functional.cosine_similarity(guess_BTD.float(), pairs_BTD.float(), dim=-1)
        return distance_BT[inside(lengths_B, num_frames)].sum() / lengths_B.sum().clamp(min=1)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Token error rate of greedy reading."""
        self.modules.eval()
        read: list[list[int]] = []
        said: list[list[int]] = []
        for batch in self._dev():
            batch = batch.to(self._source.accelerator.device)
            features = self.modules.encoder(batch.mouth_BTHW, batch.num_frames_B)
            read += greedy_classes(self.modules.classes(features.values_BTD), features.lengths_B)
            said += [self._units.sequence(text, self._prompts) for text in batch.texts]
        return {"token_error_rate": token_error_rate(said, read)}
