"""`mtsk study`: trains what is missing, measures it, and writes the comparison."""

from __future__ import annotations

import functools
import gc
import gzip
import hashlib
import json
import operator
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from lhotse import CutSet
from rich.console import Console

import mtsk
from mtsk.checkpoints.shapes import load_cost_model
from mtsk.checkpoints.store import read_record
from mtsk.commands.evaluate import batches_at
from mtsk.commands.train import train_model
from mtsk.config import ModelConfig, from_dict, to_dict
from mtsk.data.dataset import load_cuts
from mtsk.data.noise import Babble
from mtsk.device import best_device, has_bf16
from mtsk.evaluation.grid import NO_INPUT, evaluate
from mtsk.evaluation.wer import word_errors
from mtsk.files import write_whole
from mtsk.scale import AUDIO_FEATURE_RATE_HZ, VIDEO_FEATURE_RATE_HZ, Scale
from mtsk.studies.plan import Cell, Plan, Run, read_plan
from mtsk.studies.report import write_report
from mtsk.studies.results import Cost, Measured, Results, RunFacts, load_results, save_results
from mtsk.training.draws import scales_of_step
from mtsk.training.run import TrainingData, make_accelerator, start_run
from mtsk.training.trainer import Run as RunState
from mtsk.training.word_times import has_sound

RESULTS_FILE = "results.json"

T = TypeVar("T")


def run(study_file: Path, data_dir: Path | None, out_dir: Path, report: bool) -> int:
    """Runs a study, or only writes its tables and figures again.

    Raises:
        ValueError: before any training, naming file and line, if the study is wrong or its corpus is missing.
    """
    if report:
        _report(load_results(out_dir / RESULTS_FILE), out_dir)
        return 0
    plan = read_plan(study_file)
    folder = Path(plan.study.data) if data_dir is None else data_dir
    if not folder.is_dir():
        raise plan.file.error(f"no such folder: {folder}; `mtsk prepare` makes one, and --data may name it", "data")
    runner = _Runner.prepare(plan, folder, out_dir)
    for number, each in enumerate(plan.runs, start=1):
        runner.say(f"run {number} of {len(plan.runs)}: {each.name}")
        trained = runner.train(each)
        if runner.accelerator.is_main_process and (runner.measure(each) or trained or number == len(plan.runs)):
            save_results(runner.results(), out_dir / RESULTS_FILE)
            _report(load_results(out_dir / RESULTS_FILE), out_dir)
        runner.accelerator.wait_for_everyone()
    return 0


def _report(results: Results, out_dir: Path) -> None:
    for path in write_report(results, out_dir):
        print(f"wrote {path}")


@dataclass(frozen=True)
class _Reading:
    """What was measured of a run at a scale and noise level."""

    scale: Scale | None
    snr_db: float | None
    errors: tuple[int, ...]
    num_words: tuple[int, ...]


@dataclass(frozen=True)
class _Readings:
    readings: tuple[_Reading, ...]


@dataclass(frozen=True)
class _Facts:
    """What a run took; the time may be of several sittings."""

    num_trainable: int
    train_s: float


@dataclass(frozen=True)
class _Runner:
    """A study under way: `OUT/runs/NAME` for each run, `OUT/runs/starts` for stages that runs share."""

    plan: Plan
    data: TrainingData
    data_dir: Path
    cuts: CutSet
    babble: Babble | None
    out_dir: Path
    accelerator: Accelerator

    @classmethod
    def prepare(cls, plan: Plan, data_dir: Path, out_dir: Path) -> _Runner:
        """Reads the corpus and checks that it has what the study asks for."""
        with plan.file.located("data"):
            data = TrainingData.load(data_dir)
        with plan.file.located("split"):
            cuts = load_cuts(data_dir, plan.study.split)
        babble = None
        if any(snr_db is not None for cell in plan.cells for snr_db in cell.snrs_db):
            with plan.file.located("snr_db"):
                babble = Babble.load(data_dir, "test")
        _require_tokens(plan, "train", data.train)
        _require_tokens(plan, plan.study.split, cuts)
        for cell in plan.cells:
            if cell.run.config.lips_from is not None:
                with plan.file.located(*cell.place):
                    read_record(mtsk.model_folder(cell.run.config.lips_from))
        lists = [f"cuts_{split}.jsonl.gz" for split in ("train", plan.study.split)]
        lists += ["noise_train.jsonl.gz", *(["noise_test.jsonl.gz"] if babble else []), "noise.json"]
        digests = {name: _digest(data_dir / name) for name in lists if (data_dir / name).exists()}
        with plan.file.located("data"):
            _require_same_data(out_dir / "runs" / "data.json", digests)
        return cls(plan, data, data_dir, cuts, babble, out_dir, make_accelerator())

    def say(self, line: str) -> None:
        """Once, however many processes there are."""
        self.accelerator.print(line, flush=True)

    def train(self, run: Run) -> bool:
        """Trains a run, unless its model is there; resumes where it was interrupted. Returns whether it trained."""
        folder = self._folder(run)
        if (folder / "model" / "config.json").exists():
            return False
        shared = self.out_dir / "runs" / "starts" / run.start
        state = RunState(
            folder,
            self.accelerator,
            run.config.seed,
            run.config.save_every,
            features_dir=self.out_dir / "runs" / "features",
        )
        if self.accelerator.is_main_process:
            start_run(run.config, folder, resume=True)
            _copy_missing(shared, folder / "stages")
        self.accelerator.wait_for_everyone()
        started_s = time.perf_counter()
        num_trainable = 0
        try:
            model = train_model(run.config, self.plan.study.title, self.data, state, lambda _: {})
            counts = model.num_trained()
            if run.config.lips_from is not None:
                del counts["video_encoder"]
            num_trainable = sum(counts.values())
        finally:
            if self.accelerator.is_main_process:
                before_s = _read(folder / "facts.json", _Facts).train_s if (folder / "facts.json").exists() else 0.0
                write_whole(
                    folder / "facts.json",
                    json.dumps(to_dict(_Facts(num_trainable, before_s + time.perf_counter() - started_s))) + "\n",
                )
        if self.accelerator.is_main_process:
            stages = [path for path in (folder / "stages").iterdir() if path.stem != "joint"]
            for path in stages:
                _copy(path, shared / path.name)
        del model
        gc.collect()
        return True

    def measure(self, run: Run) -> bool:
        """Measures what the cells ask of a run, unless it is there. Returns whether it measured anything."""
        todo = [cell for cell in self.plan.cells if cell.run.name == run.name and not self._measured(cell).exists()]
        if not todo:
            return False
        engine = mtsk.load(self._folder(run) / "model")
        for cell in todo:
            engine.model.untrained = cell.untrained
            path = self._measured(cell)
            rows = evaluate(
                engine,
                functools.partial(batches_at, self.cuts, self.babble, self.plan.study.batch),
                cell.scales,
                cell.snrs_db,
                out_dir=path.with_suffix(""),
                console=Console(stderr=True),
            )
            readings = []
            for row in rows:
                errors = [word_errors(each.reference, each.text) for each in row.hypotheses]
                counts = tuple(each.total for each in errors), tuple(each.words for each in errors)
                if row.name != NO_INPUT or row.snr_db == cell.snrs_db[0]:
                    readings.append(_Reading(row.scale, row.snr_db, *counts))
            write_whole(path, json.dumps(to_dict(_Readings(tuple(readings)))) + "\n")
        return True

    def results(self) -> Results:
        """All that was found so far."""
        measured: dict[str, Measured] = {}
        facts = []
        for cell in self.plan.cells:
            labels = cell.matrix, cell.method, cell.compression, cell.seed
            if all((self._folder(cell.run) / name).exists() for name in ("facts.json", "model/config.json")):
                each = _read(self._folder(cell.run) / "facts.json", _Facts)
                joint, grid = cell.run.config.joint, cell.run.config.model.grid
                num_passes = joint.optim.num_steps * len(scales_of_step(joint, grid, seed=0, step=0))
                facts.append(RunFacts(*labels, grid.scales, each.num_trainable, num_passes, each.train_s))
            if self._measured(cell).exists():
                for reading in _read(self._measured(cell), _Readings).readings:
                    found = Measured(*labels, reading.scale, reading.snr_db, reading.errors, reading.num_words)
                    measured.setdefault(found.place, found)  # without input: of the method's first model
        return Results(
            self.plan.study.title, self._setting(), tuple(measured.values()), tuple(self._costs()), tuple(facts)
        )

    def _costs(self) -> Iterator[Cost]:
        """For the mean utterance, at every scale of the study, with an average-pooling model of all of them."""
        mean_s = statistics.fmean(cut.duration for cut in self.cuts)
        models: dict[Scale, ModelConfig] = {}
        for cell in self.plan.cells:
            for scale in cell.scales:
                models.setdefault(scale, cell.run.config.model)
        for scale, model in sorted(models.items(), key=operator.itemgetter(0)):
            cost = load_cost_model(_at(model, scale)).cost(scale, mean_s)
            llm = cost.llm_flops
            yield Cost(scale, cost.stages["prefill"].num_tokens, llm / 1e12, cost.total_flops / 1e12)

    def _setting(self) -> dict[str, str]:
        device = best_device()
        return {
            "hardware": f"{_processor()}, {os.cpu_count()} cores" if device.type == "cpu" else str(device),
            "precision": "bfloat16" if has_bf16(device) else "float32",
            "data": f"{self.data_dir.name}: {len(self.data.train)} utterances to train, {len(self.cuts)} to test",
            "evaluation batch": f"{self.plan.study.batch} utterances",
            "versions": ", ".join(f"{name} {version(name)}" for name in ("mtsk", "torch", "transformers")),
        }

    def _folder(self, run: Run) -> Path:
        return self.out_dir / "runs" / run.name

    def _measured(self, cell: Cell) -> Path:
        return self._folder(cell.run) / f"measured-{cell.key(self.plan.study.split)}.json"


def _digest(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:16]


def _require_same_data(path: Path, digests: dict[str, str]) -> None:
    """Refuses a folder whose runs are of another corpus: they would be taken for runs of this one."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, digest in digests.items():
        if known.get(name, digest) != digest:
            problem = f"{path.parent} holds runs on another {name} than that of this corpus"
            raise ValueError(f"{problem}; delete it, or choose another folder")
    if known != {**known, **digests}:
        write_whole(path, json.dumps({**known, **digests}) + "\n")


def _require_tokens(plan: Plan, split: str, cuts: CutSet) -> None:
    """Refuses rates that leave no token of any utterance, in training or in evaluation."""
    sound_s = max((cut.duration for cut in cuts if has_sound(cut)), default=0.0)
    lips_s = max((cut.duration for cut in cuts if cut.has_custom("mouth")), default=0.0)
    features = {"num_audio_features": int(sound_s * AUDIO_FEATURE_RATE_HZ)}
    features["num_video_features"] = int(lips_s * VIDEO_FEATURE_RATE_HZ)
    for cell in plan.cells:
        for part in sorted({part for scale in cell.scales for part in scale.parts}):
            if part.num_tokens(**features) == 0:
                longest_s = sound_s if part.video is None else lips_s
                what = f"the longest has {longest_s:.2f} s of it" if longest_s else "none has any"
                problem = f"rate {part} leaves no token of any utterance of the split {split}: {what}"
                raise plan.file.error(problem, *cell.place, "scales")


def _at(config: ModelConfig, scale: Scale) -> ModelConfig:
    """The same model for a single scale, whichever it was trained at."""
    return from_dict(ModelConfig, {**to_dict(config), "scales": [str(scale)], "compression": "average"})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _copy_missing(source: Path, target: Path) -> None:
    for path in source.glob("*.safetensors"):
        if not (target / path.name).exists():
            _copy(path, target / path.name)


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def _read(path: Path, wanted: type[T]) -> T:
    return from_dict(wanted, json.loads(path.read_text(encoding="utf-8")))
