"""What decides the shape of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mtsk.config.checks import require
from mtsk.scale import Scale, ScaleGrid

Untrained = Literal["refuse", "pool", "between"]
"""What to do at a scale that was not trained: refuse it; average the tokens of the nearest finer trained scale (the
training-free baseline of the paper); or compress to its rates and let the projectors of the rates around it read."""


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
        require(self.cut == "whole" or self.window == "30s", "audio.cut", self.cut, "'whole', unless window is '30s'")


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
        require(self.lora_rank is None or self.lora_rank >= 1, "lora_rank", self.lora_rank, "1 or more, or null")


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
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.kernel % 2 == 1, "kernel", self.kernel, "an odd number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")


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
            require(bool(rates) and min(rates) >= 1 and len(set(rates)) == len(rates), f"{name}_rates", rates, allowed)

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
        require(self.rank >= 1, "lora.rank", self.rank, "1 or more")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "from 0 to below 1")
        require(self.variant in ("lora", "dora"), "lora.variant", self.variant, "'lora' or 'dora'")
        allowed = (
            "'lora' with strategy 'mss' or 'st', whose two added deltas have no single magnitude; 'dora' with 'ms', "
            "'ss' or 't'"
        )
        both = self.strategy in ("mss", "st")
        require(not (both and self.variant == "dora"), "lora.variant", self.variant, allowed)

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
        require(distinct, "ctc.alphabet", self.alphabet, "distinct characters, a space among them")
        for name in ("hidden", "num_layers"):
            require(getattr(self, name) >= 1, f"ctc.{name}", getattr(self, name), "1 or more")
        require(self.kernel % 2 == 1, "ctc.kernel", self.kernel, "an odd number")
        require(0 <= self.dropout < 1, "ctc.dropout", self.dropout, "from 0 to below 1")


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
        require(self.llm_bits in (None, 4, 8), "llm_bits", self.llm_bits, "4, 8 or null")
        dora = self.llm_bits if self.lora.variant == "dora" else None
        require(dora is None, "llm_bits", dora, "null with lora.variant 'dora', which needs plain weights")
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
