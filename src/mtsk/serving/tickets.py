"""The waiting side of a request: an upload on disk, and the events of its job, until the client goes or time is up."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from starlette.requests import Request

from mtsk.media import MediaError
from mtsk.serving.errors import ApiError
from mtsk.serving.jobs import Done, Event
from mtsk.serving.logs import LOGGER
from mtsk.serving.metrics import Metrics
from mtsk.serving.plans import Found
from mtsk.serving.reading import FileLimits, look_into
from mtsk.types import Segment


@dataclass(frozen=True)
class Upload:
    """A file that a client sent.

    Attributes:
        path: where it lies for now.
        found: what it has.
    """

    path: Path
    found: Found


async def receive_file(file: BinaryIO, folder: Path, limits: FileLimits) -> Upload:
    """Copies what was sent into a folder.

    Raises:
        ApiError: 400, if it is no media file or beyond a limit.
    """

    def copy() -> Upload:
        path = folder / uuid.uuid4().hex
        try:
            with path.open("wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
            return Upload(path, look_into(path, limits))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    try:
        return await asyncio.to_thread(copy)
    except MediaError as error:
        raise as_api_error(error) from None


def as_api_error(error: Exception) -> ApiError:
    """What the client is told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MediaError):
        return ApiError(400, str(error), param="file", code="invalid_media")
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    LOGGER.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why")


class _Gone(Exception):  # noqa: N818  (clients may go)
    """The client closed the connection."""


class Mailbox:
    """Takes events from other threads for one waiting request.

    Args:
        request: is watched: its client may go.
        timeout_s: from now on.
        metrics: count who gives up.
    """

    def __init__(self, request: Request, timeout_s: float, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._metrics = metrics
        self._timeout_s = timeout_s
        self.started_s = time.monotonic()
        self.is_done = False
        self._watch = self._loop.create_task(self._watch_client(request))

    def put(self, event: Event) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Segment | Done]:
        """Segments, and the end.

        Raises:
            ApiError: if it failed, took too long, or the client is gone.
        """
        while not self.is_done:
            yield await self.next()

    async def next(self) -> Segment | Done:
        """The next event, see `events`."""
        left_s = self._timeout_s - (time.monotonic() - self.started_s)
        try:
            event = await asyncio.wait_for(self._events.get(), max(0.0, left_s))
        except TimeoutError:
            self._metrics.cancellations.labels("timeout").inc()
            raise ApiError(408, f"it took more than {self._timeout_s:g} s", code="timeout") from None
        if isinstance(event, _Gone):
            self._metrics.cancellations.labels("disconnect").inc()
            raise ApiError(499, "the client closed the connection", code="client_closed")
        if isinstance(event, Exception):
            raise as_api_error(event) from event
        self.is_done = isinstance(event, Done)
        return event

    def close(self) -> None:
        """The client is not watched any more."""
        self._watch.cancel()

    async def _watch_client(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(_Gone())
