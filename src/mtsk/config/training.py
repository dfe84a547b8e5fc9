"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mtsk.config.checks import require
from mtsk.config.model import ModelConfig
from mtsk.scale import Scale


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training example; every draw comes from a generator keyed by (seed, utterance, view)."""

    noise_prob: float = 0.5
    """Share of views with babble."""
    snr_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
    gain_db: float = 6.0
    """The waveform's level changes by up to this much either way."""
    speed: float = 0.08
    """Sound and lips run up to this share faster or slower, together."""
    shift_s: float = 0.1
    """The start is moved by up to this much, sound and lips together."""
    mouth_shift_px: int = 4
    mouth_contrast: float = 0.2
    flip_prob: float = 0.5
    audio_mask_s: float = 0.0
    """Longest silent mask, one drawn for each second of sound; 0 for none."""
    video_mask_s: float = 0.3
    """Longest frozen stretch of lips, one drawn for each second of video; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("noise_prob", "flip_prob"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        for name in ("speed", "mouth_contrast"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        for name in ("gain_db", "shift_s", "mouth_shift_px", "audio_mask_s", "video_mask_s"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True)
class FeatureChangesConfig:
    """Random changes of the features of sound, drawn anew at every step, even where features are cached."""

    mask_s: float = 0.0
    """Longest stretch that is nothing, one drawn for each second of the longest row; 0 for none."""
    voice_prob: float = 0.0
    """Share of rows whose mean and spread over time go towards those of another of the batch, if one is drawn."""

    def __post_init__(self) -> None:
        require(self.mask_s >= 0, "mask_s", self.mask_s, "0 or more")
        require(0 <= self.voice_prob <= 1, "voice_prob", self.voice_prob, "from 0 to 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up, then cosine to zero."""

    num_steps: int
    lr: float
    batch_s: float = 24.0
    """Seconds of recording in a batch."""
    warmup_share: float = 0.1
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "num_steps", self.num_steps, "1 or more")
        for name in ("lr", "batch_s", "clip_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(0 <= self.warmup_share <= 1, "warmup_share", self.warmup_share, "from 0 to 1")


@dataclass(frozen=True)
class VideoStageConfig:
    """Stage 1: the lip encoder alone, from frame-wise token labels, CTC and optionally Whisper's own features."""

    optim: OptimConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    frame_weight: float = 1.0
    ctc_weight: float = 0.1
    distill_weight: float = 0.0


@dataclass(frozen=True)
class WarmStartStageConfig:
    """Stage 2: each projector alone, onto the frozen input embeddings of the LLM. Not in the paper."""

    optim: OptimConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    initial_logit_scale: float = 3.0
    ctc_weight: float = 0.3
    ctc_max_token_s: float = 0.1
    """CTC only where a token covers at most this much time: coarser tokens are fewer than the words need."""
    classes: Literal["texts", "vocabulary"] = "texts"
    """What is told apart: the tokens that occur in the training texts, or all that the LLM has."""
    embedding_weight: float = 0.0
    """Of the squared distance to the embeddings themselves, relative to their variance. The cross-entropy alone makes
    tokens that can be told apart, yet point elsewhere than the embeddings, which have much in common (measured: cosines
    of 0.13, against 0.44 between embeddings of different tokens); a language model can't copy what it does not know."""
    character_weight: float = 0.0
    """Of the CTC loss of the character heads; their loss per step has a fifth of it. They teach the layers before the
    projectors to spell, which carries over to words that are rare in training."""
    context_lr: float | None = None
    """Of character heads and the layers before the projectors, meant for those that have learned before (`spelling`);
    None: as the rest."""

    def __post_init__(self) -> None:
        require(self.character_weight >= 0, "character_weight", self.character_weight, "0 or more")
        require(self.context_lr is None or self.context_lr > 0, "context_lr", self.context_lr, "above 0, or null")


@dataclass(frozen=True)
class ReadingStageConfig:
    """Between stages 2 and 3: adapters and delimiters alone, from texts and word times, without sound or lips: the LLM
    learns to read what good projectors would write. Not in the paper."""

    optim: OptimConfig
    noise: float = 0.3
    """Standard deviation of the noise on what is read, relative to that of the LLM's embeddings."""

    def __post_init__(self) -> None:
        require(self.noise >= 0, "noise", self.noise, "0 or more")


@dataclass(frozen=True)
class JointStageConfig:
    """Stage 3: adapters and projectors together, at the scales of the grid; and character heads, if they weigh."""

    optim: OptimConfig
    """`lr` is that of the adapters, delimiters and character heads."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    projector_lr: float = 1e-4
    """For rates whose token covers at most 0.1 s, such as a4 and v2."""
    coarse_projector_lr: float = 5e-4
    """For coarser rates. By rate and not by place in the grid, so that a rate learns alike alone and among others."""
    scales_per_step: int | None = None
    """Scales drawn for a step; None: all of them, as in the paper."""
    draw: Literal["uniform", "sandwich", "rates"] = "uniform"
    """How they are drawn: `uniform`, each as likely; `sandwich`, the finest and the coarsest and others as likely, as
    in universally slimmable networks (arXiv 1903.05134); `rates`, so many rates of each modality, and every scale made
    of them, as in Omni-AVSR (arXiv 2511.07253)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Of the loss, by scale (`a4v2`) or by task (`a`, `v`, `av`); both multiply, what is not named has 1."""
    character_weight: float = 0.0
    """As in `WarmStartStageConfig`: the layers before the projectors go on spelling while the LLM learns to read."""
    features: FeatureChangesConfig = field(default_factory=FeatureChangesConfig)
    """What changes before the layers of context."""

    def __post_init__(self) -> None:
        wanted, least = self.scales_per_step, 2 if self.draw == "sandwich" else 1
        require(wanted is None or wanted >= least, "scales_per_step", wanted, f"{least} or more, or null for all")
        require(self.character_weight >= 0, "character_weight", self.character_weight, "0 or more")
        for name, weight in self.weights.items():
            require(weight >= 0, f"weights.{name}", weight, "0 or more")
            if name not in ("a", "v", "av"):
                Scale.parse(name)

    def weight(self, scale: Scale) -> float:
        """Of a scale's loss."""
        return self.weights.get(str(scale), 1.0) * self.weights.get(scale.task, 1.0)


@dataclass(frozen=True)
class CtcStageConfig:
    """The character heads: stage 4, alone, on features that are what they are; or before stage 2, with the layers of
    context (`TrainConfig.spelling`)."""

    optim: OptimConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    frame_weight: float = 1.0
    """Of the cross-entropy against word times, a word's characters spread over its time: it keeps the times honest."""
    ctc_weight: float = 1.0
    features: FeatureChangesConfig = field(default_factory=FeatureChangesConfig)
    """What changes before the layers of context, where there are some."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run: model, stages, and what they share."""

    model: ModelConfig
    joint: JointStageConfig
    spelling: CtcStageConfig | None = None
    """Before stage 2: the layers of context (`model.projector.audio_context`) learn to spell, with the character heads.
    Not in the paper."""
    warm_start: WarmStartStageConfig | None = None
    reading: ReadingStageConfig | None = None
    video_encoder: VideoStageConfig | None = None
    lips_from: str | None = None
    """A model of this package, or a checkpoint folder, whose lip encoder is used as it is instead of training one."""
    ctc: CtcStageConfig | None = None
    start_from: str | None = None
    """A model of this package, or a checkpoint folder, whose weights the run starts with, as far as this model has such
    parts: to go on with other data, stages or rates."""
    onto: str | None = None
    """A model of this package, or a checkpoint folder, that gets the character heads: only their stage is run, all
    other weights stay as they are there."""
    seed: int = 1
    cache_views: int = 0
    """Augmented views per utterance whose frozen features are cached on disk; 0: fresh views, nothing cached."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an epoch has the utterances whose name begins so, such as those of a small corpus beside a large one;
    each time is another view. What is not named comes once."""
    save_every: int = 100
    num_workers: int = 0

    def __post_init__(self) -> None:
        require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        for name, times in self.repeats.items():
            require(times >= 1, f"repeats.{name}", times, "1 or more")
        for name in ("seed", "cache_views", "num_workers"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        cached = self.cache_views if self.model.trains_lips else 0
        require(not cached, "cache_views", cached, "0 where the lip encoder is trained (model.video.lora_rank)")
        both = self.lips_from if self.video_encoder is not None else None
        require(both is None, "lips_from", both, "null beside video_encoder, the stage that trains a lip encoder")
        spelled = self.joint.character_weight if self.model.ctc is None else 0.0
        require(not spelled, "joint.character_weight", spelled, "0 without model.ctc")
        spelled = self.warm_start.character_weight if self.warm_start and self.model.ctc is None else 0.0
        require(not spelled, "warm_start.character_weight", spelled, "0 without model.ctc")
        learns = self.ctc is not None or self.joint.character_weight > 0
        heads = "null without model.ctc; with it the stage that trains the heads, or joint.character_weight above 0"
        require(learns == (self.model.ctc is not None), "ctc", self.ctc, heads)
        spelling = None if self.model.ctc and self.model.projector.audio_context else self.spelling
        require(spelling is None, "spelling", spelling, "null without model.ctc and model.projector.audio_context")
        both = self.start_from if self.onto is not None else None
        require(both is None, "start_from", both, "null beside onto, which keeps a model's weights as they are")
        onto = self.onto if self.ctc is None else None
        require(onto is None, "onto", onto, "null without ctc, the stage that trains the character heads")
        weighable = {name for scale in self.model.grid for name in (str(scale), scale.task)}
        odd = set(self.joint.weights) - weighable
        require(not odd, "joint.weights", sorted(odd), f"the scales and tasks of the model, {sorted(weighable)}")
