"""The order of training: batches of an epoch as a pure function of (seed, epoch), the same for every process.

Utterances of like duration share a bucket, and every bucket has a batch size of its own, so the number of batches is
the same in every epoch: any step is found without going through those before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mtsk.data.dataset import Key

_BUCKET_RATIO = 1.15  # longest over shortest utterance of a bucket
_TOLERANCE = 1.01  # a batch of 8 clips of 3.008 s still counts as 24 s


class Timed(Protocol):
    """An utterance, such as lhotse's cuts."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def duration(self) -> float:
        """In seconds."""


def epoch_batches(
    cuts: Iterable[Timed], *, batch_s: float, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[list[str]]:
    """The batches of one process in one epoch, as names of utterances.

    Over all processes every utterance comes exactly once, and every process has as many batches as the others. Only
    where that can't be, as all batches are single utterances, fewer than `world_size` of them are repeated.

    Args:
        cuts: the utterances.
        batch_s: seconds in a batch, padding included; an utterance longer than this is a batch of its own.
        seed: of the order.
        epoch: counts from 0.
        rank: which process, from 0.
        world_size: number of processes.

    Raises:
        ValueError: if there are no utterances, or `batch_s` is not positive.
    """
    assert 0 <= rank < world_size, (rank, world_size)
    rng = np.random.default_rng((seed, epoch))
    batches: list[list[str]] = []
    for ids, size in _buckets(cuts, batch_s):
        shuffled = [ids[index] for index in rng.permutation(len(ids))]
        batches += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    batches = _divisible(batches, world_size)
    # What the processes have at the same time is alike in duration, so that none waits long for the others.
    return [batches[index * world_size + rank] for index in rng.permutation(len(batches) // world_size)]


def batch_keys(
    cuts: Iterable[Timed],
    *,
    batch_s: float,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cache_views: int = 0,
    repeats: Mapping[str, int] | None = None,
) -> Iterator[list[Key]]:
    """The keys of each batch from `start_step` on, without end.

    Every epoch has a view of its own; with `cache_views` above 0 there are only that many, in turn. The other
    arguments are those of `epoch_batches`.

    Args:
        repeats: beginning of a name -> how often an epoch has such an utterance, each time as another view.
    """
    turns = {turn.id: turn for cut in cuts for turn in _turns(cut, repeats or {})}
    steps = num_steps_per_epoch(turns.values(), batch_s=batch_s, world_size=world_size)
    epoch, first = divmod(start_step, steps)
    while True:
        round = epoch % cache_views if cache_views else epoch
        batches = epoch_batches(
            turns.values(), batch_s=batch_s, seed=seed, epoch=epoch, rank=rank, world_size=world_size
        )
        assert len(batches) == steps, (len(batches), steps)
        for batch in batches[first:]:
            yield [turns[id].key(round) for id in batch]
        epoch, first = epoch + 1, 0


@dataclass(frozen=True)
class _Turn:
    """One of the times that an epoch has an utterance."""

    id: str
    duration: float
    of: str
    number: int
    times: int

    def key(self, round: int) -> Key:
        return self.of, round * self.times + self.number


def _turns(cut: Timed, repeats: Mapping[str, int]) -> Iterator[_Turn]:
    times = next((times for start, times in repeats.items() if cut.id.startswith(start)), 1)
    for number in range(times):
        name = f"{cut.id}\n{number}" if number else cut.id  # no name has a line break
        yield _Turn(name, cut.duration, cut.id, number, times)


def num_steps_per_epoch(cuts: Iterable[Timed], *, batch_s: float, world_size: int = 1) -> int:
    """Batches of one process in one epoch, the same for every epoch and process."""
    num_batches = sum(-(-len(ids) // size) for ids, size in _buckets(cuts, batch_s))
    return -(-num_batches // world_size)


def _buckets(cuts: Iterable[Timed], batch_s: float) -> list[tuple[list[str], int]]:
    """Utterances of like duration, and how many of them make a batch."""
    if batch_s <= 0:
        raise ValueError(f"batch_s must be positive, not {batch_s}")
    by_duration = sorted((cut.duration, cut.id) for cut in cuts)
    if not by_duration:
        raise ValueError("there are no utterances to make batches of")
    buckets: list[list[tuple[float, str]]] = []
    for duration_s, id in by_duration:
        if not buckets or duration_s > buckets[-1][0][0] * _BUCKET_RATIO:
            buckets.append([])
        buckets[-1].append((duration_s, id))
    return [([id for _, id in bucket], max(1, int(batch_s * _TOLERANCE / bucket[-1][0]))) for bucket in buckets]


def _divisible(batches: list[list[str]], world_size: int) -> list[list[str]]:
    """As many batches as every process can have the same number of: the fullest are halved until it is so."""
    batches = list(batches)
    while len(batches) % world_size:
        fullest = max(range(len(batches)), key=lambda index: len(batches[index]))
        half = len(batches[fullest]) // 2
        if half:
            batches.append(batches[fullest][half:])
            batches[fullest] = batches[fullest][:half]
        else:  # single utterances everywhere
            batches.append(batches[len(batches) % world_size - 1])
    return batches
