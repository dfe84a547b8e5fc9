"""The published set-ups by name: Llama-MTSK (arXiv 2503.06362), its baseline Llama-AVSR (arXiv 2409.12319) and
Omni-AVSR (arXiv 2511.07253). They expect LRS3, prepared, and AV-HuBERT's weights converted to `./avhubert-large`.

Batches are of 60 s on one device; the authors used eight. No torch here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from mtsk.config import (
    AudioEncoderConfig,
    AugmentConfig,
    AvHubertConfig,
    JointStageConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ProjectorConfig,
    TrainConfig,
)
from mtsk.scale import Scale, ScaleGrid

Strategy = Literal["ms", "ss", "mss", "t", "st"]
Compression = Literal["average", "stack"]

_LRS3_S, _BATCH_S, _NUM_EPOCHS = 433 * 3600.0, 60.0, 10
_LIPS = "avhubert-large"
_SMALL = ("meta-llama/Llama-3.2-1B", "openai/whisper-small")  # Tables 1 and 3, figures 3 to 6
_LARGE = ("meta-llama/Llama-3.1-8B", "openai/whisper-medium")  # Tables 2, 4 and 5
_PAIRS = tuple(Scale(audio, video) for audio in (4, 16) for video in (2, 5))


def _published(
    scales: Iterable[Scale],
    bases: tuple[str, str] = _SMALL,
    *,
    strategy: Strategy = "ms",
    compression: Compression = "average",
    norm: bool = True,
) -> TrainConfig:
    """What the set-ups have in common. Lips alone learn at half the rate, and with LoRA in the lip encoder."""
    grid = ScaleGrid(tuple(scales))
    llm, whisper = bases
    lips_alone = not grid.audio_rates
    lr = 5e-4 if lips_alone else 1e-3
    return TrainConfig(
        model=ModelConfig(
            scales=grid.scales,
            llm=llm,
            audio=AudioEncoderConfig(whisper, window="30s", normalize=True),
            video=AvHubertConfig(_LIPS, lora_rank=64 if lips_alone else None),
            compression=compression,
            projector=ProjectorConfig(hidden=2048, input_norm=False, output_norm=norm, input_dropout=0.0),
            lora=LoraConfig(strategy, rank=64, alpha=8.0, dropout=0.0),
        ),
        joint=JointStageConfig(
            OptimConfig(
                num_steps=round(_NUM_EPOCHS * _LRS3_S / _BATCH_S),
                lr=lr,
                batch_s=_BATCH_S,
                warmup_share=0.0,
                weight_decay=0.1,
                clip_norm=10.0,
            ),
            augment=_AUGMENT,
            projector_lr=lr,
            coarse_projector_lr=lr,
        ),
    )


# One of seven levels of noise, clean among them; masks of up to 0.4 s, one a second; crops move; nothing else changes.
_AUGMENT = AugmentConfig(
    noise_prob=6 / 7,
    snr_db=(-5.0, 0.0, 5.0, 10.0, 15.0, 20.0),
    gain_db=0.0,
    speed=0.0,
    shift_s=0.0,
    mouth_shift_px=4,
    mouth_contrast=0.0,
    flip_prob=0.0,
    audio_mask_s=0.4,
    video_mask_s=0.4,
)


def paper_table1(strategy: Strategy) -> TrainConfig:
    """Table 1: sound and lips, {a4, a16} x {v2, v5}, Whisper small, Llama 3.2-1B."""
    return _published(_PAIRS, strategy=strategy)


def paper_table5(strategy: Strategy) -> TrainConfig:
    """Tables 2 and 5: sound and lips, {a4, a16} x {v2, v5}, Whisper medium, Llama 3.1-8B."""
    return _published(_PAIRS, _LARGE, strategy=strategy)


def paper_asr(strategy: Strategy, compression: Compression) -> TrainConfig:
    """Figures 3 and 4: sound alone, a4 to a20, Whisper small, Llama 3.2-1B."""
    return _published((Scale(audio=rate) for rate in (4, 8, 12, 16, 20)), strategy=strategy, compression=compression)


def paper_table3(compression: Compression = "average") -> TrainConfig:
    """Table 3: sound alone, a2 to a10, one shared adapter, against training-free pooling of a2."""
    return _published((Scale(audio=rate) for rate in (2, 4, 6, 8, 10)), compression=compression)


def paper_vsr(strategy: Strategy, compression: Compression) -> TrainConfig:
    """Figures 5 and 6: lips alone, v1 to v5, Llama 3.2-1B, LoRA in the lip encoder."""
    return _published((Scale(video=rate) for rate in range(1, 6)), strategy=strategy, compression=compression)


def paper_table4() -> TrainConfig:
    """Table 4: what the scales cost with Whisper medium and Llama 3.1-8B; (1, 1) is no compression."""
    return _published((Scale(1, 1), *_PAIRS), _LARGE)


def llama_avsr(scale: Scale, bases: tuple[str, str] = _SMALL) -> TrainConfig:
    """The baseline: an independent model of one scale, otherwise as the tables and figures with that scale."""
    return _published((scale,), bases)


def llama_avsr_8b(scale: Scale) -> TrainConfig:
    """Llama-AVSR as published with Llama 3.1-8B: stacks of 3, no LayerNorm."""
    return _published((scale,), _LARGE, compression="stack", norm=False)


def omni_avsr(strategy: Strategy = "ms") -> TrainConfig:
    """Omni-AVSR: three tasks, one audio and one video rate a step; LoRA shared, per task (t) or both (st)."""
    config = _published(ScaleGrid.joint((4, 16), (2, 5)), strategy=strategy, norm=False)
    joint = replace(config.joint, scales_per_step=1, draw="rates", weights={"a": 1.0, "v": 1.5, "av": 1.0})
    return replace(config, joint=joint)


def _all() -> dict[str, Callable[[], TrainConfig]]:
    recipes: dict[str, Callable[[], TrainConfig]] = {}
    strategies: tuple[Strategy, ...] = ("ms", "ss", "mss")
    for strategy in strategies:
        recipes[f"paper_table1_{strategy}"] = functools.partial(paper_table1, strategy)
    for strategy in strategies:
        recipes[f"paper_table5_{strategy}"] = functools.partial(paper_table5, strategy)
    recipes |= {"paper_table3": paper_table3, "paper_table3_stack": functools.partial(paper_table3, "stack")}
    recipes["paper_table4"] = paper_table4
    compressions: tuple[Compression, ...] = ("average", "stack")
    for compression in compressions:
        for strategy in strategies:
            recipes[f"paper_asr_{compression}_{strategy}"] = functools.partial(paper_asr, strategy, compression)
            recipes[f"paper_vsr_{compression}_{strategy}"] = functools.partial(paper_vsr, strategy, compression)
    for scale in (*_PAIRS, *(Scale(audio=a) for a in (4, 8, 12, 16, 20)), *(Scale(video=v) for v in range(1, 6))):
        recipes[f"llama_avsr_{scale}"] = functools.partial(llama_avsr, scale)
    for scale in _PAIRS:
        recipes[f"llama_avsr_table5_{scale}"] = functools.partial(llama_avsr, scale, _LARGE)
    for scale in (Scale(audio=3), Scale(video=3), Scale(3, 3)):
        recipes[f"llama_avsr_8b_{scale}"] = functools.partial(llama_avsr_8b, scale)
    recipes["omni_avsr"] = omni_avsr
    omni: tuple[Strategy, ...] = ("t", "st")
    for strategy in omni:
        recipes[f"omni_avsr_{strategy}"] = functools.partial(omni_avsr, strategy)
    return recipes


PAPER_RECIPES = _all()
