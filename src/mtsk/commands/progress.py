"""How far a long recording is read, on the terminal."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

_MIN_DURATION_S = 30.0  # shorter ones are done before anybody asks


@contextlib.contextmanager
def progress(name: str, total_s: float | None, *, is_wanted: bool = True) -> Iterator[Callable[[float], None]]:
    """Shows a bar on standard error while it is open, if that is a terminal, and the recording is not short.

    Args:
        name: of the recording.
        total_s: its duration; None if it is not known.
        is_wanted: False shows nothing.

    Yields:
        A function, to be told up to which second of the recording is read.
    """
    if not is_wanted or not sys.stderr.isatty() or (total_s or math.inf) < _MIN_DURATION_S:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), _Figures())
    # Standard output is not redirected: rich would print it on standard error.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, refresh_per_second=2
    ) as shown:
        task = shown.add_task(name, total=total_s, at_s=0.0)
        started_s = time.perf_counter()
        # The speed is that of the moment: between two reports the time that is left goes down like a clock.
        yield lambda until_s: shown.update(task, completed=until_s, at_s=time.perf_counter() - started_s, refresh=True)


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        """What stands behind the bar."""
        return Text(figures(task.completed, task.total, task.fields["at_s"], task.elapsed or 0.0))


def figures(done_s: float, total_s: float | None, at_s: float, now_s: float) -> str:
    """Such as `12:30 of 1:00:00, 8.3 x real time, 5:43 left`.

    Args:
        done_s: seconds of the recording that are read.
        total_s: its duration; None if it is not known.
        at_s: when they were, in seconds of work.
        now_s: the time now, on the same clock.
    """
    parts = [_clock(done_s) if total_s is None else f"{_clock(done_s)} of {_clock(total_s)}"]
    if done_s > 0 and at_s > 0:
        speed = done_s / at_s
        parts.append(f"{speed:.1f} x real time")
        if total_s is not None:
            parts.append(f"{_clock(max(0.0, (total_s - done_s) / speed - (now_s - at_s)))} left")
    return ", ".join(parts)


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
