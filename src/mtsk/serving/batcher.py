"""One queue for all requests: the model reads segments of any of them, at any scales, in one batch. A long recording
does not keep short ones waiting, see `Share`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtsk.inference.engine import Engine
from mtsk.inference.policy import Choice
from mtsk.scale import Scale
from mtsk.serving.desk import Desk
from mtsk.serving.filework import FileWork
from mtsk.serving.jobs import Event, Job, Unit
from mtsk.serving.load import LoadRules
from mtsk.serving.metrics import Metrics
from mtsk.serving.passes import OnePass, decide, joined
from mtsk.serving.plans import Plan
from mtsk.serving.predict import Predictor
from mtsk.serving.reading import FileLimits, Trackers
from mtsk.types import Segment

_LOG = logging.getLogger("mtsk.serving")


@dataclass(frozen=True)
class BatchRules:
    """Of a `Batcher`.

    Attributes:
        max_batch: segments that are read together.
        max_batch_s: predicted time of its segments one by one, but for a batch of one: it is not interrupted, so what
            nobody waits for any more costs no more than that.
        media_workers: threads that read files.
        is_elastic: whether requests are read coarser before they are refused.
    """

    max_batch: int = 8
    max_batch_s: float = 1.5
    media_workers: int = 2
    is_elastic: bool = True


class Batcher:
    """Admits requests and serves them. All methods may be called from any thread.

    Args:
        engine: is used in the batcher's thread alone from here on.
        predictor: of what work will take.
        trackers: lends face trackers.
        limits: of files.
        rules: of batches.
        load: when to degrade and to refuse.
        metrics: are kept up to date.
    """

    def __init__(
        self, engine: Engine, predictor: Predictor, trackers: Trackers, limits: FileLimits, rules: BatchRules,
        load: LoadRules, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._engine, self._rules = engine, rules
        workers = rules.media_workers
        self._desk = Desk(predictor, load, metrics, num_media=workers, is_elastic=rules.is_elastic)
        self._files = FileWork(self._desk, engine, trackers, limits, num_threads=workers)
        self._thread = threading.Thread(target=self._serve, name="mtsk-model", daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Gives up what is left, and waits for the threads."""
        with self._desk.changed:
            self._desk.is_stopped = True
            left = list(self._desk.jobs)
            self._desk.changed.notify_all()
        for job in left:
            self.cancel(job)
        self._files.stop()
        self._thread.join()

    @property
    def num_jobs(self) -> int:
        """Requests that are not answered yet."""
        return len(self._desk.jobs)

    def knock(self) -> float | None:
        """To be called when a request comes: the predicted wait, if it would be refused however it is read."""
        return self._desk.knock()

    def admit(
        self, plans: Sequence[Plan], path: Path, duration_s: float, tell: Callable[[Event], None],
        scales: tuple[Scale, ...] = (),
    ) -> Job:  # fmt: skip
        """Takes a request, see `Desk.admit`.

        Raises:
            ApiError: 429, if none of the ways is quick enough.
        """
        job = self._desk.admit(plans, path, duration_s, tell, scales)
        with self._desk.changed:
            self._files.go_on(job)
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more: it is taken from the queue, and its file is not read further."""
        if self._desk.drop(job):
            self._desk.close_if_idle(job)

    def _serve(self) -> None:
        while True:
            with self._desk.changed:
                while not self._desk.is_stopped and not self._desk.units:
                    self._desk.changed.wait()
                if self._desk.is_stopped:
                    return
                batch = self._take()
                now_s = time.monotonic()
                self._desk.busy_until_s = now_s + sum(self._desk.predictor.seconds(unit.estimate) for unit in batch)
            self._read(batch)
            with self._desk.changed:
                self._desk.busy_until_s = 0.0
                for job in dict.fromkeys(unit.job for unit in batch):
                    self._files.go_on(job)
                self._desk.observe()

    def _take(self) -> list[Unit]:
        """The next batch: in the order of the queue, parts of a file in the order of time."""
        batch: list[Unit] = []
        planned_s = 0.0
        now_s = time.monotonic()
        while self._desk.units and len(batch) < self._rules.max_batch:
            unit = min(self._desk.units, key=lambda unit: (unit.job.model.place, unit.index))
            seconds = self._desk.predictor.seconds(unit.estimate)
            alone = unit.comparison is not None or (bool(batch) and batch[0].comparison is not None)
            if batch and (alone or planned_s + seconds > self._rules.max_batch_s):
                break
            self._desk.units.remove(unit)
            batch.append(unit)
            planned_s += seconds
            unit.job.model.serve(seconds)
            if unit.job.started_s is None:
                unit.job.started_s = now_s
                self._desk.metrics.queued.observe(now_s - unit.job.model.arrived_s)
        self._desk.observe()
        return batch

    def _read(self, batch: list[Unit]) -> None:
        self._desk.metrics.batch.observe(len(batch))
        predicted: dict[str, float] = defaultdict(float)
        for unit in batch:
            predicted[unit.estimate.kind] += unit.estimate.seconds
        started_s = time.monotonic()
        try:
            if batch[0].comparison is not None:
                self._compare(batch[0])
            else:
                self._transcribe(batch)
        except Exception as error:  # whatever it is, the thread has to go on
            if len(batch) > 1:  # one of them may be at fault: the others are not to suffer
                for unit in batch:
                    self._read([unit])
                return
            if not isinstance(error, ValueError):
                _LOG.exception("a segment could not be read")
            self._desk.end(batch[0].job, error)
            return
        with self._desk.changed:
            self._desk.predictor.corrections.learn(predicted, time.monotonic() - started_s)

    def _transcribe(self, batch: Sequence[Unit]) -> None:
        passes = [OnePass(unit.job.plan.policy, unit.part, unit.attempts, unit.wanted) for unit in batch]
        segments, seconds = decide(self._engine, [unit.part for unit in batch], passes)
        for unit, each, segment in zip(batch, passes, segments, strict=True):
            for stage, value in seconds.items():
                unit.job.seconds[stage] += value / len(batch)
            unit.before, unit.attempts, unit.wanted = joined(unit.before, segment), each.attempts, each.waits_for
            if unit.wanted is not None:
                self._wait_for_look(unit, unit.wanted)
            else:
                self._done(unit, [unit.before])

    def _wait_for_look(self, unit: Unit, wanted: Choice) -> None:
        job = unit.job
        length_s = unit.part.end_s - unit.part.start_s
        unit.estimate = self._desk.predictor.reading(wanted.scale, length_s)
        unit.look = self._desk.predictor.media(length_s, lips=True)
        with self._desk.changed:
            job.model.remaining_s += self._desk.predictor.seconds(unit.estimate)
            job.media.remaining_s += self._desk.predictor.seconds(unit.look)
            if not job.is_over:
                job.to_look.append(unit)
            self._files.look_on(job)

    def _compare(self, unit: Unit) -> None:
        assert unit.comparison is not None
        unit.results.append(unit.comparison.read(unit.scales.popleft()))
        if unit.scales:
            with self._desk.changed:
                self._desk.put(unit)
            return
        job = unit.job
        job.seconds["encode"] += unit.comparison.encode_s
        for ladder, found in zip(job.ladders, unit.results, strict=True):
            ladder.decode_s += 0.0 if found is None else found.seconds
        self._done(unit, [None if found is None else found.segment for found in unit.results])

    def _done(self, unit: Unit, segments: Sequence[Segment | None]) -> None:
        job = unit.job
        for segment in job.add(unit.index, unit.part, segments):
            if not job.is_over:
                job.tell(segment)
        with self._desk.changed:
            job.num_open -= 1
            is_done = job.is_read and job.num_open == 0
        if is_done:
            self._desk.finish(job)
