"""Items made ahead of their use."""

import threading
from collections.abc import Generator

import pytest

from mtsk.inference.ahead import ahead


class Items:
    """Counts what was made, and where."""

    def __init__(self, num: int, fails_at: int | None = None) -> None:
        self._num, self._fails_at = num, fails_at
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.is_closed = threading.Event()
        self.reached = {number: threading.Event() for number in range(num)}

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self._num):
                if number == self._fails_at:
                    raise OSError("unreadable")
                self.made.append(number)
                self.threads.add(threading.current_thread().name)
                self.reached[number].set()
                yield number
        finally:
            self.is_closed.set()


def test_all_items_come_in_order_from_another_thread() -> None:
    items = Items(20)
    assert list(ahead(items(), 3)) == list(range(20))
    assert items.threads == {"mtsk-media"}
    assert items.is_closed.is_set()


def test_no_more_than_allowed_is_made_ahead() -> None:
    items = Items(20)
    reader = ahead(items(), 2)
    assert items.made == [], "nothing before the first is asked for"
    assert next(reader) == 0
    assert items.reached[3].wait(10), "two wait in the queue, and the next one for a place in it"
    assert not items.reached[4].wait(0.3)
    reader.close()
    assert items.is_closed.is_set()
    assert items.made == [0, 1, 2, 3]


def test_an_error_comes_where_its_item_would() -> None:
    items = Items(5, fails_at=2)
    reader = ahead(items(), 4)
    assert [next(reader), next(reader)] == [0, 1]
    with pytest.raises(OSError, match="unreadable"):
        next(reader)
    assert items.is_closed.is_set()


def test_an_item_that_is_being_made_need_not_be_finished() -> None:
    """Without the signal it would never be."""
    is_begun, is_stopped, is_closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield 0
            is_begun.set()
            assert is_stopped.wait(30)
            raise OSError("stopped: nobody is to hear of it")
        finally:
            is_closed.set()

    reader = ahead(items(), 1, is_stopped.set)
    assert next(reader) == 0
    assert is_begun.wait(30)
    assert not is_stopped.is_set()
    reader.close()
    assert is_stopped.is_set()
    assert is_closed.is_set()
