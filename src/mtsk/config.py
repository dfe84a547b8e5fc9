"""The configuration tree: frozen dataclasses, and their strict translation to and from plain values. No torch here."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

import cattrs
from cattrs.errors import IterableValidationNote
from cattrs.v import format_exception

from mtsk.scale import Scale, ScaleGrid

T = TypeVar("T")

Untrained = Literal["refuse", "pool", "between"]
"""What to do at a scale that was not trained: refuse it; average the tokens of the nearest finer trained scale (the
training-free baseline of the paper); or compress to its rates and let the projectors of the rates around it read."""


def _require(holds: bool, name: str, given: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {given!r}; allowed is {allowed}")


@dataclass(frozen=True)
class AudioEncoderConfig:
    """A frozen Whisper encoder."""

    source: str = "whisper-base"
    """Name of embedded base weights, folder, or hub id."""
    window: Literal["real", "30s"] = "real"
    """Encode the real length, or pad to 30 s and cut, as others' checkpoints were trained. The two are not
    interchangeable: a model is used as it was trained."""
    normalize: bool = False
    """Shift and scale each waveform to mean 0 and variance 1 first."""
    cut: Literal["whole", "authors"] = "whole"
    """What is kept of a 30 s window: the features that the sound fills, or as many as Llama-AVSR keeps: at least 25,
    and in its floating-point arithmetic now and then one less than the sound fills."""

    def __post_init__(self) -> None:
        _require(self.cut == "whole" or self.window == "30s", "audio.cut", self.cut, "'whole', unless window is '30s'")


@dataclass(frozen=True)
class CompactVideoConfig:
    """A small convolutional lip encoder, trained from scratch (sizes: see model/video_encoder.py)."""

    channels: tuple[int, int, int] = (24, 48, 96)
    width: int = 256
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)
    dropout: float = 0.2


@dataclass(frozen=True)
class AvHubertConfig:
    """A frozen AV-HuBERT lip encoder, from weights that the user converted."""

    source: str
    """Folder that `mtsk convert avhubert` wrote, or hub id of one."""
    lora_rank: int | None = None
    """Of trainable adapters on the query and value projections of its layers (the authors: 64); None: no adapters."""
    lora_alpha: float = 128.0
    """Their delta is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        _require(self.lora_rank is None or self.lora_rank >= 1, "lora_rank", self.lora_rank, "1 or more, or null")


@dataclass(frozen=True)
class ContextConfig:
    """Transformer layers with a depthwise convolution, between the encoder and the compression (model/context.py)."""

    num_layers: int = 2
    num_heads: int = 8
    hidden: int = 2048
    """Width of the layers' perceptrons."""
    kernel: int = 15
    """Features that the convolution sees."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "hidden"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(self.kernel % 2 == 1, "kernel", self.kernel, "an odd number")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")


@dataclass(frozen=True)
class ProjectorConfig:
    """Compressed features -> LLM embeddings: Linear, ReLU, Linear, with optional normalisation on either side.

    Every rate of the grid has a projector of its own, unless a list says which rates have one: one rate alone is a
    projector that all rates share, and between two rates both are blended. Lists need average pooling.
    """

    hidden: int = 1024
    input_norm: bool = True
    output_norm: bool = True
    input_dropout: float = 0.1
    audio_rates: tuple[int, ...] | None = None
    video_rates: tuple[int, ...] | None = None
    video_output_norm: bool | None = None
    """For lips, where it is not as `output_norm` says."""
    audio_context: ContextConfig | None = None
    """Layers that the features of sound go through first, once for all rates."""

    def __post_init__(self) -> None:
        for name, rates in self.rates.items():
            allowed = "null, or different whole numbers from 1 up"
            _require(bool(rates) and min(rates) >= 1 and len(set(rates)) == len(rates), f"{name}_rates", rates, allowed)

    def has_output_norm(self, modality: str) -> bool:
        """Whether the projectors of a modality normalise what they give."""
        special = self.video_output_norm if modality == "video" else None
        return self.output_norm if special is None else special

    @property
    def rates(self) -> dict[str, tuple[int, ...]]:
        """Modality -> the rates that have a projector, where a list says so."""
        lists = {"audio": self.audio_rates, "video": self.video_rates}
        return {name: rates for name, rates in lists.items() if rates is not None}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of the LLM (paper, section 3.3): `ms` one for all scales, `ss` one per scale, `mss` both.
    As in Omni-AVSR (arXiv 2511.07253): `t` one per task (sound, lips, both), `st` one for all and one per task."""

    strategy: Literal["ms", "ss", "mss", "t", "st"] = "ms"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers of the LLM by the last part of their name, such as q_proj, o_proj, gate_proj."""
    variant: Literal["lora", "dora"] = "lora"
    """Plain, or with a learned norm of each output's weights (DoRA, arXiv 2402.09353); not for `mss` and `st`."""
    rank_stabilized: bool = False
    """Scale the delta by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732)."""

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "lora.rank", self.rank, "1 or more")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "from 0 to below 1")
        _require(self.variant in ("lora", "dora"), "lora.variant", self.variant, "'lora' or 'dora'")
        allowed = (
            "'lora' with strategy 'mss' or 'st', whose two added deltas have no single magnitude; 'dora' with 'ms', "
            "'ss' or 't'"
        )
        both = self.strategy in ("mss", "st")
        _require(not (both and self.variant == "dora"), "lora.variant", self.variant, allowed)

    @property
    def delta_scale(self) -> float:
        """What an adapter's low-rank product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


@dataclass(frozen=True)
class CtcConfig:
    """Heads that read characters from the features of sound and of lips (model/ctc.py)."""

    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz0123456789"
    hidden: int = 192
    num_layers: int = 2
    kernel: int = 5
    """Features that a convolution sees."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        distinct = len(set(self.alphabet)) == len(self.alphabet) and " " in self.alphabet
        _require(distinct, "ctc.alphabet", self.alphabet, "distinct characters, a space among them")
        for name in ("hidden", "num_layers"):
            _require(getattr(self, name) >= 1, f"ctc.{name}", getattr(self, name), "1 or more")
        _require(self.kernel % 2 == 1, "ctc.kernel", self.kernel, "an odd number")
        _require(0 <= self.dropout < 1, "ctc.dropout", self.dropout, "from 0 to below 1")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of a model. Stored in its checkpoint."""

    scales: tuple[Scale, ...]
    llm: str = "smollm2-135m-instruct"
    """Name of embedded base weights, folder, or hub id of a causal language model."""
    audio: AudioEncoderConfig | None = field(default_factory=AudioEncoderConfig)
    video: CompactVideoConfig | AvHubertConfig | None = field(default_factory=CompactVideoConfig)
    compression: Literal["average", "stack"] = "average"
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    leading_space: bool = True
    """The first word of a transcription carries a space in front of it, as the others do."""
    embedding_scale: float = 1.0
    """The LLM's token embeddings are multiplied by this, and its output head where it is the same table."""
    llm_bits: Literal[4, 8] | None = None
    """Quantise the LLM's linear layers as they are loaded, to NF4 or to 8-bit integers, by the package bitsandbytes."""
    ctc: CtcConfig | None = None
    """Heads for drafts, word times and confidences; None: no such heads."""

    def __post_init__(self) -> None:
        grid = self.grid
        _require(self.llm_bits in (None, 4, 8), "llm_bits", self.llm_bits, "4, 8 or null")
        dora = self.llm_bits if self.lora.variant == "dora" else None
        _require(dora is None, "llm_bits", dora, "null with lora.variant 'dora', which needs plain weights")
        if grid.audio_rates and self.audio is None:
            raise ValueError(f"scales {grid} need sound, but the model has no audio encoder")
        if grid.video_rates and self.video is None:
            raise ValueError(f"scales {grid} need lips, but the model has no video encoder")
        if self.projector.rates and self.compression != "average":
            raise ValueError("projectors that several rates share need compression 'average': stacks differ in width")

    @property
    def grid(self) -> ScaleGrid:
        """The trained scales, sorted."""
        return ScaleGrid(self.scales)

    @property
    def trains_lips(self) -> bool:
        """Whether the lip encoder has adapters, which are trained with those of the LLM."""
        lips = self.video if self.grid.video_rates else None
        return isinstance(lips, AvHubertConfig) and lips.lora_rank is not None


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
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        for name in ("speed", "mouth_contrast"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        for name in ("gain_db", "shift_s", "mouth_shift_px", "audio_mask_s", "video_mask_s"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


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
        _require(self.num_steps >= 1, "num_steps", self.num_steps, "1 or more")
        for name in ("lr", "batch_s", "clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        _require(0 <= self.warmup_share <= 1, "warmup_share", self.warmup_share, "from 0 to 1")


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


@dataclass(frozen=True)
class JointStageConfig:
    """Stage 3: adapters and projectors together, at the scales of the grid."""

    optim: OptimConfig
    """`lr` is that of the adapters."""
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

    def __post_init__(self) -> None:
        wanted, least = self.scales_per_step, 2 if self.draw == "sandwich" else 1
        _require(wanted is None or wanted >= least, "scales_per_step", wanted, f"{least} or more, or null for all")
        for name, weight in self.weights.items():
            _require(weight >= 0, f"weights.{name}", weight, "0 or more")
            if name not in ("a", "v", "av"):
                Scale.parse(name)

    def weight(self, scale: Scale) -> float:
        """Of a scale's loss."""
        return self.weights.get(str(scale), 1.0) * self.weights.get(scale.task, 1.0)


@dataclass(frozen=True)
class CtcStageConfig:
    """Stage 4: the character heads alone, on features that are what they are; nothing else learns from it."""

    optim: OptimConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    frame_weight: float = 1.0
    """Of the cross-entropy against word times, a word's characters spread over its time: it keeps the times honest."""
    ctc_weight: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run: model, stages, and what they share."""

    model: ModelConfig
    joint: JointStageConfig
    warm_start: WarmStartStageConfig | None = None
    video_encoder: VideoStageConfig | None = None
    lips_from: str | None = None
    """A model of this package, or a checkpoint folder, whose lip encoder is used as it is instead of training one."""
    ctc: CtcStageConfig | None = None
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
        _require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        for name, times in self.repeats.items():
            _require(times >= 1, f"repeats.{name}", times, "1 or more")
        for name in ("seed", "cache_views", "num_workers"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        cached = self.cache_views if self.model.trains_lips else 0
        _require(not cached, "cache_views", cached, "0 where the lip encoder is trained (model.video.lora_rank)")
        both = self.lips_from if self.video_encoder is not None else None
        _require(both is None, "lips_from", both, "null beside video_encoder, the stage that trains a lip encoder")
        heads = "null without model.ctc, and the stage that trains the heads with it"
        _require((self.ctc is None) == (self.model.ctc is None), "ctc", self.ctc, heads)
        onto = self.onto if self.ctc is None else None
        _require(onto is None, "onto", onto, "null without ctc, the stage that trains the character heads")
        weighable = {name for scale in self.model.grid for name in (str(scale), scale.task)}
        odd = set(self.joint.weights) - weighable
        _require(not odd, "joint.weights", sorted(odd), f"the scales and tasks of the model, {sorted(weighable)}")


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Scale, str)
    converter.register_structure_hook(Scale, lambda text, _: Scale.parse(str(text)))
    converter.register_structure_hook_func(lambda wanted: wanted == tuple[Scale, ...], _scales)
    # Left alone, the converter would turn 1.7 into the int 1 and "false" into the bool True.
    for plain in (bool, int, float, str):
        converter.register_structure_hook(plain, _plain)
    return converter


def _scales(texts: Any, _: object) -> tuple[Scale, ...]:
    """A list of scales, in which `a4-20` stands for every rate from 4 to 20."""
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"{texts!r} given, a list of scales such as [a4v2, a16] is needed")
    scales: list[Scale] = []
    errors: list[Exception] = []
    for index, text in enumerate(texts):
        try:
            scales += Scale.parse_ranges(str(text))
        except ValueError as error:
            error.__notes__ = [IterableValidationNote("a scale", index, Scale)]
            errors.append(error)
    if errors:
        raise cattrs.IterableValidationError("not all are scales", errors, tuple)
    return tuple(scales)


def _plain(value: Any, wanted: type) -> Any:
    if type(value) is int and wanted is float:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{value!r} given")
    return value


def _describe(error: BaseException, wanted: type | None) -> str:
    if type(error) is Exception:  # cattrs says so where a value is none of the allowed words
        return str(error)
    if isinstance(error, AttributeError):
        return "a table of keys and values is needed"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        allowed = ", ".join(each.name for each in fields(error.cl))
        return f"unknown key ({', '.join(sorted(error.extra_fields))}), allowed are {allowed}"
    description = format_exception(error, wanted)
    return f"{description}: {error}" if isinstance(error, ValueError) else description


CONVERTER = _converter()


def set_values(config: Any) -> Any:
    """Plain values of a configuration that differ from the defaults: the same in a later version with more fields."""
    if not is_dataclass(config) or isinstance(config, Scale):
        return CONVERTER.unstructure(config)
    values = {}
    for each in fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if value != default:
            values[each.name] = set_values(value)
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values (numbers, text, lists, dicts) of a configuration."""
    plain = CONVERTER.unstructure(config)
    assert isinstance(plain, dict)
    return plain


def from_dict(cls: type[T], values: Any) -> T:
    """A configuration from plain values.

    Raises:
        ValueError: naming every unknown key, missing key or wrong value with its place in the tree.
    """
    if not isinstance(values, dict):
        raise ValueError(f"not a valid {cls.__name__}: {values!r} given, a table of keys and values is needed")
    try:
        return CONVERTER.structure(values, cls)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_describe)
        raise ValueError(f"not a valid {cls.__name__}: " + "; ".join(problems)) from error
