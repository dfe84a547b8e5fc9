"""Named full configurations: a run is chosen by name, not put together from flags. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from mtsk.config import (
    AugmentConfig,
    CompactVideoConfig,
    JointStageConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    VideoStageConfig,
    WarmStartStageConfig,
)
from mtsk.paper_recipes import PAPER_RECIPES
from mtsk.scale import ScaleGrid


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


RECIPES: dict[str, Callable[[], TrainConfig]] = {"grid-s1": grid_s1, **PAPER_RECIPES}


def get_recipe(name: str) -> TrainConfig:
    """The configuration of that name.

    Raises:
        ValueError: naming the recipes there are.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=5) or list(RECIPES)[:5]
        raise ValueError(f"no recipe {name!r}; there are {', '.join(near)} and others: mtsk train --list shows all")
    return RECIPES[name]()
