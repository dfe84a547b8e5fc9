"""Named full configurations: a run is chosen by name, not put together from flags. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from mtsk.config import (
    AugmentConfig,
    CompactVideoConfig,
    ContextConfig,
    CtcConfig,
    CtcStageConfig,
    FeatureChangesConfig,
    JointStageConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ProjectorConfig,
    ReadingStageConfig,
    TrainConfig,
    VideoStageConfig,
    WarmStartStageConfig,
)
from mtsk.paper_recipes import PAPER_RECIPES
from mtsk.scale import Scale, ScaleGrid


def grid_s1() -> TrainConfig:
    """The default model: GRID talker s1, sound and lips, {a4, a16} x {v2, v5}, one shared adapter (MS)."""
    return TrainConfig(
        model=ModelConfig(
            scales=ScaleGrid.joint(audio=(4, 16), video=(2, 5)).scales, video=CompactVideoConfig(dropout=0.25)
        ),
        video_encoder=VideoStageConfig(
            OptimConfig(num_steps=5000, lr=2e-3),
            augment=AugmentConfig(mouth_shift_px=6, mouth_contrast=0.3, video_mask_s=0.4),
        ),
        warm_start=WarmStartStageConfig(
            OptimConfig(num_steps=500, lr=1e-3, batch_s=48.0), augment=AugmentConfig(shift_s=0.16)
        ),
        joint=JointStageConfig(
            OptimConfig(num_steps=280, lr=2e-3, clip_norm=1.0),
            augment=AugmentConfig(shift_s=0.16),
            projector_lr=3e-4,
            scales_per_step=4,
        ),
        seed=1,
    )


def grid_s1_ctc() -> TrainConfig:
    """`grid-s1` with character heads; `--onto grid-s1` trains them for the default model as it is."""
    plain = grid_s1()
    return replace(
        plain,
        model=replace(plain.model, ctc=CtcConfig()),
        ctc=CtcStageConfig(OptimConfig(num_steps=600, lr=2e-3, batch_s=48.0), augment=AugmentConfig(shift_s=0.16)),
        cache_views=3,
    )


def english() -> TrainConfig:
    """English at {a4, a8, a12, a16} from made and machine-labelled speech, and GRID talker s1 with lips.

    Its lip encoder is that of `grid-s1`. `english-2` goes on from what comes out.
    """
    augment = AugmentConfig(noise_prob=0.4, snr_db=(0.0, 5.0, 10.0, 15.0, 20.0), shift_s=0.16)
    scales = (*ScaleGrid.joint(audio=(4, 16), video=(2, 5)).scales, Scale(audio=8), Scale(audio=12))
    return TrainConfig(
        model=ModelConfig(
            scales=scales,
            video=CompactVideoConfig(dropout=0.25),
            projector=ProjectorConfig(audio_context=ContextConfig(num_layers=3)),
            lora=LoraConfig(
                targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                rank=16,
                dropout=0.0,
            ),
            ctc=CtcConfig(),
        ),
        lips_from="grid-s1",
        spelling=CtcStageConfig(OptimConfig(num_steps=4000, lr=1e-3, batch_s=32.0), augment=augment, frame_weight=0.2),
        warm_start=WarmStartStageConfig(
            OptimConfig(num_steps=500, lr=7e-4, batch_s=32.0),
            augment=augment,
            embedding_weight=2.0,
            character_weight=0.5,
            context_lr=2e-4,
        ),
        reading=ReadingStageConfig(OptimConfig(num_steps=200, lr=1e-3, batch_s=32.0, clip_norm=1.0)),
        joint=JointStageConfig(
            OptimConfig(num_steps=2100, lr=1e-3, batch_s=32.0, clip_norm=1.0),
            augment=augment,
            projector_lr=3e-4,
            coarse_projector_lr=5e-4,
            scales_per_step=1,
            character_weight=0.5,
        ),
        repeats={"s1_": 4, "labelled_": 6},
        cache_views=2,
    )


def english_2() -> TrainConfig:
    """`english` gone on with by `--start-from`, without lips: masked features and mixed voices."""
    first = english()
    assert first.spelling is not None
    changes = FeatureChangesConfig(mask_s=0.25, voice_prob=0.5)
    spelling, joint = (replace(stage.optim, lr=7e-4) for stage in (first.spelling, first.joint))
    return replace(
        first,
        model=replace(first.model, scales=tuple(Scale(audio=rate) for rate in (4, 8, 12, 16)), video=None),
        spelling=replace(first.spelling, optim=replace(spelling, num_steps=2400), features=changes),
        joint=replace(first.joint, optim=replace(joint, num_steps=1250, warmup_share=0.05), features=changes),
        warm_start=None,
        reading=None,
        lips_from=None,
        repeats={"labelled_": 12},
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "grid-s1": grid_s1,
    "grid-s1-ctc": grid_s1_ctc,
    "english": english,
    "english-2": english_2,
    **PAPER_RECIPES,
}


def get_recipe(name: str) -> TrainConfig:
    """The configuration of that name.

    Raises:
        ValueError: naming the recipes there are.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=5) or list(RECIPES)[:5]
        raise ValueError(f"no recipe {name!r}; there are {', '.join(near)} and others: mtsk train --list shows all")
    return RECIPES[name]()
