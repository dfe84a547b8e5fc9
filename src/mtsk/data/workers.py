"""A pool of processes that survives the death of one of them (a crash in a decoder, or the memory running out)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died(Generic[Item]):
    """The process that worked on this item died, also when it was tried alone."""

    item: Item


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[Result | Died[Item]]:
    """Yields `function(item)` for each item as they finish, in any order.

    When a process dies, every item in flight is tried again alone; one that kills its process again comes back as
    `Died`. An exception of `function` is raised here. `num_workers` of 0 works in this process.

    Raises:
        ValueError: if no process can be started at all.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    todo = list(reversed(items))
    while todo:
        suspects: list[Item] = []
        with _pool(num_workers) as pool:
            yield from _drain(pool, function, todo, suspects, 2 * num_workers)
        while suspects:
            dead: list[Item] = []
            with _pool(1) as pool:
                yield from _drain(pool, function, suspects, dead, 1)
            yield from map(Died, dead)


def _drain(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    todo: list[Item],
    suspects: list[Item],
    num_in_flight: int,
) -> Iterator[Result]:
    """Takes items from the end of `todo` until it is empty or the pool breaks; then the unfinished are `suspects`."""
    running: dict[Future[Result], Item] = {}
    try:
        while todo or running:
            while todo and len(running) < num_in_flight and not suspects:
                try:
                    running[pool.submit(function, todo[-1])] = todo[-1]
                except BrokenProcessPool:
                    break
                todo.pop()
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    suspects.append(item)
                else:
                    yield result
    finally:
        for future in running:
            future.cancel()


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Started afresh: forking a process that has threads (torch, a progress bar) may deadlock.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"{num_workers} worker processes asked for, but they end before they do anything (out of memory, or a "
            "script that lacks `if __name__ == '__main__':`); allowed is 0 too, which works without them"
        ) from error
    return pool


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
