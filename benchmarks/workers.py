"""Systems in processes of their own, on the same cores, asked in turn."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.systems import System


@dataclass(frozen=True)
class Run:
    """What one call gave, and what it took."""

    texts: list[str]
    seconds: float
    stages: dict[str, float]


class Worker:
    """A fresh process with one system, from loading to the end.

    Args:
        build: makes the system, given the number of threads; can be pickled.
        threads: of the system, and the cores that the process may use.
    """

    def __init__(self, build: Callable[[int], System], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.load_s: float = self._receive()

    def run(self, setting: str, paths: Sequence[Path]) -> Run:
        """Transcribes files, several of them as one batch.

        Raises:
            RuntimeError: if the system did.
        """
        self._connection.send((setting, list(paths)))
        run: Run = self._receive()
        return run

    def peak_mib(self) -> float:
        """The most memory that the process has had in use so far."""
        self._connection.send(None)
        peak: float = self._receive()
        return peak

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("a system's process ended; what it said stands above") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"a system failed: {answer}") from answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()


def _serve(connection: Connection, build: Callable[[int], System], threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    started_s = time.perf_counter()
    try:
        system = build(threads)
        connection.send(time.perf_counter() - started_s)
        while True:
            try:
                request = connection.recv()
            except EOFError:
                return
            connection.send(peak_rss_mib() if request is None else _run(system, *request))
    except Exception as error:  # told to the process that asked
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _run(system: System, setting: str, paths: Sequence[Path]) -> Run:
    system.watch.lap()
    started_s = time.perf_counter()
    texts = system.transcribe(setting, paths)
    run = Run(texts, time.perf_counter() - started_s, system.watch.lap())
    time.sleep(system.settle_s)
    return run


def peak_rss_mib() -> float:
    """The most memory of this process that was ever resident."""
    status = Path("/proc/self/status")
    if status.exists():  # the resource module counts what the process was before it became this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
