"""Tiny random models of the real classes, and small batches, for tests.

The shapes are small, the classes are those that a user runs: Whisper, Llama and Qwen2 of transformers, a byte-level BPE
tokenizer, and our own lip encoder. Everything is drawn from fixed seeds, so two calls give equal weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperModel,
)

from mtsk.config import AudioEncoderConfig, CompactVideoConfig, LoraConfig, ModelConfig, ProjectorConfig
from mtsk.data.collate import collate
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.llm import Llm
from mtsk.model.video_encoder import CompactVideoEncoder
from mtsk.scale import Scale, ScaleGrid
from mtsk.types import MOUTH_SIZE_PX, SAMPLE_RATE_HZ, VIDEO_FPS, Batch, Example, Word

T = TypeVar("T")

TEXTS = ("bin blue at f two now", "lay red by c", "place green with r nine again please", "set white in")
SCALES = ("a4", "a16", "v2", "v5", "a4v2", "a16v5")
VIDEO_CONFIG = CompactVideoConfig(channels=(4, 6, 8), width=32, dilations=(1, 2), dropout=0.1)

_BOS, _EOS = "<|begin|>", "<|end|>"
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,  # far from uniform logits, so that unlike inputs write unlike tokens
}


def _seeded(build: Callable[[], T], seed: int) -> T:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of `TEXTS`, with an end of sequence, and a beginning if wanted."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [_BOS, _EOS] if bos else [_EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=296,  # some words are one token, some are several
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {text}" for text in TEXTS], trainer)
    wrap: Any = PreTrainedTokenizerFast  # has no annotations
    wrapped: PreTrainedTokenizerFast = wrap(tokenizer_object=tokenizer, bos_token=_BOS if bos else None, eos_token=_EOS)
    return wrapped


def tiny_causal_lm(kind: str = "llama", seed: int = 0) -> Any:
    """A random `LlamaForCausalLM` ("llama") or `Qwen2ForCausalLM` ("qwen2": biases, tied embeddings)."""
    # Some more rows than the tokenizer has tokens, as real vocabularies do.
    size = len(tiny_tokenizer(bos=kind == "llama")) + 5
    eos = 1 if kind == "llama" else 0
    tokens: dict[str, Any] = {"vocab_size": size, "eos_token_id": eos, "bos_token_id": 0 if kind == "llama" else None}
    if kind == "llama":
        return _seeded(lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, **tokens)), seed)
    assert kind == "qwen2", kind
    config = Qwen2Config(**_SHAPE, **tokens, tie_word_embeddings=True)
    return _seeded(lambda: Qwen2ForCausalLM(config), seed)


def tiny_llm(kind: str = "llama", seed: int = 0) -> Llm:
    """A tiny language model with its tokenizer, wrapped."""
    return Llm.build(tiny_causal_lm(kind, seed), tiny_tokenizer(bos=kind == "llama"))


def tiny_whisper(seed: int = 0) -> Any:
    """A random Whisper, 64 wide, two encoder layers, window of 30 s."""
    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=80,
        vocab_size=16,
        max_target_positions=8,
        init_std=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model: Any = _seeded(lambda: WhisperModel(config), seed)
    return model.eval()


def tiny_video_encoder(seed: int = 0) -> CompactVideoEncoder:
    """A small lip encoder in evaluation mode, with batch statistics that are not those of a fresh one."""

    def build() -> CompactVideoEncoder:
        encoder = CompactVideoEncoder(VIDEO_CONFIG)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) * 0.2
                module.running_var = torch.rand(module.num_features) + 0.5
        return encoder.eval()

    return _seeded(build, seed)


def save_tiny_bases(folder: Path, kind: str = "llama", seed: int = 0) -> tuple[str, str]:
    """Writes the base models in transformers' layout; returns the sources (language model, audio encoder)."""
    llm, audio = folder / f"tiny-{kind}", folder / "tiny-whisper"
    tiny_causal_lm(kind, seed).save_pretrained(llm)
    tiny_tokenizer(bos=kind == "llama").save_pretrained(llm)
    tiny_whisper(seed).save_pretrained(audio)
    return str(llm), str(audio)


def tiny_config(
    strategy: str = "ms",
    compression: str = "average",
    scales: Iterable[str | Scale] = SCALES,
    *,
    sources: tuple[str, str] = ("tiny-llama", "tiny-whisper"),
    window: str = "real",
) -> ModelConfig:
    """A configuration of a tiny model; `sources` are what `save_tiny_bases` returned, if files are to be read."""
    grid = ScaleGrid(tuple(scale if isinstance(scale, Scale) else Scale.parse(scale) for scale in scales))
    return ModelConfig(
        scales=grid.scales,
        llm=sources[0],
        audio=AudioEncoderConfig(sources[1], window=window) if grid.audio_rates else None,  # type: ignore[arg-type]
        video=VIDEO_CONFIG if grid.video_rates else None,
        compression=compression,  # type: ignore[arg-type]
        projector=ProjectorConfig(hidden=48),
        lora=LoraConfig(strategy=strategy, rank=4, alpha=8.0),  # type: ignore[arg-type]
    )


def tiny_model(
    strategy: str = "ms",
    compression: str = "average",
    scales: Iterable[str | Scale] = SCALES,
    *,
    kind: str = "llama",
    window: str = "real",
    seed: int = 0,
    adapted: bool = True,
    sources: tuple[str, str] = ("tiny-llama", "tiny-whisper"),
) -> AvsrModel:
    """A whole model in evaluation mode.

    Args:
        strategy: of the adapters: ms, ss, mss.
        kind: llama (with BOS) or qwen2 (without).
        window: of the audio encoder: real, 30s.
        adapted: draw the adapters at random, so that they change the output; else they are fresh, with a delta of 0.
        sources: written into the configuration; needed only if the model is saved.
    """
    config = tiny_config(strategy, compression, scales, sources=sources, window=window)

    def build() -> AvsrModel:
        audio = None if config.audio is None else WhisperAudioEncoder(tiny_whisper(seed), config.audio.window)
        video = None if config.video is None else tiny_video_encoder(seed)
        model = AvsrModel(config, tiny_llm(kind, seed), audio, video)
        if adapted:
            randomize_adapters(model)
        return model

    return _seeded(build, seed + 1)


@torch.no_grad()
def randomize_adapters(model: AvsrModel, std: float = 0.1) -> None:
    """Draws the adapters' second factors, which start at zero."""
    for layer in model.adapters.layers.values():
        layer.up_AOR.normal_(std=std)


def tiny_example(
    text: str, duration_s: float | None, num_frames: int | None, *, id: str = "tiny", seed: int = 0
) -> Example:
    """Noise with a changing level, random crops, and evenly timed words."""
    rng = np.random.default_rng(seed)
    waveform = mouth = None
    if duration_s is not None:
        num_samples = round(duration_s * SAMPLE_RATE_HZ)
        level = 0.1 + 0.1 * np.sin(np.arange(num_samples) / SAMPLE_RATE_HZ * 9.0 + seed)
        waveform = (level * rng.standard_normal(num_samples)).astype(np.float32)
    if num_frames is not None:
        mouth = rng.integers(0, 256, (num_frames, MOUTH_SIZE_PX, MOUTH_SIZE_PX), dtype=np.uint8)
    words = text.split()
    length_s = max(duration_s or 0.0, (num_frames or 0) / VIDEO_FPS)
    edges = np.linspace(0.0, length_s, len(words) + 1).tolist()
    timed = tuple(Word(word, a, b) for word, a, b in zip(words, edges[:-1], edges[1:], strict=True))
    return Example(id, waveform, mouth, text, timed)


def tiny_examples(
    texts: Sequence[str] = TEXTS[:3],
    durations_s: Sequence[float | None] = (1.31, 0.735, 2.0),
    num_frames: Sequence[int | None] = (30, 19, 47),
    *,
    seed: int = 0,
) -> list[Example]:
    """Rows of unlike length in both modalities."""
    rows = zip(texts, durations_s, num_frames, strict=True)
    return [tiny_example(*row, id=f"tiny{i}", seed=100 * seed + i) for i, row in enumerate(rows)]


def tiny_batch(
    texts: Sequence[str] = TEXTS[:3],
    durations_s: Sequence[float | None] = (1.31, 0.735, 2.0),
    num_frames: Sequence[int | None] = (30, 19, 47),
    *,
    seed: int = 0,
) -> Batch:
    """`tiny_examples`, collated."""
    return collate(tiny_examples(texts, durations_s, num_frames, seed=seed))


def row_of(batch: Batch, row: int) -> Batch:
    """One row of a batch, alone and without padding."""
    num_samples, num_frames = int(batch.num_samples_B[row]), int(batch.num_frames_B[row])
    one = slice(row, row + 1)
    return Batch(
        ids=batch.ids[one],
        waveform_BN=batch.waveform_BN[one, : max(1, num_samples)],
        num_samples_B=batch.num_samples_B[one],
        mouth_BTHW=batch.mouth_BTHW[one, : max(1, num_frames)],
        num_frames_B=batch.num_frames_B[one],
        texts=batch.texts[one],
        words=batch.words[one],
        views=batch.views[one],
    )


def with_garbage(batch: Batch, num_extra: int = 1234) -> Batch:
    """The same batch, longer, with noise instead of zeros beyond each row's length."""
    rng = torch.Generator().manual_seed(0)
    num_rows, num_samples = batch.waveform_BN.shape
    waveform_BN = torch.randn(num_rows, num_samples + num_extra, generator=rng)
    size = (num_rows, batch.mouth_BTHW.shape[1] + 3, *batch.mouth_BTHW.shape[2:])
    mouth_BTHW = torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)
    for row in range(num_rows):
        n, t = int(batch.num_samples_B[row]), int(batch.num_frames_B[row])
        waveform_BN[row, :n] = batch.waveform_BN[row, :n]
        mouth_BTHW[row, :t] = batch.mouth_BTHW[row, :t]
    return replace(batch, waveform_BN=waveform_BN, mouth_BTHW=mouth_BTHW)
