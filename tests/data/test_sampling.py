"""The order of training: complete, disjoint, resumable."""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut

from mtsk.data.dataset import Key
from mtsk.data.sampling import batch_keys, epoch_batches, num_steps_per_epoch


def make_cuts(durations_s: Iterable[float]) -> CutSet:
    return CutSet([MonoCut(f"u{index}", 0.0, float(duration_s), 0) for index, duration_s in enumerate(durations_s)])


def random_cuts(num: int, seed: int = 0) -> CutSet:
    return make_cuts(np.random.default_rng(seed).uniform(0.5, 20.0, num).round(3))


durations = st.lists(st.floats(0.5, 20.0), min_size=8, max_size=60)


@settings(deadline=None, max_examples=50)
@given(durations, st.floats(1.0, 60.0), st.integers(0, 3), st.integers(1, 4))
def test_every_utterance_exactly_once_an_epoch_over_all_ranks(durations_s, batch_s, epoch, world_size):
    cuts = make_cuts(durations_s)
    duration_of = {cut.id: cut.duration for cut in cuts}
    ranks = [
        epoch_batches(cuts, batch_s=batch_s, seed=5, epoch=epoch, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = num_steps_per_epoch(cuts, batch_s=batch_s, world_size=world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    seen = [id for batches in ranks for batch in batches for id in batch]
    assert set(seen) == set(duration_of)
    if len(seen) > len(duration_of):  # only where nothing is left to halve
        assert len(seen) < len(duration_of) + world_size
        assert all(len(batch) == 1 for batches in ranks for batch in batches)
    for batch in (batch for batches in ranks for batch in batches):
        assert batch
        padded_s = len(batch) * max(duration_of[id] for id in batch)
        assert len(batch) == 1 or padded_s <= 1.01 * batch_s
        assert max(duration_of[id] for id in batch) <= 1.15 * min(duration_of[id] for id in batch) + 1e-9


def test_fewer_utterances_than_processes_repeat_some():
    cuts = make_cuts([1.0, 1.0, 1.0])
    ranks = [epoch_batches(cuts, batch_s=10, seed=0, epoch=0, rank=rank, world_size=4) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [1] * 4
    assert {id for batches in ranks for batch in batches for id in batch} == {"u0", "u1", "u2"}


def test_epochs_and_seeds_differ_and_repeat():
    cuts = random_cuts(100)
    first = epoch_batches(cuts, batch_s=24, seed=1, epoch=0)
    assert first == epoch_batches(cuts, batch_s=24, seed=1, epoch=0)
    assert first != epoch_batches(cuts, batch_s=24, seed=1, epoch=1)
    assert first != epoch_batches(cuts, batch_s=24, seed=2, epoch=0)


def test_order_of_the_manifest_does_not_matter():
    cuts = random_cuts(50)
    turned = CutSet(list(cuts)[::-1])
    assert epoch_batches(cuts, batch_s=24, seed=1, epoch=0) == epoch_batches(turned, batch_s=24, seed=1, epoch=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("cache_views", [0, 2])
def test_resuming_at_any_step_equals_the_tail(world_size, cache_views):
    cuts = random_cuts(40)
    steps = num_steps_per_epoch(cuts, batch_s=30, world_size=world_size)

    def keys(start_step: int, num: int) -> list[list[Key]]:
        generator = batch_keys(
            cuts,
            batch_s=30,
            seed=3,
            start_step=start_step,
            rank=world_size - 1,
            world_size=world_size,
            cache_views=cache_views,
        )
        return list(islice(generator, num))

    whole = keys(0, 4 * steps)
    for start_step in range(4 * steps - 1):
        assert keys(start_step, 4 * steps - start_step) == whole[start_step:]
    views = [{view for _, view in batch} for batch in whole]
    expected = [step // steps % cache_views if cache_views else step // steps for step in range(4 * steps)]
    assert views == [{view} for view in expected]


def test_eight_clips_of_three_seconds_are_a_batch_of_24():
    cuts = make_cuts([3.008] * 80)
    assert {len(batch) for batch in epoch_batches(cuts, batch_s=24.0, seed=0, epoch=0)} == {8}


def test_impossible_orders_are_refused():
    with pytest.raises(ValueError, match="no utterances"):
        epoch_batches(make_cuts([]), batch_s=24, seed=0, epoch=0)
    with pytest.raises(ValueError, match="batch_s must be positive"):
        epoch_batches(make_cuts([1.0]), batch_s=0, seed=0, epoch=0)
