"""What a request to a model costs, from its configuration alone: base models lend their shapes, not their weights."""

from __future__ import annotations

import functools

import torch
from transformers import AutoConfig, AutoTokenizer, WhisperModel

from mtsk.checkpoints.sources import resolve
from mtsk.config import AvHubertConfig, CompactVideoConfig, ModelConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avhubert import CONFIG_FILE, AvHubertEncoder, _read_shape
from mtsk.model.cost import Cost, CostModel, LlmShape, count_prompt_tokens
from mtsk.model.encoder_cost import EncoderShape, encoder_shape
from mtsk.model.prompt import PromptBuilder, Vocabulary
from mtsk.model.video_encoder import CompactVideoEncoder, VideoEncoder
from mtsk.scale import Scale


@functools.lru_cache(maxsize=16)
def load_cost_model(config: ModelConfig, bytes_per_value: int = 2) -> CostModel:
    """The cost model of a configuration; asks for the folders of the base models, and loads no weights.

    Args:
        bytes_per_value: of weights and cache.

    Raises:
        ValueError: if a base model can't be had.
    """
    folder = resolve(config.llm)
    llm = LlmShape.of_config(AutoConfig.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = Vocabulary(llm.vocabulary, tokenizer.bos_token_id, tokenizer.eos_token_id)
    num_prompt_tokens = count_prompt_tokens(PromptBuilder(tokenizer, vocabulary))
    return CostModel(config, llm, _encoder_shapes(config), num_prompt_tokens, bytes_per_value)


def _encoder_shapes(config: ModelConfig) -> dict[str, EncoderShape]:
    shapes = {}
    with torch.device("meta"):
        if config.audio is not None and config.grid.audio_rates:
            whisper = WhisperModel(AutoConfig.from_pretrained(resolve(config.audio.source)))
            shapes["a"] = encoder_shape(WhisperAudioEncoder(whisper, config.audio.window))
        if config.video is not None and config.grid.video_rates:
            shapes["v"] = encoder_shape(_video_encoder(config.video))
    return shapes


def _video_encoder(config: CompactVideoConfig | AvHubertConfig) -> VideoEncoder:
    if isinstance(config, CompactVideoConfig):
        return CompactVideoEncoder(config)
    encoder = AvHubertEncoder(_read_shape(resolve(config.source) / CONFIG_FILE))
    if config.lora_rank is not None:
        encoder.add_adapters(config.lora_rank, config.lora_alpha)
    return encoder


def model_cost(config: ModelConfig, scale: Scale, duration_s: float, *, num_text_tokens: int | None = None) -> Cost:
    """What a recording costs at a scale. See `CostModel.cost`.

    Args:
        num_text_tokens: that are written; default: as many as ordinary speech has.

    Raises:
        ValueError: if a base model can't be had, the model lacks a modality of the scale, or the recording is longer
            than the encoder takes.
    """
    return load_cost_model(config).cost(scale, duration_s, num_text_tokens=num_text_tokens)
