"""The queue: mixed batches, order, degrading before refusing, and cancelling."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from mtsk.checkpoints.sources import face_models
from mtsk.inference.engine import Engine
from mtsk.media import MouthTracker
from mtsk.scale import Scale
from mtsk.serving.batcher import Batcher, BatchRules
from mtsk.serving.errors import ApiError
from mtsk.serving.jobs import Done, Event, Job
from mtsk.serving.load import LoadRules
from mtsk.serving.metrics import Metrics
from mtsk.serving.plans import Found, Planner, Wish
from mtsk.serving.predict import Predictor
from mtsk.serving.reading import FileLimits, Trackers
from mtsk.types import Segment, Transcript
from tests.commands.conftest import write_sound
from tests.serving.conftest import WAIT_S, tiny_engine

CALM = LoadRules(target_s=1e6, limit_s=1e6)
SECOND = Found(1.0, True, False)


class Bench:
    """A batcher whose model thread begins when the test says so."""

    def __init__(self, folder: Path, load: LoadRules = CALM, rules: BatchRules | None = None) -> None:
        self.engine = tiny_engine()
        self.predictor, self.metrics = Predictor(self.engine), Metrics()
        self.planner = Planner(self.engine, self.predictor)
        trackers = Trackers(lambda: MouthTracker(face_models))
        limits = FileLimits(3600.0, 4096)
        rules = rules or BatchRules(max_batch_s=1e6)
        self.batcher = Batcher(self.engine, self.predictor, trackers, limits, rules, load, self.metrics)
        self._folder = folder
        self._num = 0

    def admit(self, path: Path, wish: Wish, found: Found = SECOND) -> tuple[Job, Queue[Event]]:
        events: Queue[Event] = Queue()
        copy = self._folder / str(self._num)
        self._num += 1
        shutil.copy(path, copy)
        return self.batcher.admit(self.planner.plans(wish, found), copy, found.duration_s, events.put), events

    def until_waiting(self, num_units: int) -> None:
        until(lambda: len(self.batcher._desk.units) >= num_units)

    def sample(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"mtsk_{name}") or 0.0


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def result(events: Queue[Event]) -> Transcript:
    while isinstance(event := events.get(timeout=WAIT_S), Segment):
        pass
    assert isinstance(event, Done), event
    assert event.transcript is not None
    return event.transcript


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of uploads; all have to be gone in the end."""
    (tmp_path / "uploads").mkdir()
    yield tmp_path / "uploads"
    assert list((tmp_path / "uploads").iterdir()) == []


def test_scales_are_mixed_in_a_batch(folder: Path, tmp_path: Path, engine: Engine) -> None:
    bench = Bench(folder)
    wishes = [Wish(Scale(4), may_degrade=False), Wish(Scale(16), may_degrade=False), Wish("auto")] * 2
    paths = [write_sound(tmp_path / f"{i}.wav", 0.6 + 0.3 * i) for i in range(len(wishes))]
    running = [bench.admit(path, wish) for path, wish in zip(paths, wishes, strict=True)]
    bench.until_waiting(len(wishes))
    bench.batcher.start()
    for path, wish, (_, events) in zip(paths, wishes, running, strict=True):
        if isinstance(wish.start, Scale):
            expected = engine.transcribe(path, wish.start)
        else:
            expected = engine.transcribe(path, policy="auto")
        found = result(events)
        assert (found.text, found.scale) == (expected.text, expected.scale)
    assert (bench.sample("batch_segments_count"), bench.sample("batch_segments_sum")) == (1, 6)
    bench.batcher.stop()


def test_segments_come_in_order_and_short_files_pass_long_ones(
    folder: Path, sound: Path, long_sound: Path, engine: Engine
) -> None:
    bench = Bench(folder, rules=BatchRules(max_batch=1))
    for scale in engine.grid:  # so slow that arrival hardly counts
        bench.predictor.corrections.set(str(scale), 1e6)
    wish = Wish(Scale(4), may_degrade=False)
    order: list[str] = []
    _, long_events = bench.admit(long_sound, wish, Found(50.0, True, False))
    bench.until_waiting(3)
    short_events = [bench.admit(sound, wish)[1] for _ in range(3)]
    bench.until_waiting(6)
    tell = {"long": long_events, **{f"short{i}": events for i, events in enumerate(short_events)}}
    for name, events in tell.items():

        def note(event: Event, name: str = name, put: Callable[[Event], None] = events.put) -> None:
            order.append(name)
            put(event)

        next(job for job in bench.batcher._desk.jobs if job.tell == events.put).tell = note
    bench.batcher.start()
    expected = engine.transcribe(long_sound, "a4")
    assert result(long_events).text == expected.text
    assert [result(events).text for events in short_events] == [engine.transcribe(sound, "a4").text] * 3
    assert order[0] == "long"
    assert order[1:7] == [f"short{i}" for i in range(3) for _ in range(2)]  # its segment, its end
    assert order[7:] == ["long"] * len(expected.segments)
    bench.batcher.stop()


def test_coarser_first_and_refused_last(folder: Path, sound: Path) -> None:
    bench = Bench(folder, LoadRules(target_s=1.0, limit_s=3.0, step_s=0.0))
    for kind, seconds in (("a4", 1.0), ("a16", 0.4)):
        plan = bench.predictor.reading(Scale.parse(kind), 1.0)
        bench.predictor.corrections.set(kind, seconds / plan.seconds)
    bench.predictor.corrections.set("sound", 1e-6)
    # Both ways, though they cost a tiny model the same.
    plans = [bench.planner.at(Scale(rate), SECOND) for rate in (4, 16)]
    ways: list[int | str] = []
    jobs = []
    for i in range(8):
        path = folder / f"more{i}"
        shutil.copy(sound, path)
        try:
            jobs.append(bench.batcher.admit(plans, path, 1.0, Queue[Event]().put))
            ways.append(jobs[-1].num_steps)
        except ApiError as error:
            path.unlink()
            ways.append(f"{error.status} {error.headers['retry-after']}")
    assert ways == [0, 0, 1, 1, *["429 3"] * 4]
    assert bench.sample("degradations_total") == 2
    assert bench.metrics.registry.get_sample_value("mtsk_rejections_total", {"reason": "overload"}) == 4
    bench.batcher.start()
    until(lambda: bench.batcher.num_jobs == 0)
    bench.batcher.stop()


def test_what_is_asked_for_is_kept_under_load(folder: Path, sound: Path) -> None:
    bench = Bench(folder, LoadRules(target_s=0.5, limit_s=100.0, step_s=0.0))
    for scale in bench.engine.grid:
        bench.predictor.corrections.set(str(scale), 1000.0)
    fixed = [bench.admit(sound, Wish(Scale(4), may_degrade=False)) for _ in range(5)]
    assert [job.plan.name for job, _ in fixed] == ["a4"] * 5
    bench.batcher.start()
    assert {result(events).scale for _, events in fixed} == {Scale(4)}
    bench.batcher.stop()


def test_cancelled_before_and_while_it_is_read(folder: Path, long_sound: Path, sound: Path) -> None:
    bench = Bench(folder)
    wish = Wish(Scale(4), may_degrade=False)
    early, _ = bench.admit(long_sound, wish, Found(50.0, True, False))
    bench.batcher.cancel(early)
    later, _ = bench.admit(long_sound, wish, Found(50.0, True, False))
    bench.until_waiting(2)
    bench.batcher.cancel(later)
    bench.batcher.cancel(later)
    assert bench.batcher._desk.units == []
    assert bench.batcher.num_jobs == 0
    bench.batcher.start()
    assert result(bench.admit(sound, wish)[1]).scale == Scale(4)
    bench.batcher.stop()


def test_one_bad_part_does_not_harm_its_neighbours(
    folder: Path, sound: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(folder)
    wish = Wish(Scale(4), may_degrade=False)
    running = [bench.admit(sound, wish) for _ in range(3)]
    bench.until_waiting(3)
    bad = next(unit for unit in bench.batcher._desk.units if unit.job is running[1][0])
    monkeypatch.setattr(bad, "part", None)
    bench.batcher.start()
    for i in (0, 2):
        assert result(running[i][1]).text == engine.transcribe(sound, "a4").text
    assert isinstance(running[1][1].get(timeout=WAIT_S), Exception)
    bench.batcher.stop()


def test_stopping_gives_up_what_is_left(folder: Path, long_sound: Path) -> None:
    bench = Bench(folder)
    bench.batcher.start()
    for _ in range(3):
        bench.admit(long_sound, Wish(Scale(4), may_degrade=False), Found(50.0, True, False))
    bench.batcher.stop()
    assert bench.batcher.num_jobs == 0
    for path in folder.iterdir():  # what no thread came to any more lies in a folder that the server deletes
        path.unlink()
