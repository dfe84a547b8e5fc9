"""Clients of `benchmarks.load`: a closed loop, which finds out what a server can do, and an open loop, which asks at
given times whether or not the server keeps up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np
from benchmarks.recordings import Utterance

_ROUTE = "/v1/audio/transcriptions"
_BOUNDARY = "mtsk-load"
_TIMEOUT_S = 90.0
_WATCH_S = 0.5
_PAUSE_S = 0.2  # of a client in a closed loop that was refused
_GAUGES = {
    "mtsk_requests_running": "running",
    "mtsk_requests_waiting": "waiting",
    "mtsk_degradation_level": "level",
    "mtsk_predicted_wait_seconds": "predicted_wait_s",
}


@dataclass(frozen=True)
class Step:
    """Arrivals for a while.

    Attributes:
        multiple: of the capacity.
        duration_s: how long.
    """

    multiple: float
    duration_s: float


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        at_s: when it was due, since the first step began.
        step: in which it came.
        clip: index of what was sent.
        status: of HTTP; 0 if the connection failed.
        latency_s: from when it was due to the last byte of the answer, so that a late client counts too.
        scale: that was used.
        is_degraded: whether the load made it coarser.
        text: what was written.
    """

    at_s: float
    step: int
    clip: int
    status: int
    latency_s: float
    scale: str = ""
    is_degraded: bool = False
    text: str = ""


@dataclass
class Watched:
    """What the server told about itself, at some times since the first step began."""

    at_s: list[float] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)


def arrivals(steps: Sequence[Step], capacity_per_s: float, seed: int | None = 0) -> list[tuple[float, int]]:
    """When requests are due, and in which step: a Poisson process, or at even distances without a seed."""
    rng = None if seed is None else np.random.default_rng(seed)
    times: list[tuple[float, int]] = []
    begin_s = 0.0
    for index, step in enumerate(steps):
        end_s, gap_s = begin_s + step.duration_s, 1 / (step.multiple * capacity_per_s)
        at_s = begin_s
        while (at_s := at_s + (gap_s if rng is None else rng.exponential(gap_s))) < end_s:
            times.append((at_s, index))
        begin_s = end_s
    return times


class Client:
    """Sends clips to a server. All requests are made before, so that little is to be done while it measures.

    Args:
        address: of the server.
        clips: what is sent, in turn.
        model: that is asked for.
    """

    def __init__(self, address: str, clips: Sequence[Utterance], model: str) -> None:
        self._address, self._clips = address, clips
        self._bodies = [_body(clip, model) for clip in clips]
        self._headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}

    async def open_loop(self, times: Sequence[tuple[float, int]]) -> tuple[list[Answer], Watched]:
        """Asks at the given times, whatever became of those before. Returns when all are answered."""
        watched = Watched()
        async with self._connect() as http:
            begun_s = time.perf_counter()
            watch = asyncio.create_task(self._watch(http, begun_s, watched))
            tasks: list[asyncio.Task[Answer]] = []
            for index, (at_s, step) in enumerate(times):
                await asyncio.sleep(max(0.0, begun_s + at_s - time.perf_counter()))
                tasks.append(asyncio.create_task(self._ask(http, begun_s, at_s, step, index)))
            answers = await asyncio.gather(*tasks)
            watch.cancel()
        return answers, watched

    async def closed_loop(self, num_clients: int, duration_s: float, warm_up_s: float) -> float:
        """Answers a second that a few clients get who ask again as soon as they are answered.

        Args:
            warm_up_s: before that, which does not count.
        """
        answers: list[Answer] = []
        end_s = warm_up_s + duration_s

        async def ask_again(http: httpx.AsyncClient, first: int) -> None:
            index = first
            while (at_s := time.perf_counter() - begun_s) < end_s:
                answers.append(await self._ask(http, begun_s, at_s, 0, index))
                index += num_clients
                if answers[-1].status != 200:
                    await asyncio.sleep(_PAUSE_S)

        async with self._connect() as http:
            begun_s = time.perf_counter()
            await asyncio.gather(*(ask_again(http, index) for index in range(num_clients)))
        done_s = [each.at_s + each.latency_s for each in answers if each.status == 200]
        return sum(warm_up_s <= each < end_s for each in done_s) / duration_s

    def _connect(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self._address, timeout=_TIMEOUT_S, limits=limits, trust_env=False)

    async def _ask(self, http: httpx.AsyncClient, begun_s: float, at_s: float, step: int, index: int) -> Answer:
        clip = index % len(self._clips)
        try:
            response = await http.post(_ROUTE, content=self._bodies[clip], headers=self._headers)
        except httpx.HTTPError:
            return Answer(at_s, step, clip, 0, time.perf_counter() - begun_s - at_s)
        latency_s = time.perf_counter() - begun_s - at_s
        if response.status_code != 200:
            return Answer(at_s, step, clip, response.status_code, latency_s)
        headers = response.headers
        is_degraded = headers["x-mtsk-degraded"] == "true"
        return Answer(at_s, step, clip, 200, latency_s, headers["x-mtsk-scale"], is_degraded, response.json()["text"])

    async def _watch(self, http: httpx.AsyncClient, begun_s: float, watched: Watched) -> None:
        while True:
            lines = (await http.get("/metrics")).text.splitlines()
            pairs = [line.split(" ", 1) for line in lines if not line.startswith("#")]
            watched.at_s.append(time.perf_counter() - begun_s)
            watched.numbers.append({_GAUGES[name]: float(value) for name, value in pairs if name in _GAUGES})
            await asyncio.sleep(_WATCH_S)


def _body(clip: Utterance, model: str) -> bytes:
    def part(name: str, value: bytes, more: str = "") -> bytes:
        return (
            f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"
        )

    file = part("file", clip.path.read_bytes(), f'; filename="{clip.path.name}"')
    return file + part("model", model.encode()) + f"--{_BOUNDARY}--\r\n".encode()
