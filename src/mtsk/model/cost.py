"""What one request costs, in closed form: floating-point operations and bytes of each stage, from shapes alone.

Counted are matrix products and convolutions, a multiplication and an addition being two operations. Not counted:
norms, activations, softmax, resampling and the Fourier transform, together below 1 %. Attention counts every pair of
positions, masked or not, as the kernels of a prefill with a mask compute it. A padded batch costs as its padded length.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from mtsk.config import LoraConfig, ModelConfig
from mtsk.model.adapters import LoraLinear, adapter_table
from mtsk.model.audio_encoder import SAMPLES_PER_FEATURE
from mtsk.model.avsr import AvsrModel
from mtsk.model.compress import COMPRESSORS
from mtsk.model.ctc import CtcHead
from mtsk.model.encoder_cost import EncoderShape, context_shape, encoder_shape, num_parameters
from mtsk.model.prompt import PromptBuilder
from mtsk.scale import AUDIO_FEATURE_RATE_HZ, FEATURE_S, VIDEO_FEATURE_RATE_HZ, Scale
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS

STAGES = ("face", "audio_encoder", "video_encoder", "characters", "projector", "prefill", "decode")
_ENCODING = STAGES[:4]  # once for each modality, however often the text is decoded
TEXT_TOKENS_PER_SECOND = 3.5  # of ordinary speech: 150 words a minute, 1.4 tokens a word

# The face models' graphs, counted operator by operator (tests/model/test_cost.py does it again).
_MESH_FLOPS, _MESH_WEIGHTS = 69_958_080, 602_941  # on every frame
_DETECTOR_FLOPS, _DETECTOR_WEIGHTS = 61_521_920, 101_390  # once, if the face is seen at the first look
_FACE_BYTES_PER_VALUE = 4
_PAPER_NUM_PROMPT_TOKENS = 7


@dataclass(frozen=True)
class StageCost:
    """One stage of a request; zeros if it is not run."""

    num_tokens: int = 0  # positions that the stage computes: frames, features, LLM tokens
    flops: int = 0
    weight_bytes: int = 0  # weights read, once for each pass: decoding makes one for every token
    cache_bytes: int = 0  # size of the key-value cache when the stage ends

    @property
    def flops_per_token(self) -> float:
        """Mean over the stage's positions."""
        return self.flops / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True)
class Cost:
    """What a request costs: a table from the names in `STAGES`."""

    scale: Scale
    stages: Mapping[str, StageCost]

    @property
    def total_flops(self) -> int:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages.values())

    @property
    def encode_flops(self) -> int:
        """Of what a recording is encoded by, once, however often its text is decoded."""
        return sum(self.stages[name].flops for name in _ENCODING)

    @property
    def llm_flops(self) -> int:
        """Of the language model alone, reading and writing."""
        return self.stages["prefill"].flops + self.stages["decode"].flops

    @property
    def total_weight_bytes(self) -> int:
        """Weights read, of all stages."""
        return sum(stage.weight_bytes for stage in self.stages.values())

    @classmethod
    def of_passes(cls, passes: Sequence[Cost]) -> Cost:
        """Of several passes over one recording, at least one. What was encoded for one serves the others: of encoders,
        faces and character heads each modality is paid once; the scale is that of the last pass."""
        heard = next((cost for cost in passes if cost.scale.audio is not None), None)
        seen = next((cost for cost in passes if cost.scale.video is not None), None)
        alone = {} if heard is None else {"audio_encoder": heard.stages["audio_encoder"]}
        if seen is not None:
            alone |= {name: seen.stages[name] for name in ("face", "video_encoder")}
        stages = dict.fromkeys(STAGES, StageCost()) | alone
        both = next((cost for cost in passes if len(cost.scale.parts) == 2), None)
        if both is not None:
            stages["characters"] = both.stages["characters"]
        else:
            stages["characters"] = _sum(each.stages["characters"] for each in (heard, seen) if each is not None)
        repeated = {name: _sum(cost.stages[name] for cost in passes) for name in STAGES if name not in _ENCODING}
        return cls(passes[-1].scale, stages | repeated)


@dataclass(frozen=True)
class LlmShape:
    """What the cost of a dense language model depends on."""

    hidden: int
    vocabulary: int
    num_layers: int
    query_width: int  # heads x width of a head
    cache_width: int  # key-value heads x width of a head
    linears: tuple[tuple[str, int, int], ...]  # linear layers of the decoder: last part of the name, inputs, outputs
    num_parameters: int  # of the decoder, without the input embeddings and the head

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> LlmShape:
        """Of a configuration of transformers; no weights are made."""
        with torch.device("meta"):
            return cls.of(AutoModelForCausalLM.from_config(config))

    @classmethod
    def of(cls, model: Any) -> LlmShape:
        """Of a `*ForCausalLM` of transformers, with or without our adapters; may lie on the meta device."""
        config = model.config.get_text_config(decoder=True)
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        decoder, adapter_weights, linears = model.get_decoder(), 0, []
        for name, module in decoder.named_modules():
            if isinstance(module, LoraLinear):
                adapter_weights += sum(weight.numel() for weight in module.parameters(recurse=False))
            elif isinstance(module, nn.Linear):
                target = name.removesuffix(".base").rpartition(".")[2]
                linears.append((target, module.in_features, module.out_features))
        embeddings = model.get_input_embeddings().weight.numel()
        return cls(
            hidden=config.hidden_size,
            vocabulary=model.get_output_embeddings().out_features,
            num_layers=config.num_hidden_layers,
            query_width=config.num_attention_heads * head_width,
            cache_width=config.num_key_value_heads * head_width,
            linears=tuple(linears),
            num_parameters=num_parameters(decoder) - embeddings - adapter_weights,
        )

    @property
    def num_head_weights(self) -> int:
        """Of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def num_linear_weights(self) -> int:
        """Of the decoder: each is used once for every position."""
        return sum(inputs * outputs for _, inputs, outputs in self.linears)

    def num_adapter_weights(self, lora: LoraConfig) -> int:
        """Of the low-rank factors of one adapter."""
        return lora.rank * sum(inputs + outputs for name, inputs, outputs in self.linears if name in lora.targets)

    def attention_flops(self, num_queries: int, num_keys: int) -> int:
        """Scores and weighted values, in all layers."""
        return 4 * num_queries * num_keys * self.query_width * self.num_layers


@dataclass(frozen=True)
class CostModel:
    """Costs of a model's requests; holds numbers only.

    Build it by `of_model`, or without weights by `mtsk.checkpoints.shapes.load_cost_model`.
    """

    config: ModelConfig
    llm: LlmShape
    encoders: Mapping[str, EncoderShape]  # "a" and "v", as far as the model has them
    num_prompt_tokens: Mapping[str, int]  # by task "a", "v", "av": beginning, delimiters and prompt
    bytes_per_value: int = 2  # of weights and cache

    @classmethod
    def of_model(cls, model: AvsrModel) -> CostModel:
        """Of a built model, in the precision that it has now."""
        present = {"a": model.audio_encoder, "v": model.video_encoder}
        encoders = {letter: encoder_shape(encoder) for letter, encoder in present.items() if encoder is not None}
        num_prompt_tokens = count_prompt_tokens(model.prompts)
        return cls(model.config, LlmShape.of(model.llm), encoders, num_prompt_tokens, model.embedding_VE.itemsize)

    def cost(
        self,
        scale: Scale,
        duration_s: float,
        *,
        num_text_tokens: int | None = None,
        projected: Scale | None = None,
    ) -> Cost:
        """Of a recording in one segment, sound and lips equally long.

        Args:
            scale: any, trained or not, of the model's modalities.
            duration_s: of sound and lips.
            num_text_tokens: that are written, the end of sequence aside; default: as many as ordinary speech has.
            projected: the rates at which the projectors read if they differ, see `AvsrModel.reading`.

        Raises:
            ValueError: if the model lacks a modality of the scale, or the recording is longer than the encoder takes.
        """
        if num_text_tokens is None:
            num_text_tokens = round(duration_s * TEXT_TOKENS_PER_SECOND)
        num_features = {
            "a": round(duration_s * SAMPLE_RATE_HZ) // SAMPLES_PER_FEATURE,
            "v": round(duration_s * VIDEO_FPS),
        }
        return self.cost_of(scale, num_features, num_text_tokens, projected=projected)

    def cost_of(
        self, scale: Scale, num_features: Mapping[str, int], num_text_tokens: int, *, projected: Scale | None = None
    ) -> Cost:
        """Of a recording with so many features of sound `a` and lips `v`. See `cost`."""
        rates = {letter: rate for letter in "av" if (rate := scale.rate(letter)) is not None}
        missing = [letter for letter in rates if letter not in self.encoders]
        if missing:
            raise ValueError(f"scale {scale} needs the modalities {missing}, of which the model has no encoder")
        encoding = {letter: self._encoding(letter, num_features[letter]) for letter in rates}
        projecting = [
            self._projecting(letter, (projected or scale).rate(letter), rate, num_features[letter])
            for letter, rate in rates.items()
        ]
        num_tokens = self.num_prompt_tokens[scale.task] + sum(num_features[m] // rate for m, rate in rates.items())
        stages = (
            _face(num_features["v"]) if "v" in rates else StageCost(),
            encoding.get("a", StageCost()),
            encoding.get("v", StageCost()),
            _sum(self._reading(letter, num_features[letter]) for letter in rates),
            StageCost(*(sum(values) for values in zip(*projecting, strict=True))),
            self._prefill(num_tokens),
            self._decode(num_tokens, num_text_tokens),
        )
        return Cost(scale, dict(zip(STAGES, stages, strict=True)))

    def _encoding(self, letter: str, num_features: int) -> StageCost:
        shape = self.encoders[letter]
        num = shape.num_encoded(num_features)
        read = shape.num_parameters * self.bytes_per_value if num else 0
        return StageCost(num, shape.flops(num_features), read)

    def _reading(self, letter: str, num_features: int) -> StageCost:
        """Of the character head of a modality."""
        if self.config.ctc is None or not num_features:
            return StageCost()
        name = {"a": "audio", "v": "video"}[letter]
        with torch.device("meta"):
            head = CtcHead(self.encoders[letter].dim, FEATURE_S[name], self.config.ctc)
        num = num_parameters(head)
        num_weights = sum(p.numel() for p in head.parameters() if p.ndim > 1)
        return StageCost(num_features, 2 * num_features * num_weights, num * self.bytes_per_value)

    def _projecting(self, letter: str, rate: int | None, final_rate: int, num_features: int) -> tuple[int, int, int]:
        """Tokens, operations, bytes of the projector, or of the two on either side of a rate that has none."""
        assert rate is not None, "a scale is projected in its own modalities"
        grid, config = self.config.grid, self.config.projector
        listed = {"a": config.audio_rates, "v": config.video_rates}[letter]
        own = listed or {"a": grid.audio_rates, "v": grid.video_rates}[letter]
        num_readers = 2 if rate not in own and min(own) < rate < max(own) else 1
        width = COMPRESSORS[self.config.compression].width(self.encoders[letter].dim, rate)
        num_weights = config.hidden * (width + self.llm.hidden)
        num_others = config.hidden + self.llm.hidden * (3 if config.output_norm else 1)  # biases, gain
        num_tokens = num_features // rate
        read = num_readers * (num_weights + num_others) * self.bytes_per_value
        flops = 2 * num_tokens * num_readers * num_weights
        if rate != final_rate:  # tokens averaged further, as a product with their shares
            flops += 2 * num_tokens * (num_features // final_rate) * self.llm.hidden
        if letter == "a" and config.audio_context is not None:
            context = context_shape(self.encoders[letter].dim, config.audio_context)
            flops += context.flops(num_features)
            read += context.num_parameters * self.bytes_per_value
        return num_tokens, flops, read

    @functools.cached_property
    def _num_adapter_weights(self) -> int:
        """Used by one position: those of one adapter, of two for MSS."""
        lora = self.config.lora
        num_used = len(next(iter(adapter_table(lora.strategy, self.config.grid).values())))
        return num_used * self.llm.num_adapter_weights(lora)

    @functools.cached_property
    def _num_llm_weights(self) -> int:
        """Read by one pass."""
        return self.llm.num_parameters + self.llm.num_head_weights + self._num_adapter_weights

    def _prefill(self, num_tokens: int) -> StageCost:
        llm, lora = self.llm, self.config.lora
        per_token = 2 * (llm.num_linear_weights + self._num_adapter_weights)
        flops = num_tokens * per_token + llm.attention_flops(num_tokens, num_tokens) + 2 * llm.num_head_weights
        if lora.variant == "dora":  # the norms of the adapted weights, once for a request
            flops += 2 * lora.rank * sum(i * o for name, i, o in llm.linears if name in lora.targets)
        return StageCost(num_tokens, flops, self._num_llm_weights * self.bytes_per_value, self._cache_bytes(num_tokens))

    def _decode(self, num_before: int, num_steps: int) -> StageCost:
        """One pass for each token that was written; the last of them finds the end of sequence."""
        llm = self.llm
        per_token = 2 * (llm.num_linear_weights + self._num_adapter_weights + llm.num_head_weights)
        num_keys = num_steps * num_before + num_steps * (num_steps + 1) // 2  # of all steps together
        return StageCost(
            num_steps,
            num_steps * per_token + llm.attention_flops(1, num_keys),
            num_steps * self._num_llm_weights * self.bytes_per_value,
            self._cache_bytes(num_before + num_steps),
        )

    def _cache_bytes(self, num_tokens: int) -> int:
        return 2 * num_tokens * self.llm.cache_width * self.llm.num_layers * self.bytes_per_value


def _sum(stages: Iterable[StageCost]) -> StageCost:
    """Of stages that follow each other; the cache is that of the largest."""
    listed = list(stages)
    tokens, flops, read = (sum(getattr(s, name) for s in listed) for name in ("num_tokens", "flops", "weight_bytes"))
    return StageCost(tokens, flops, read, max((stage.cache_bytes for stage in listed), default=0))


def count_prompt_tokens(prompts: PromptBuilder) -> dict[str, int]:
    """LLM tokens beside those of the media, by task."""
    return {"a": len(prompts.prefix(0, None)), "v": len(prompts.prefix(None, 0)), "av": len(prompts.prefix(0, 0))}


def _face(num_frames: int) -> StageCost:
    num_detections = min(num_frames, 1)
    return StageCost(
        num_frames,
        num_frames * _MESH_FLOPS + num_detections * _DETECTOR_FLOPS,
        (num_frames * _MESH_WEIGHTS + num_detections * _DETECTOR_WEIGHTS) * _FACE_BYTES_PER_VALUE,
    )


def paper_num_tokens(scale: Scale, duration_s: float) -> int:
    """LLM tokens of a recording as in Table 4 of Cappellazzo et al. 2025 (arXiv 2503.06362)."""
    num_features = round(duration_s * AUDIO_FEATURE_RATE_HZ), round(duration_s * VIDEO_FEATURE_RATE_HZ)
    media = scale.num_tokens(num_audio_features=num_features[0], num_video_features=num_features[1])
    return media + _PAPER_NUM_PROMPT_TOKENS


def paper_llm_flops(llm: LlmShape, lora: LoraConfig, scale: Scale, duration_s: float) -> int:
    """What Table 4 of the paper counts: two operations for each token and each weight of the LLM and of one adapter,
    input embeddings aside. Norms and the head are counted for every token; attention between tokens, encoders,
    projectors and the text that is written are left out.
    """
    num_weights = llm.num_parameters + llm.num_head_weights + llm.num_adapter_weights(lora)
    return 2 * num_weights * paper_num_tokens(scale, duration_s)
