"""The threads that read files: part by part, and back to the end of their queue after each."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from mtsk.inference.engine import Engine
from mtsk.inference.recording import Part
from mtsk.media.stream import MediaStopped
from mtsk.serving.desk import Desk
from mtsk.serving.jobs import Job, Unit
from mtsk.serving.passes import Comparison
from mtsk.serving.predict import Estimate
from mtsk.serving.reading import FileLimits, FileReading, Trackers

_AHEAD = 4  # parts of a file that may wait for the model


class FileWork:
    """Reads the files of jobs.

    Args:
        desk: has the jobs, and takes the parts.
        engine: what comparisons will use.
        trackers: lends face trackers.
        limits: of files.
        num_threads: that read.
    """

    def __init__(self, desk: Desk, engine: Engine, trackers: Trackers, limits: FileLimits, *, num_threads: int) -> None:
        self._desk, self._engine, self._trackers, self._limits = desk, engine, trackers, limits
        self._pool = ThreadPoolExecutor(num_threads, "mtsk-media")

    def stop(self) -> None:
        """Waits for the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def go_on(self, job: Job) -> None:
        """Lets the file be read further, if few of its parts wait; under the lock."""
        if not (job.is_over or job.is_read or job.is_busy or self._desk.is_stopped) and job.num_open < _AHEAD:
            job.is_busy = True
            self._pool.submit(self._advance, job)

    def look_on(self, job: Job) -> None:
        """Lets the lips be looked for that parts wait for; under the lock."""
        if job.to_look and not (job.is_over or job.is_looking or self._desk.is_stopped):
            job.is_looking = True
            self._pool.submit(self._look, job)

    def _advance(self, job: Job) -> None:
        """Reads the next part of a file, and comes back for more while few wait for the model."""
        try:
            if not job.is_over:
                self._read_part(job)
        except MediaStopped:
            pass
        except Exception as error:
            self._desk.end(job, error)
        finally:
            with self._desk.changed:
                job.is_busy = False
                self.go_on(job)
            self._desk.close_if_idle(job)

    def _read_part(self, job: Job) -> None:
        started_s = time.monotonic()
        if job.reading is None:
            job.make_ladders()
            reading = FileReading(job.path, job.plan.policy.looks, self._trackers, self._limits)
            with self._desk.changed:
                job.reading = reading
                if job.is_over:
                    return
            for ladder in job.ladders:
                ladder.check(reading.recording, self._engine.grid)
        reading, before_s = job.reading, job.reading.recording.duration_s
        part = reading.next_part()
        seconds = time.monotonic() - started_s
        read_s = reading.recording.duration_s - before_s
        estimate = self._desk.predictor.media(read_s, lips=job.plan.media.kind == "lips")
        with self._desk.changed:
            job.seconds["media"] += seconds
            if read_s > 0:
                self._desk.predictor.corrections.learn({estimate.kind: estimate.seconds}, seconds)
            job.media.serve(self._desk.predictor.seconds(estimate))
            if part is not None:
                job.num_parts += 1
                job.num_open += 1
                self._desk.put(self._unit(job, job.num_parts - 1, part))
                return
            job.is_read = True
            job.media.remaining_s = 0.0
            waiting = (unit.estimate for unit in self._desk.units if unit.job is job)
            job.model.remaining_s = sum(map(self._desk.predictor.seconds, waiting))
            is_done = job.num_open == 0
        if is_done:
            self._desk.finish(job)

    def _look(self, job: Job) -> None:
        """Looks for the lips of the first part that waits for that; one after the other, as the file is read once."""
        try:
            with self._desk.changed:
                unit = job.to_look.popleft() if job.to_look else None
                reading = job.reading
            if unit is not None and reading is not None:
                started_s = time.monotonic()
                part = reading.look(unit.part)
                seconds = time.monotonic() - started_s
                with self._desk.changed:
                    job.seconds["media"] += seconds
                    self._desk.predictor.corrections.learn({unit.look.kind: unit.look.seconds}, seconds)
                    job.media.serve(self._desk.predictor.seconds(unit.look))
                    unit.part = part
                    self._desk.put(unit)
        except MediaStopped:  # nobody waits for it any more
            pass
        except Exception as error:
            self._desk.end(job, error)
        finally:
            with self._desk.changed:
                job.is_looking = False
                self.look_on(job)
            self._desk.close_if_idle(job)

    def _unit(self, job: Job, index: int, part: Part) -> Unit:
        length_s = part.end_s - part.start_s
        if job.scales:
            whole = sum(self._desk.predictor.reading(scale, length_s).seconds for scale in job.scales)
            each = Estimate("compare", whole / len(job.scales))
            return Unit(job, index, part, each, comparison=Comparison(self._engine, part), scales=deque(job.scales))
        share = length_s / max(length_s, job.duration_s)
        estimate = Estimate(job.plan.model.kind, share * job.plan.model.seconds)
        return Unit(job, index, part, estimate)
