"""The server: the application around an engine, and how it is run and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import numpy as np
import uvicorn
from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from mtsk.checkpoints.sources import face_models
from mtsk.inference.engine import Engine
from mtsk.media import MouthTracker
from mtsk.media.vad import SpeechDetector
from mtsk.serving.api import Server, router
from mtsk.serving.batcher import Batcher, BatchRules
from mtsk.serving.errors import ApiError, add_handlers
from mtsk.serving.formats import Texts
from mtsk.serving.gate import Gate, Keys, RateLimiter
from mtsk.serving.load import LoadRules
from mtsk.serving.logs import log
from mtsk.serving.metrics import Metrics
from mtsk.serving.mouths import Mouths
from mtsk.serving.plans import Planner, start_of
from mtsk.serving.predict import Predictor
from mtsk.serving.reading import FileLimits, Trackers
from mtsk.serving.settings import Settings
from mtsk.types import MOUTH_SIZE_PX, SAMPLE_RATE_HZ, VIDEO_FPS, Example

_PAGE = Path(__file__).parent / "page"
_WARM_UP_S = 2.0  # of noise
_SETTLE_S = 0.2


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application. It serves from its start-up event to its shutdown event, once.

    Args:
        engine: belongs to the application from here on.
        settings: of the server.

    Raises:
        ValueError: if the model has not what the settings name.
    """
    server = _make_server(engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="mtsk-") as folder:
            server.folder = Path(folder)
            server.batcher.start()
            server.is_ready = True
            yield
            server.is_stopping = True
            server.batcher.stop()
            server.mouths.stop()

    app = FastAPI(title="mtsk", version=version("mtsk"), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.server = server
    add_handlers(app)
    app.include_router(router)
    _add_page(app)
    app.add_middleware(
        Gate,
        keys=Keys(settings.api_key),
        rate=RateLimiter(settings.requests_per_minute),
        max_bytes=settings.max_upload_bytes,
        metrics=server.metrics,
        knock=server.batcher.knock,
    )
    return app


def _make_server(engine: Engine, settings: Settings) -> Server:
    default = settings.default or _best_default(engine)
    try:
        start_of(engine, default)
    except ApiError as error:
        raise ValueError(f"default {default}: {error}") from None
    if default == "auto":
        _ = engine.auto
    predictor, metrics = Predictor(engine), Metrics()
    trackers = Trackers(lambda: MouthTracker(face_models))
    warm_up(engine, predictor, trackers)
    rules = BatchRules(
        max_batch=settings.max_batch,
        max_batch_s=settings.max_batch_s,
        media_workers=settings.media_workers,
        is_elastic=settings.elastic,
    )
    load = LoadRules(settings.target_wait_s, settings.max_wait_s, max_level=len(engine.grid))
    limits = FileLimits(settings.max_duration_s, settings.max_side_px)
    return Server(
        engine=engine,
        settings=settings,
        default=default,
        batcher=Batcher(engine, predictor, trackers, limits, rules, load, metrics),
        planner=Planner(engine, predictor),
        mouths=Mouths(trackers),
        texts=Texts(engine),
        metrics=metrics,
        folder=Path(),
        created=int(time.time()),
    )


def _best_default(engine: Engine) -> str:
    try:
        _ = engine.auto
    except ValueError:
        return "best"
    return "auto"


def warm_up(engine: Engine, predictor: Predictor, trackers: Trackers) -> None:
    """Reads some noise at every scale: the first request is not slow, and how quick this machine is is known."""
    SpeechDetector().feed(np.zeros(SAMPLE_RATE_HZ, np.float32))
    if engine.grid.video_rates:
        tracker = trackers.take()
        try:
            tracker.stream().push(np.zeros((256, 256, 3), np.uint8))
        except ValueError as error:  # sound can be served
            log("faces can't be followed", reason=str(error))
        trackers.give(tracker)
    rng = np.random.default_rng(0)
    waveform = (0.1 * rng.standard_normal(round(_WARM_UP_S * SAMPLE_RATE_HZ))).astype(np.float32)
    mouth = rng.integers(0, 256, (round(_WARM_UP_S * VIDEO_FPS), MOUTH_SIZE_PX, MOUTH_SIZE_PX), dtype=np.uint8)
    example = Example("warm-up", waveform, mouth)
    scales = [scale for scale in engine.grid if engine.usable(engine.encode([example]), scale)]
    factors = []
    for is_measured in (False, True):
        for scale in scales:
            started_s = time.perf_counter()
            [segment] = engine.recognize([example], [scale])
            seconds = time.perf_counter() - started_s
            if is_measured:  # of noise the model may make much text, which no draft guesses
                num_written = len(engine.model.prompts.target(segment.text))
                factors.append(seconds / predictor.writing(scale, _WARM_UP_S, num_written))
    for kind in (*map(str, scales), "auto", "compare"):
        predictor.corrections.set(kind, float(np.median(factors)))


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        path = _PAGE / "index.html"
        if not path.is_file():
            raise ApiError(404, "this server has no page")
        return FileResponse(path)

    app.mount("/page", StaticFiles(directory=_PAGE, check_dir=False), name="page")


class _Server(uvicorn.Server):
    """Says that it is stopping as soon as it is told to."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._served = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal: takes no new connections; the requests that are there are served."""
        del frame
        self._served.is_stopping = True
        log("stopping", signal=sig, requests=self._served.batcher.num_jobs)
        # Unlike uvicorn, which raises the signal again: the process ends as one that did what it was told.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, and waits a moment: what was sent on connections that are accepted is read, and served."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        await asyncio.sleep(_SETTLE_S)
        await super().shutdown(sockets)


def serve(engine: Engine, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, and then until the requests that are there are answered.

    Raises:
        ValueError: if the model has not what the settings name.
        OSError: if the address can't be had.
    """
    app = create_app(engine, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anybody may write them
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )
    server: Server = app.state.server
    runner = _Server(config, server)
    listener = config.bind_socket()
    host, port = listener.getsockname()[:2]
    log(
        "listening", host=host, port=port, pid=os.getpid(), default=server.default,
        scales=[str(scale) for scale in engine.grid], keys=len(settings.api_key),
    )  # fmt: skip
    runner.run(sockets=[listener])
