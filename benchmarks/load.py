"""A server under more load than it can take: what it answers, how soon and how well, at a fixed scale and elastic.

    make benchmark-load
    python -m benchmarks.load -o docs/results/serving
    python -m benchmarks.load -o runs/load --elastic --steps 1:20 5:20 0.5:20 --capacity 4

Starts `mtsk serve`, measures how many clips a second it answers at its finest scale, then sends clips of GRID at
multiples of that, whether or not it keeps up. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load_client import Client, Step, arrivals
from benchmarks.load_figures import HARD, run_of, write_results
from benchmarks.load_plot import plot
from benchmarks.load_server import Served
from benchmarks.recordings import Utterance, data_folder, grid_clips

_ELASTIC = "mtsk"
_NUM_CLIPS = 100  # all of the test split
_NUM_CLIENTS = 4  # of the closed loop: two in the hands of the server's threads, two that wait
_WATCH_S = 1.0
_REST_S = 3.0  # before memory is read
_PACKAGES = ("mtsk", "torch", "uvicorn", "httpx")


@dataclass(frozen=True)
class Run:
    """A schedule for a fresh server.

    Attributes:
        name: `fixed-3x`; what is behind the dash says with which others it shares a picture.
        steps: of load.
        warm_up: steps before, which do not count; memory is compared between their end and that of the run.
    """

    name: str
    steps: tuple[Step, ...]
    warm_up: tuple[Step, ...]

    @property
    def is_fixed(self) -> bool:
        """At the finest scale."""
        return self.name.startswith("fixed")

    def scaled(self, factor: float) -> Run:
        """Shorter or longer."""

        def scale(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            return tuple(replace(step, duration_s=factor * step.duration_s) for step in steps)

        return Run(self.name, scale(self.steps), scale(self.warm_up))


_STAIRS = tuple(Step(multiple, 10.0) for multiple in (0.5, 1, 2, 3, 5, HARD, 0.5))
RUNS = (
    Run("fixed-3x", (Step(3, 60.0),), (Step(3, 5.0),)),
    Run("elastic-3x", (Step(3, 60.0),), (Step(3, 5.0),)),
    Run("elastic-10x", (Step(HARD, 40.0), Step(0.5, 30.0)), (Step(HARD, 15.0),)),
    Run("fixed-steps", _STAIRS, ()),
    Run("elastic-steps", _STAIRS, ()),
)


class Bench:
    """Measures servers with the same options, each in a process of its own.

    Args:
        options: of `mtsk serve`.
        clips: what is sent.
        work: folder for the servers' logs.
    """

    def __init__(self, options: Sequence[str], clips: Sequence[Utterance], work: Path) -> None:
        self._options, self._clips, self._work = options, clips, work

    def capacity(self, duration_s: float, scales: Sequence[str]) -> tuple[str, dict[str, float]]:
        """The model at its finest scale, and answers a second of it and of other scales."""
        with Served(self._options, self._work / "capacity.log") as server:
            finest = server.finest()
            rates = {}
            for model in dict.fromkeys([finest, *(f"{_ELASTIC}@{scale}" for scale in scales)]):
                client = Client(server.address, self._clips, model)
                rates[model] = asyncio.run(client.closed_loop(_NUM_CLIENTS, duration_s, warm_up_s=duration_s / 4))
                _say(f"capacity of {model}: {rates[model]:.2f} a second")
        return finest, rates

    def run(self, run: Run, model: str, capacity_per_s: float, *, seed: int | None) -> dict[str, Any]:
        """One schedule."""
        with Served(self._options, self._work / f"{run.name}.log") as server:
            client = Client(server.address, self._clips, model)
            first = run.warm_up or (Step(0.5, 2.0),)
            asyncio.run(client.open_loop(arrivals(first, capacity_per_s, seed)))
            time.sleep(_REST_S)
            memory, watch = {"before": server.resident_mib}, _Memory(server)
            begun_s, server_s, client_s = time.perf_counter(), server.processor_s, time.process_time()
            with watch:
                answers, watched = asyncio.run(client.open_loop(arrivals(run.steps, capacity_per_s, seed)))
            seconds = time.perf_counter() - begun_s
            cores = (server.processor_s - server_s) / seconds
            client_share = (time.process_time() - client_s) / seconds
            time.sleep(_REST_S)
            memory |= {"after": server.resident_mib, "peak": max(watch.each_second_mib, default=0.0)}
        told = {
            "model": model,
            "resident_mib": {**memory, "each_second": watch.each_second_mib},
            "server_cores": cores,
            "client_share": client_share,
        }
        return told | run_of(answers, watched, run.steps, self._clips)


class _Memory:
    """The memory of a server while something runs."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self.each_second_mib: list[int] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_WATCH_S):
            self.each_second_mib.append(round(self._server.resident_mib))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about() -> dict[str, Any]:
    """Hardware and versions."""
    hardware = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        hardware = names[0] if names else hardware
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return {
        "hardware": hardware, "num_cores": os.cpu_count(), "versions": f"Python {platform.python_version()}, {versions}"
    }  # fmt: skip


def draw(runs: Mapping[str, Mapping[str, Any]], folder: Path) -> list[str]:
    """A picture of the runs with the same schedule, fixed beside elastic; their names."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, run in runs.items():
        groups.setdefault(name.partition("-")[2], {})[name] = run
    for group, members in groups.items():
        plot(members, folder / f"{group}.png")
    return list(groups)


def chosen_runs(options: argparse.Namespace) -> list[Run]:
    """What the options ask for."""
    runs = list(RUNS)
    if options.steps:
        steps = tuple(Step(*map(float, text.split(":"))) for text in options.steps)
        runs = [Run(f"{mode}-own", steps, ()) for mode in ("fixed", "elastic")]
    if options.runs:
        runs = [run for run in runs if run.name in options.runs]
    if options.fixed != options.elastic:
        runs = [run for run in runs if run.is_fixed == options.fixed]
    return [run.scaled(options.scale_time) for run in runs]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes figures, tables and pictures."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for figures, tables and pictures")
    parser.add_argument("--fixed", action="store_true", help="only at the finest scale")
    parser.add_argument("--elastic", action="store_true", help="only with scales that follow the load")
    parser.add_argument("--runs", nargs="+", choices=[run.name for run in RUNS], help="default: all")
    parser.add_argument("--steps", nargs="+", metavar="MULTIPLE:SECONDS", help="own steps instead")
    parser.add_argument("--scale-time", type=float, default=1.0, help="0.1: a tenth of all times, to see that it runs")
    parser.add_argument("--capacity", type=float, help="answers a second; default: measured")
    parser.add_argument("--capacity-s", type=float, default=15.0, help="how long that is measured")
    parser.add_argument("--other-scales", nargs="*", default=["a4", "a16"], help="of which capacity is measured too")
    parser.add_argument("--even", action="store_true", help="arrivals at even distances; default: random (Poisson)")
    parser.add_argument("--default", default="best", help="what the elastic model starts from")
    parser.add_argument("--target-wait-s", default="0.5", help="of `mtsk serve`")
    parser.add_argument("--max-wait-s", default="1", help="of `mtsk serve`; an answer has to come within 2 s")
    parser.add_argument("--logs", type=Path, help="keep the servers' logs here; default: nowhere")
    parser.add_argument("--model", help="of `mtsk serve`; default: its default")
    options = parser.parse_args(arguments)
    serve = [*([options.model] if options.model else []), "--default", options.default]
    serve += ["--target-wait-s", options.target_wait_s, "--max-wait-s", options.max_wait_s]
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        logs = options.logs or Path(temporary)
        logs.mkdir(parents=True, exist_ok=True)
        measure(Bench(serve, grid_clips(data_folder() / "grid", _NUM_CLIPS), logs), serve, options)


def measure(bench: Bench, serve: Sequence[str], options: argparse.Namespace) -> None:
    """Measures the capacity, then each run; what is known is written after each."""
    duration_s = options.capacity_s * options.scale_time
    finest, rates = bench.capacity(duration_s, () if options.capacity else options.other_scales)
    capacity_per_s = options.capacity or rates[finest]
    results: dict[str, Any] = {
        "about": about(), "options": serve, "finest": finest, "capacity_per_s": rates | {finest: capacity_per_s},
        "arrivals": "even" if options.even else "Poisson", "runs": {},
    }  # fmt: skip
    for run in chosen_runs(options):
        seed = None if options.even else 0
        results["runs"][run.name] = told = bench.run(
            run, finest if run.is_fixed else _ELASTIC, capacity_per_s, seed=seed
        )
        for step in told["steps"]:
            _say(f"{run.name} {step}")
        results["client_share"] = max(each["client_share"] for each in results["runs"].values())
        results["plots"] = draw(results["runs"], options.output)
        write_results(options.output, results)


if __name__ == "__main__":
    main()
