"""`mtsk study` from end to end on tiny models: nothing is done twice, an interruption changes nothing, and what would
fail later is refused before any training."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from lhotse import CutSet
from safetensors.torch import load_file

from mtsk.checkpoints.store import save_model
from mtsk.commands import study as command
from mtsk.config import TrainConfig, to_dict
from mtsk.studies.plan import read_plan
from mtsk.training import trainer
from tests.tiny import save_tiny_bases, tiny_config, tiny_model
from tests.training.prepared import tiny_train_config, write_data, write_split, write_utterance

STUDY = """\
title: Tiny
data: {data}
recipe: recipe.json
snr_db: [clean, 0]
set:
  video_encoder: null
  lips_from: {lips}
  joint: {{scales_per_step: null}}
matrices:
  - name: AVSR
    scales: [a4v2, a16v5]
    methods: [MS, independent, training-free]
  - name: ASR
    scales: [a4, a6]
    snr_db: [clean]
    methods:
      - MS
      - {{name: blended, trained_at: [a4, a16], untrained: between}}
  - name: mixed
    scales: [a4, v2, a4v2]
    snr_db: [clean]
    methods: [SS]
"""
NUM_RUNS = 6
NUM_STEPS = 2


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    """accelerate keeps precision and devices for the life of the process; the study makes its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus, tiny base models, a recipe, a model whose lips are used, and the study."""
    home = tmp_path_factory.mktemp("study")
    data = write_data(home / "data")
    write_split(data, "test", [write_utterance(data, f"test_{i}") for i in range(2)])
    shutil.copy(data / "noise_train.jsonl.gz", data / "noise_test.jsonl.gz")
    sources = save_tiny_bases(home)
    save_model(tiny_model(sources=sources), home / "lips")
    config = tiny_train_config(tiny_config(sources=sources), num_steps=NUM_STEPS, cache_views=1)
    config = replace(config, video_encoder=replace(config.video_encoder, distill_weight=0.0))  # type: ignore[type-var]
    config = replace(config, save_every=1)
    (home / "recipe.json").write_text(json.dumps(to_dict(config)))
    (home / "study.yaml").write_text(STUDY.format(data=data, lips=home / "lips"))
    return home


def _run(home: Path, out_dir: Path, *, report: bool = False) -> dict[str, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    assert command.run(home / "study.yaml", None, out_dir, report) == 0
    results: dict[str, Any] = json.loads((out_dir / "results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was not interrupted."""
    out_dir = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "write_report", lambda *_: [])  # drawing six times takes long; `again` draws
        _run(home, out_dir)
    return out_dir


@dataclass(frozen=True)
class _Again:
    """What a second run of the study did."""

    results_before: bytes
    num_done: dict[str, int]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def again(home: Path, finished: Path) -> _Again:
    before = (finished / "results.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        homes = {"set_rates": trainer, "train_model": command, "evaluate": command, "write_report": command}
        calls = {name: _count(patch, owner, name) for name, owner in homes.items()}
        _run(home, finished)
    return _Again(before, {name: len(each) for name, each in calls.items()}, _files(finished))


def _count(patch: pytest.MonkeyPatch, owner: Any, name: str, stop_at: tuple[int, ...] = ()) -> list[int]:
    """Counts the calls of a function; those at `stop_at` end as by Ctrl-C."""
    calls, counter, function = [], itertools.count(), getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        number = next(counter)
        calls.append(number)
        if number in stop_at:
            raise KeyboardInterrupt
        return function(*args, **options)

    patch.setattr(owner, name, counted)
    return calls


def _without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {**results, "runs": [{**run, "train_s": 0.0} for run in results["runs"]]}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_everything_asked_for_is_measured_once(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    found = [(m["matrix"], m["method"], m["scale"], m["snr_db"]) for m in results["measured"]]
    assert len(found) == len(set(found))
    methods = ("MS", "independent", "training-free")
    wanted = {("AVSR", m, s, snr) for m in methods for s in ("a4v2", "a16v5") for snr in (None, 0.0)}
    wanted |= {("ASR", m, s, None) for m in ("MS", "blended") for s in ("a4", "a6")}
    wanted |= {("mixed", "SS", s, None) for s in ("a4", "v2", "a4v2")}
    assert {each for each in found if each[2] is not None} == wanted
    nothing = [each for each in found if each[2] is None]
    assert {each[:2] for each in nothing} == {each[:2] for each in wanted}
    assert all(each[3] is None for each in nothing)
    assert all(len(m["errors"]) == len(m["num_words"]) == 2 for m in results["measured"])
    assert [cost["scale"] for cost in results["costs"]] == ["a4", "a6", "v2", "a4v2", "a16v5"]


def test_equal_runs_are_trained_once_and_early_stages_are_shared(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    runs = [path for path in (finished / "runs").iterdir() if (path / "model").exists()]
    assert len(runs) == NUM_RUNS
    facts = {(r["matrix"], r["method"], *r["scales"]): r for r in results["runs"]}
    assert facts["AVSR", "training-free", "a4v2"]["train_s"] == facts["AVSR", "independent", "a4v2"]["train_s"]
    assert all(
        run["num_trainable"] > 0 and run["num_passes"] == NUM_STEPS * len(run["scales"]) for run in results["runs"]
    )
    starts = list((finished / "runs" / "starts").iterdir())
    assert len(starts) == NUM_RUNS  # no two of these have the same scales
    shared = {(start / "warm_start.safetensors").read_bytes() for start in starts}
    assert {(run / "stages" / "warm_start.safetensors").read_bytes() for run in runs} == shared


def test_the_lips_of_every_run_are_those_that_were_given(home: Path, finished: Path) -> None:
    given = load_file(home / "lips" / "model.safetensors")
    with_lips = [path for path in (finished / "runs").glob("*v2*/model/model.safetensors")]
    assert len(with_lips) >= 3
    for path in with_lips:
        tensors = {name: value for name, value in load_file(path).items() if name.startswith("video_encoder.")}
        assert tensors
        assert all(torch.equal(value, given[name]) for name, value in tensors.items())


def test_a_second_run_does_nothing_anew(again: _Again) -> None:
    assert again.num_done == {"set_rates": 0, "train_model": 0, "evaluate": 0, "write_report": 1}
    assert again.files["results.json"] == again.results_before


def test_the_report_is_made_from_the_results_alone(again: _Again, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(again.files["results.json"])
    assert command.run(tmp_path / "no-such-study.yaml", None, tmp_path, True) == 0
    assert _files(tmp_path) == again.files
    assert "tables.md" in again.files
    assert any(name.endswith((".png", ".svg")) for name in again.files)
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        command.run(tmp_path / "no-such-study.yaml", None, tmp_path / "empty", True)


def test_an_interrupted_study_ends_with_the_same_results(
    home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second run's warm start, between its steps of the joint stage, and while it is measured.

    From scratch too: so the same study twice gives the same results.
    """
    monkeypatch.setattr(command, "write_report", lambda *_: [])
    steps = _count(monkeypatch, trainer, "set_rates", stop_at=(5, 9))
    _count(monkeypatch, command, "evaluate", stop_at=(3,))
    num_interruptions = 0
    while True:
        try:
            results = _run(home, tmp_path / "out")
            break
        except KeyboardInterrupt:
            num_interruptions += 1
            if num_interruptions == 2:  # the interrupted run counts only when it is complete
                so_far = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
                assert all(run["num_trainable"] > 0 for run in so_far["runs"])
    assert num_interruptions == 3
    assert len(steps) == NUM_RUNS * 2 * NUM_STEPS + 2, "a step that was saved was trained again"
    expected = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert _without_times(results) == _without_times(expected)


# Refusals, before any training.


@pytest.mark.parametrize("split", ["train", "test"])
def test_runs_of_another_corpus_are_not_taken_for_those_of_this_one(
    home: Path, finished: Path, tmp_path: Path, split: str
) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    path = tmp_path / "data" / f"cuts_{split}.jsonl.gz"
    CutSet(list(CutSet.from_file(path))[:-1]).to_file(path)
    before = _files(finished)
    with pytest.raises(ValueError, match=rf"study\.yaml:2: .*runs on another cuts_{split}"):
        command.run(home / "study.yaml", tmp_path / "data", finished, False)
    assert _files(finished) == before


def _no_noise(home: Path) -> None:
    (home / "data" / "noise_test.jsonl.gz").unlink()


def _no_lips(home: Path) -> None:
    data = home / "data"
    write_split(data, "test", [write_utterance(data, "test_5", lips=False)])


def _mute_training(home: Path) -> None:
    path = home / "data" / "cuts_train.jsonl.gz"
    mute = [cut.with_custom("has_audio", False) for cut in CutSet.from_file(path)]
    CutSet(mute).to_file(path)


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def edit(home: Path) -> None:
        text = (home / "study.yaml").read_text()
        assert old in text
        (home / "study.yaml").write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (lambda home: shutil.rmtree(home / "data"), 2, "no such folder.*mtsk prepare"),
        (lambda home: (home / "data" / "cuts_dev.jsonl.gz").unlink(), 2, "no split 'dev'"),
        (_edit("recipe.json", "recipe.json\nsplit: test2"), 4, "no split 'test2'"),
        (_no_noise, 4, r"no noise_test\.jsonl\.gz"),
        (_edit("[a4, a6]", "[a4, a60]"), 14, r"rate a60 leaves no token.*split test.*the longest has 0\.79 s"),
        (_edit("[a4, v2, a4v2]", "[a4, v30, a4v2]"), 20, "rate v30 leaves no token"),
        (_no_lips, 11, "rate v2 leaves no token of any utterance of the split test: none has any"),
        (_mute_training, 11, "rate a4 leaves no token of any utterance of the split train: none has any"),
        (lambda home: shutil.rmtree(home / "lips"), 10, "no model '.*lips'"),
        (lambda home: (home / "lips" / "config.json").unlink(), 10, "is no checkpoint"),
    ],
)
def test_what_would_fail_later_is_refused_with_its_line(
    home: Path, tmp_path: Path, change: Callable[[Path], None], line: int, said: str
) -> None:
    own = tmp_path / "home"
    shutil.copytree(home, own)
    text = (own / "study.yaml").read_text().replace(f"{home}/", f"{own}/")
    (own / "study.yaml").write_text(text)
    change(own)
    with pytest.raises(ValueError, match=rf"study\.yaml:{line}: .*{said}"):
        command.run(own / "study.yaml", None, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_the_recipe_of_these_tests_is_whole(home: Path) -> None:
    """Else the refusals above might be of something else."""
    plan = read_plan(home / "study.yaml")
    assert len(plan.runs) == NUM_RUNS
    assert all(isinstance(run.config, TrainConfig) and run.config.cache_views == 1 for run in plan.runs)
