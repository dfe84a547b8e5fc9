"""How fast mtsk is and how much memory it takes, beside faster-whisper and openai-whisper: by stage, at every scale.

    make bench
    python -m benchmarks.speed -o docs/results/speed

Three parts: clips of GRID, a recording of ten minutes, one of an hour. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.recordings import (
    Silence,
    Utterance,
    data_folder,
    grid_clips,
    librispeech,
    plan,
    text_of,
    write_recording,
)
from benchmarks.speed_tables import PARTS, write_report
from benchmarks.systems import BATCHED, FasterWhisper, Mtsk, OpenaiWhisper, System, convert_whisper
from benchmarks.workers import Run, Worker

import mtsk

MTSK, MTSK_INT8, FASTER, OPENAI = "mtsk", "mtsk int8", "faster-whisper int8", "openai-whisper"
BATCH = 8
_PACKAGES = ("mtsk", "torch", "transformers", "faster-whisper", "ctranslate2", "openai-whisper", "onnxruntime", "av")


@dataclass(frozen=True)
class Settings:
    """How much is measured. The first of some rounds is discarded, beside those given here."""

    threads: int = 2
    clip_rounds: int = 10
    batch_rounds: int = 3
    long_rounds: int = 2
    ten_minutes_s: float = 600.0
    hour_s: float = 3600.0
    silences: tuple[Silence, ...] = (Silence(0.25, 120.0), Silence(0.6, 180.0))


QUICK = Settings(
    clip_rounds=1, batch_rounds=1, long_rounds=1, ten_minutes_s=60.0, hour_s=120.0, silences=(Silence(0.3, 25.0),)
)


@dataclass
class Row:
    """One system at one setting: seconds of each round, and what it wrote in all of them."""

    system: str
    setting: str
    batch: int
    audio_s: float
    seconds: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    def add(self, run: Run, utterances: Sequence[Utterance]) -> None:
        """Takes what one round gave."""
        self.seconds.append(run.seconds)
        self.stages.append(run.stages)
        self.texts += run.texts
        self.references += [utterance.text for utterance in utterances]

    def plain(self) -> dict[str, Any]:
        """For JSON; of the texts only the error rate."""
        from mtsk.evaluation.peers import spoken_form
        from mtsk.evaluation.wer import corpus_rate

        rate = corpus_rate(self.references, [spoken_form(text) for text in self.texts])
        plain = asdict(self)
        del plain["texts"], plain["references"]
        return {**plain, "wer": rate.value, "example": self.texts[0][:200]}


def measure(
    workers: Mapping[str, Worker], rows: Sequence[Row], rounds: Sequence[Sequence[Utterance]], *, discard: int = 1
) -> None:
    """Runs all rows in every round, forwards and backwards in turn, so that all see the same noise.

    Args:
        rounds: what is transcribed in each, as one batch.
        discard: so many of the first rounds do not count.
    """
    for index, utterances in enumerate(rounds):
        print(f"  round {index + 1} of {len(rounds)}", file=sys.stderr, flush=True)
        for row in rows if index % 2 else rows[::-1]:
            run = workers[row.system].run(row.setting, [utterance.path for utterance in utterances])
            if index >= discard:
                row.add(run, utterances)


class Bench:
    """The parts of the benchmark.

    Args:
        settings: how much is measured.
        work: folder for recordings and the converted weights.
    """

    def __init__(self, settings: Settings, work: Path) -> None:
        from mtsk.checkpoints.sources import resolve

        self.settings = settings
        self._work = work
        self._data = data_folder()
        self._about = about()
        converted = work / "faster-whisper-base"
        if not (converted / "model.bin").exists():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(convert_whisper, ("whisper-base", converted))
        self._peers: dict[str, Callable[[int], System]] = {
            FASTER: functools.partial(FasterWhisper, folder=converted),
            OPENAI: functools.partial(OpenaiWhisper, folder=resolve("whisper-base")),
        }

    def clips(self) -> dict[str, Any]:
        """Clips of 3 s, one by one and in batches."""
        scales = _scales("grid-s1")
        num_clips = max(BATCH, self.settings.clip_rounds + 1)
        clips = grid_clips(self._data / "grid", num_clips)
        audio_s = clips[0].duration_s
        ours = [(system, scale) for system in (MTSK, MTSK_INT8) for scale in scales]
        peers = [(FASTER, "greedy"), (FASTER, "default"), (OPENAI, "greedy")]
        rows = [Row(system, setting, 1, audio_s) for system, setting in ours + peers]
        batched = [(MTSK, scale) for scale in scales] + [(FASTER, f"{BATCHED}greedy"), (OPENAI, "greedy")]
        batch_rows = [Row(system, setting, BATCH, BATCH * audio_s) for system, setting in batched]
        with ExitStack() as stack:
            workers = self._start(stack, self._mtsk("grid-s1", int8=True) | self._peers)
            measure(workers, rows, [[clip] for clip in clips[: self.settings.clip_rounds + 1]])
            peaks = {name: worker.peak_mib() for name, worker in workers.items()}
            measure(workers, batch_rows, [clips[:BATCH]] * (self.settings.batch_rounds + 1))
            return self._result([*rows, *batch_rows], workers, peaks, model="grid-s1")

    def ten_minutes(self) -> dict[str, Any]:
        """A recording of ten minutes; a round before the first one, which is discarded, is of its first minute."""
        model = _english()
        scales = _scales(model, sound_alone=True)
        ours = [*((MTSK, scale) for scale in dict.fromkeys((scales[0], scales[-1]))), (MTSK_INT8, scales[0])]
        peers = [(FASTER, f"{BATCHED}greedy"), (FASTER, "greedy"), (OPENAI, "greedy")]
        recording = self._recording("ten-minutes", self.settings.ten_minutes_s)
        first = self._recording("warm-up", min(60.0, self.settings.ten_minutes_s))
        rows = [Row(system, setting, BATCH, recording.duration_s) for system, setting in ours + peers]
        once = [row for row in rows if row.setting == "greedy"]  # one stretch after the other: slow
        for row in once:
            row.batch = 1
        with ExitStack() as stack:
            workers = self._start(stack, self._mtsk(model, int8=True) | self._peers)
            measure(workers, rows, [[first], [recording]])
            rest = [row for row in rows if row not in once]
            measure(workers, rest, [[recording]] * (self.settings.long_rounds - 1), discard=0)
            return self._result(rows, workers, model=model)

    def hour(self) -> dict[str, Any]:
        """A recording of an hour with long silences, once, at the finest scale for sound."""
        model = _english()
        recording = self._recording("hour", self.settings.hour_s, self.settings.silences)
        rows = [Row(MTSK, _scales(model, sound_alone=True)[0], BATCH, recording.duration_s)]
        with ExitStack() as stack:
            workers = self._start(stack, self._mtsk(model))
            measure(workers, rows, [[recording]], discard=0)
            return self._result(rows, workers, model=model)

    def _mtsk(self, model: str, *, int8: bool = False) -> dict[str, Callable[[int], System]]:
        precisions = {MTSK: "auto"} | ({MTSK_INT8: "int8"} if int8 else {})
        return {name: functools.partial(Mtsk, model=model, precision=each) for name, each in precisions.items()}

    def _start(self, stack: ExitStack, systems: Mapping[str, Callable[[int], System]]) -> dict[str, Worker]:
        """Fresh processes, loaded one after the other."""
        threads = self.settings.threads
        return {name: stack.enter_context(Worker(build, threads)) for name, build in systems.items()}

    def _recording(self, name: str, duration_s: float, silences: Sequence[Silence] = ()) -> Utterance:
        parts = plan(librispeech(self._data / "librispeech"), duration_s, silences)
        path = self._work / f"{name}.flac"
        write_recording(path, parts)
        return Utterance(path, duration_s, text_of(parts))

    def _result(
        self,
        rows: Sequence[Row],
        workers: Mapping[str, Worker],
        peaks: Mapping[str, float] | None = None,
        *,
        model: str,
    ) -> dict[str, Any]:
        peaks = peaks or {name: worker.peak_mib() for name, worker in workers.items()}
        return {
            "model": model,
            "settings": asdict(self.settings),
            "about": self._about,
            "systems": {name: {"load_s": worker.load_s, "peak_mib": peaks[name]} for name, worker in workers.items()},
            "rows": [row.plain() for row in rows],
        }


def _english() -> str:
    """The model for recordings of plain English; without one GRID's, whose texts say nothing but whose speed does."""
    try:
        mtsk.model_folder("english")
    except ValueError:
        return "grid-s1"
    return "english"


def _scales(model: str, *, sound_alone: bool = False) -> list[str]:
    """Names of a model's scales, the finest first."""
    from mtsk.checkpoints.store import read_record

    grid = read_record(mtsk.model_folder(model)).model.scales
    return [str(scale) for scale in sorted(grid) if not sound_alone or scale.video is None]


def about() -> dict[str, Any]:
    """Hardware and versions.

    Raises:
        ValueError: if a peer is not installed.
    """
    hardware = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        hardware = names[0] if names else hardware
    try:
        versions = {package: version(package) for package in _PACKAGES}
    except PackageNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; `make bench` installs the peers") from error
    return {"hardware": hardware, "python": platform.python_version(), "versions": versions}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes figures and tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures and tables")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all; the others' are kept")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs")
    parser.add_argument("--work", type=Path, help="keep recordings and converted weights here; default: nowhere")
    options = parser.parse_args(arguments)
    # Before any system starts: threads that spin long while they wait crawl beside another busy program.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(QUICK if options.quick else Settings(), work)
        options.output.mkdir(parents=True, exist_ok=True)
        measures = {"clips": bench.clips, "ten-minutes": bench.ten_minutes, "hour": bench.hour}
        for part in options.parts:
            print(part, file=sys.stderr, flush=True)
            text = json.dumps(measures[part](), indent=1)
            (options.output / f"{part}.json").write_text(text + "\n", encoding="utf-8")
    print(write_report(options.output))


if __name__ == "__main__":
    main()
