"""Which scales a training step uses: all of a grid's, or some, drawn so that all processes agree.

Drawn uniformly, a step costs a fraction of one with all scales and has the same expected gradient; the other draws
favour some scales.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtsk.config import JointStageConfig
from mtsk.scale import Scale, ScaleGrid

Draw = Callable[[ScaleGrid, int, np.random.Generator], list[Scale]]
"""(grid, how many, generator) -> different scales, in the grid's order."""


def uniform(grid: ScaleGrid, wanted: int, rng: np.random.Generator) -> list[Scale]:
    """So many scales, each as likely."""
    scales = list(grid)
    drawn = rng.choice(len(scales), size=min(wanted, len(scales)), replace=False)
    return [scales[i] for i in sorted(drawn)]


def sandwich(grid: ScaleGrid, wanted: int, rng: np.random.Generator) -> list[Scale]:
    """The scale of most tokens, that of fewest, and others, each as likely (Yu and Huang 2019, arXiv 1903.05134)."""
    by_tokens = sorted(grid, key=lambda scale: scale.tokens_per_second)
    ends, between = {by_tokens[0], by_tokens[-1]}, by_tokens[1:-1]
    if wanted > len(ends) and between:
        ends |= set(uniform(ScaleGrid(tuple(between)), wanted - len(ends), rng))
    return sorted(ends)


def rates(grid: ScaleGrid, wanted: int, rng: np.random.Generator) -> list[Scale]:
    """So many audio rates and video rates, and every scale of the grid that is made of them (Omni-AVSR, arXiv
    2511.07253: one of each, hence at most three scales). Of grids with gaps it may be none; then it draws again.
    """
    while True:
        audio, video = (_some(of, wanted, rng) for of in (grid.audio_rates, grid.video_rates))
        made = [scale for scale in grid if scale.audio in (None, *audio) and scale.video in (None, *video)]
        if made:
            return made


def _some(of: tuple[int, ...], wanted: int, rng: np.random.Generator) -> list[int]:
    return [of[i] for i in rng.permutation(len(of))[:wanted]]


DRAWS: dict[str, Draw] = {"uniform": uniform, "sandwich": sandwich, "rates": rates}


def scales_of_step(config: JointStageConfig, grid: ScaleGrid, seed: int, step: int) -> list[Scale]:
    """All of the grid's, or as many as configured, a function of seed and step."""
    if config.scales_per_step is None:
        return list(grid)
    return DRAWS[config.draw](grid, config.scales_per_step, np.random.default_rng((seed, step)))
