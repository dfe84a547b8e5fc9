"""What the server has to do: its requests and their waiting parts, and whether more are taken. The threads that do the
work meet here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mtsk.scale import Scale
from mtsk.serving.errors import overloaded
from mtsk.serving.jobs import Done, Event, Job, Unit
from mtsk.serving.load import Degrader, LoadRules, Share, predicted_wait_s
from mtsk.serving.metrics import Metrics
from mtsk.serving.plans import Plan
from mtsk.serving.predict import Predictor


class Desk:
    """The state that all threads share.

    Args:
        predictor: of what work will take.
        load: when to degrade and to refuse.
        metrics: are kept up to date.
        num_media: threads that read files.
        is_elastic: whether requests are read coarser before they are refused.

    Attributes:
        changed: the lock of all that is here, and of the jobs; told when there is something to do.
        jobs: that are not answered yet.
        units: that wait for the model.
        busy_until_s: when the batch that is being read is done, as predicted.
        is_stopped: whether the threads are to end.
    """

    def __init__(
        self, predictor: Predictor, load: LoadRules, metrics: Metrics, *, num_media: int, is_elastic: bool
    ) -> None:
        self.predictor, self.metrics = predictor, metrics
        self._degrader, self._num_media, self._is_elastic = Degrader(load), num_media, is_elastic
        self.changed = threading.Condition()
        self.jobs: dict[Job, None] = {}
        self.units: list[Unit] = []
        self.busy_until_s = 0.0
        self.is_stopped = False

    def admit(
        self, plans: Sequence[Plan], path: Path, duration_s: float, tell: Callable[[Event], None],
        scales: tuple[Scale, ...] = (),
    ) -> Job:  # fmt: skip
        """Takes a request, in the first of the ways to read it that the load allows.

        Args:
            plans: the ways, as asked first.
            path: of its file, which is deleted at the end.
            duration_s: of the file.
            tell: takes what comes of it, see `Event`; the last event is `Done` or an error, unless it is cancelled.
            scales: to be compared; then there is one plan, for all of them.

        Raises:
            ApiError: 429, if none of the ways is quick enough.
        """
        allowed = plans if self._is_elastic else plans[:1]
        with self.changed:
            now_s = time.monotonic()
            wait_s = self.wait_s(now_s)
            costs_s = [self.predictor.seconds(plan.segment) for plan in allowed]
            step = self._degrader.admit(now_s, wait_s, costs_s)
            self.metrics.level.set(self._degrader.level)
            if step is None:
                self.metrics.rejections.labels("overload").inc()
                raise overloaded(wait_s)
            plan, seconds = allowed[step], self.predictor.seconds
            share = min(1.0, plan.segment.seconds / plan.model.seconds)
            media = Share(now_s, share * seconds(plan.media), seconds(plan.media))
            model = Share(now_s, seconds(plan.segment), seconds(plan.model))
            job = Job(plan, path, tell, media, model, duration_s, self.predictor.grid, scales, step)
            self.jobs[job] = None
            self.observe()
        if step:
            self.metrics.degradations.inc()
        return job

    def knock(self) -> float | None:
        """To be called when a request comes: the predicted wait, if it would be refused however it is read."""
        with self.changed:
            now_s = time.monotonic()
            wait_s = self.wait_s(now_s)
            if wait_s <= self._degrader.rules.limit_s:
                return None
            self._degrader.press(now_s, wait_s)
            return wait_s

    def wait_s(self, now_s: float) -> float:
        """How long a new request would wait, as predicted; under the lock."""
        media_s = predicted_wait_s((job.media for job in self.jobs), now_s) / self._num_media
        model_s = predicted_wait_s((job.model for job in self.jobs), now_s) + max(0.0, self.busy_until_s - now_s)
        return max(media_s, model_s)

    def observe(self) -> None:
        """Notes how long the queue is; under the lock."""
        now_s = time.monotonic()
        wait_s = self.wait_s(now_s)
        self._degrader.observe(now_s, wait_s)
        num_running = sum(job.started_s is not None for job in self.jobs)
        self.metrics.level.set(self._degrader.level)
        self.metrics.wait.set(wait_s)
        self.metrics.running.set(num_running)
        self.metrics.waiting.set(len(self.jobs) - num_running)

    def put(self, unit: Unit) -> None:
        """Lets a part wait for the model; under the lock."""
        if not unit.job.is_over:
            self.units.append(unit)
            self.changed.notify_all()

    def drop(self, job: Job) -> bool:
        """Nobody waits for it any more; False if that was known."""
        with self.changed:
            if job.is_over:
                return False
            job.is_over = True
            self.jobs.pop(job, None)
            self.units = [unit for unit in self.units if unit.job is not job]
            job.to_look.clear()
            if job.reading is not None:
                job.reading.stop()
            self.observe()
            return True

    def end(self, job: Job, event: Done | Exception) -> None:
        """Tells the end of a request, unless nobody waits for it."""
        if self.drop(job):
            job.tell(event)
            self.close_if_idle(job)

    def finish(self, job: Job) -> None:
        """Ends a request of which all parts are done."""
        if job.is_over:
            return
        try:
            done = job.finish()
        except Exception as error:
            self.end(job, error)
            return
        self.end(job, done)

    def close_if_idle(self, job: Job) -> None:
        """Closes and deletes the file of a request that is over, once no thread reads it."""
        with self.changed:
            if not job.is_over or job.is_busy or job.is_looking:
                return
            reading, job.reading = job.reading, None
        if reading is not None:
            reading.close()
        with contextlib.suppress(OSError):
            job.path.unlink(missing_ok=True)
