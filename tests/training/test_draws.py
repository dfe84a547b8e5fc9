"""Which scales a step uses: the same in every process, without repeats, and as likely as they should be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtsk.config import JointStageConfig, OptimConfig
from mtsk.recipes import grid_s1
from mtsk.scale import Scale, ScaleGrid
from mtsk.training.draws import DRAWS, rates, sandwich, uniform
from mtsk.training.joint_stage import JointStage
from mtsk.training.objective import backward_scales
from tests.tiny import TEXTS, tiny_batch, tiny_model

JOINT = ScaleGrid.joint((4, 16), (2, 5))
one_rate = st.none() | st.integers(1, 12)
grids = st.lists(st.tuples(one_rate, one_rate).filter(any).map(lambda pair: Scale(*pair)), min_size=1, max_size=9).map(
    lambda scales: ScaleGrid(tuple(scales))
)


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@settings(deadline=None)
@given(grids, st.integers(1, 12), st.integers(0, 1000), st.sampled_from(sorted(DRAWS)))
def test_every_draw_is_sorted_without_repeats_and_a_function_of_its_generator(
    grid: ScaleGrid, wanted: int, seed: int, name: str
) -> None:
    drawn = DRAWS[name](grid, wanted, _rng(seed))
    assert drawn == DRAWS[name](grid, wanted, _rng(seed))
    assert drawn
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(grid)


# Uniform.


@settings(deadline=None)
@given(grids, st.integers(1, 12))
def test_uniform_draws_as_many_as_wanted_or_all(grid: ScaleGrid, wanted: int) -> None:
    assert len(uniform(grid, wanted, _rng(1))) == min(wanted, len(grid))


def test_the_shipped_recipe_draws_as_it_was_trained() -> None:
    """Four of eight, by numpy's choice of indices from (seed, step): its published model can be trained again."""
    config = grid_s1()
    assert (config.joint.scales_per_step, config.joint.draw, config.joint.weights) == (4, "uniform", {})
    assert config.model.grid == JOINT
    scales = list(config.model.grid)
    model = tiny_model(scales=config.model.scales)
    stage = JointStage(config.joint, model, source=None, encoder=None, seed=1, validator=lambda _: {})  # type: ignore[arg-type]
    for step in range(50):
        drawn = np.random.default_rng((1, step)).choice(8, 4, replace=False)
        assert stage.scales(step, stage._model.grid) == [scales[i] for i in sorted(drawn)]
    known = [" ".join(map(str, stage.scales(step, stage._model.grid))) for step in range(3)]
    assert known == ["v2 v5 a4v5 a16v5", "a16 v2 a4v2 a16v2", "v2 v5 a16v2 a16v5"]


def test_uniform_draws_are_as_likely() -> None:
    counts = Counter(scale for step in range(2000) for scale in uniform(JOINT, 2, _rng(5, step)))
    assert all(abs(counts[scale] - 500) < 80 for scale in JOINT)  # four standard deviations


# Sandwich.


@settings(deadline=None)
@given(grids, st.integers(2, 12), st.integers(0, 100))
def test_sandwich_has_the_finest_and_the_coarsest_and_as_many_as_wanted(
    grid: ScaleGrid, wanted: int, seed: int
) -> None:
    drawn = sandwich(grid, wanted, _rng(seed))
    tokens = [scale.tokens_per_second for scale in grid]
    found = [scale.tokens_per_second for scale in drawn]
    assert (min(found), max(found)) == (min(tokens), max(tokens))
    assert len(drawn) == min(wanted, len(grid))


def test_sandwich_draws_the_others_as_likely() -> None:
    counts = Counter(scale for step in range(1200) for scale in sandwich(JOINT, 4, _rng(5, step)))
    ends = {Scale.parse("a4v2"), Scale.parse("a16")}
    assert {scale for scale, count in counts.items() if count == 1200} == ends
    others = [counts[scale] for scale in JOINT if scale not in ends]
    assert all(abs(count - 400) < 70 for count in others)


# Rates.


@settings(deadline=None)
@given(grids, st.integers(1, 5), st.integers(0, 100))
def test_rates_give_every_scale_that_is_made_of_them(grid: ScaleGrid, wanted: int, seed: int) -> None:
    drawn = rates(grid, wanted, _rng(seed))
    audio, video = ({scale.rate(letter) for scale in drawn} - {None} for letter in "av")
    assert len(audio) <= wanted
    assert len(video) <= wanted
    made = [s for s in grid if s.audio in {None, *audio} and s.video in {None, *video}]
    assert drawn == made


@pytest.mark.parametrize(("wanted", "num_scales"), [(1, 3), (2, 8), (3, 8)])
def test_rates_of_a_whole_grid(wanted: int, num_scales: int) -> None:
    """One of each: sound, lips and both, as in Omni-AVSR; two of each: the whole grid of two."""
    for step in range(20):
        drawn = rates(JOINT, wanted, _rng(2, step))
        assert len(drawn) == num_scales
        assert {scale.task for scale in drawn} == {"a", "v", "av"}
    pairs = Counter(str(rates(JOINT, 1, _rng(2, step))[-1]) for step in range(800))
    assert set(pairs) == {"a4v2", "a4v5", "a16v2", "a16v5"}
    assert all(abs(count - 200) < 60 for count in pairs.values())


def test_rates_of_a_grid_with_gaps_draw_again() -> None:
    grid = ScaleGrid((Scale(4, 2), Scale(16, 5)))
    drawn = [rates(grid, 1, _rng(2, step)) for step in range(40)]
    assert all(len(scales) == 1 for scales in drawn)
    assert {str(scales[0]) for scales in drawn} == {"a4v2", "a16v5"}


# In the joint stage.


@pytest.mark.parametrize("draw", sorted(DRAWS))
def test_the_stage_draws_as_configured(draw: str) -> None:
    config = JointStageConfig(OptimConfig(1, 1e-3), scales_per_step=2, draw=draw)  # type: ignore[arg-type]
    model = tiny_model(scales=JOINT)
    stage = JointStage(config, model, source=None, encoder=None, seed=9, validator=lambda _: {})  # type: ignore[arg-type]
    for step in (0, 7):
        assert stage.scales(step, stage._model.grid) == DRAWS[draw](JOINT, 2, _rng(9, step))
    everything = replace(config, scales_per_step=None)
    stage = JointStage(everything, model, source=None, encoder=None, seed=9, validator=lambda _: {})  # type: ignore[arg-type]
    assert stage.scales(0, stage._model.grid) == list(JOINT)


def test_the_mean_gradient_of_uniform_draws_is_that_of_all_scales(accelerator: Accelerator) -> None:
    """Over every possible draw of two: each pair is as likely, so this is the expected gradient, exactly."""
    model = tiny_model()
    grid = list(model.grid)
    encoded = model.encode(tiny_batch(), model.grid)

    def gradient(scales: list[Scale]) -> Tensor:
        model.zero_grad(set_to_none=True)
        backward_scales(model, encoded, TEXTS[:3], dict.fromkeys(scales, 1.0), accelerator)
        parameters = [p for n, p in model.trained_parameters().items() if not n.startswith("video_encoder.")]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

    pairs = [[one, other] for i, one in enumerate(grid) for other in grid[i + 1 :]]
    mean = torch.stack([gradient(pair) for pair in pairs]).mean(dim=0)
    whole = gradient(grid)
    assert float((mean - whole).norm()) <= 1e-5 * float(whole.norm())
