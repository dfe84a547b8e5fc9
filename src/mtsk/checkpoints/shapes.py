"""Shapes of models without their weights: for counts of parameters and for costs.

A base model's shape comes from its own configuration. That of a few well-known ones is written down here, so that
nobody downloads 16 GB to learn a cost; what is loaded for use always brings its own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    WhisperConfig,
    WhisperModel,
)

from mtsk.checkpoints.sources import is_cached, resolve
from mtsk.config import AvHubertConfig, CompactVideoConfig, ModelConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avhubert import CONFIG_FILE, AvHubertEncoder, AvHubertShape, read_shape
from mtsk.model.avsr import AvsrModel
from mtsk.model.cost import Cost, CostModel
from mtsk.model.llm import Llm
from mtsk.model.video_encoder import CompactVideoEncoder, VideoEncoder
from mtsk.scale import Scale

T = TypeVar("T")


def _llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def _whisper(width: int, layers: int, heads: int) -> WhisperConfig:
    return WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,  # is not used
        decoder_attention_heads=heads,
    )


KNOWN_LLMS: dict[str, LlamaConfig] = {
    "smollm2-135m-instruct": _llama(576, 1536, 30, 9, 3, 49_152, tied=True),
    "meta-llama/Llama-3.2-1B": _llama(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "meta-llama/Llama-3.2-3B": _llama(3072, 8192, 28, 24, 8, 128_256, tied=True),
    "meta-llama/Llama-3.1-8B": _llama(4096, 14_336, 32, 32, 8, 128_256, tied=False),
}
KNOWN_WHISPERS: dict[str, WhisperConfig] = {
    "whisper-base": _whisper(512, 6, 8),
    "openai/whisper-small": _whisper(768, 12, 12),
    "openai/whisper-medium": _whisper(1024, 24, 16),
}
KNOWN_LIPS: dict[str, AvHubertShape] = {
    "avhubert-base": AvHubertShape(num_layers=12, width=768, ffn_width=3072, num_heads=12),
    "avhubert-large": AvHubertShape(),
}


class _WordTokenizer:
    """Stands in for the tokenizer of an LLM that is not here: a token per word and per mark."""

    bos_token_id, eos_token_id = 0, 1

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """As many numbers as the text has words and marks."""
        del add_special_tokens
        return [2] * len(re.findall(r"\w+|[^\w\s]", text))


@functools.lru_cache(maxsize=16)
def shape_model(config: ModelConfig) -> AvsrModel:
    """A model on the meta device: all sizes, no values, nothing downloaded if the base models are well known.

    Raises:
        ValueError: if the shape of a base model is not known and can't be had.
    """
    llm_config, tokenizer = _llm(config.llm)
    audio = video = None
    with torch.device("meta"):
        llm = Llm.build(AutoModelForCausalLM.from_config(llm_config), tokenizer)
        if config.audio is not None and config.grid.audio_rates:
            known = _known(KNOWN_WHISPERS, config.audio.source)
            whisper = known or AutoConfig.from_pretrained(resolve(config.audio.source))
            audio = WhisperAudioEncoder(WhisperModel(whisper), config.audio.window)
        if config.video is not None and config.grid.video_rates:
            video = _video_encoder(config.video)
        return AvsrModel(config, llm, audio, video)


def _known(shapes: Mapping[str, T], source: str) -> T | None:
    """What is written down here, unless there is a folder of that name, which would be loaded."""
    return None if Path(source).is_dir() else shapes.get(source)


def _llm(source: str) -> tuple[PretrainedConfig, Any]:
    known = _known(KNOWN_LLMS, source)
    if known is not None and not is_cached(source):
        return known, _WordTokenizer()
    folder = resolve(source)
    return AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _video_encoder(config: CompactVideoConfig | AvHubertConfig) -> VideoEncoder:
    if isinstance(config, CompactVideoConfig):
        return CompactVideoEncoder(config)
    known = _known(KNOWN_LIPS, config.source)
    encoder = AvHubertEncoder(known or read_shape(resolve(config.source) / CONFIG_FILE))
    if config.lora_rank is not None:
        encoder.add_adapters(config.lora_rank, config.lora_alpha)
    return encoder


def load_cost_model(config: ModelConfig, bytes_per_value: int = 2) -> CostModel:
    """The cost model of a configuration.

    Args:
        bytes_per_value: of weights and cache.

    Raises:
        ValueError: as `shape_model`.
    """
    return dataclasses.replace(CostModel.of_model(shape_model(config)), bytes_per_value=bytes_per_value)


def model_cost(config: ModelConfig, scale: Scale, duration_s: float, *, num_text_tokens: int | None = None) -> Cost:
    """What a recording costs at a scale. See `CostModel.cost`.

    Args:
        num_text_tokens: that are written; default: as many as ordinary speech has.

    Raises:
        ValueError: as `shape_model`, or if the model lacks a modality of the scale, or the recording is longer than
            the encoder takes.
    """
    return load_cost_model(config).cost(scale, duration_s, num_text_tokens=num_text_tokens)
