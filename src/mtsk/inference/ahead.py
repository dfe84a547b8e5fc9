"""Work that is done ahead of its use, in a thread: a recording is decoded, and its face followed, while the model reads
what came before.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1  # how soon a thread that waits notices that nobody reads any more


def ahead(
    items: Generator[T, None, None], num_ahead: int, stop: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """The items, of which up to `num_ahead` and one more are made before they are asked for.

    Nothing is made before the first one is asked for. An error of theirs comes where its item would. When the reader
    closes the generator early, it waits until the items are closed.

    Args:
        items: are used and closed in the thread alone.
        num_ahead: at least 1.
        stop: is called when nobody reads any more, so that an item that is being made need not be finished.
    """
    made: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(num_ahead)
    is_over = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not is_over.is_set():
            try:
                made.put((kind, value), timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put("item", item):
                    break
            else:
                put("end", None)
        except BaseException as error:  # whatever it is, it belongs to the reader
            put("error", error)
        finally:
            items.close()

    thread = threading.Thread(target=make, name="mtsk-media", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            if kind == "end":
                return
            yield value  # type: ignore[misc]
    finally:
        is_over.set()
        if stop is not None:
            stop()
        thread.join()
