"""The pool: every item comes back once, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mtsk.data import workers
from mtsk.data.workers import Died, map_unordered


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number in (3, 11):
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def fail(number: int) -> int:
    raise KeyError(number)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_item_once(num_workers):
    results = [result for result in map_unordered(square, range(20), num_workers) if not isinstance(result, Died)]
    assert sorted(results) == [number * number for number in range(20)]


def test_a_crash_costs_one_item():
    results = list(map_unordered(square_or_die, range(14), 2))
    assert {result.item for result in results if isinstance(result, Died)} == {3, 11}
    squares = sorted(result for result in results if not isinstance(result, Died))
    assert squares == [number * number for number in range(14) if number not in (3, 11)]


def test_exceptions_arrive():
    with pytest.raises(KeyError):
        list(map_unordered(fail, [1], 1))


def end_at_once() -> None:
    os._exit(1)


def test_no_worker_at_all_is_an_error_for_users(monkeypatch):
    monkeypatch.setattr(workers, "_start_worker", end_at_once)
    with pytest.raises(ValueError, match=r"2 worker processes asked for.*allowed is 0 too"):
        list(map_unordered(square, [1], 2))


_SCRIPT = """
import os, time
from mtsk.data.workers import map_unordered
from tests.data.test_workers import print_pid
if __name__ == "__main__":
    list(map_unordered(print_pid, [1], 1))
"""


def print_pid(_: int) -> None:
    print(os.getpid(), flush=True)
    time.sleep(60)


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by 10 s")
