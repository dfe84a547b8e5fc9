"""The routes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mtsk.inference.engine import Engine
from mtsk.scale import Scale
from mtsk.serving import formats
from mtsk.serving.batcher import Batcher
from mtsk.serving.errors import ApiError, ErrorBody
from mtsk.serving.formats import Answer, Texts
from mtsk.serving.jobs import Done, Job
from mtsk.serving.metrics import Metrics
from mtsk.serving.mouths import Mouths
from mtsk.serving.plans import Plan, Planner, model_ids, parse_wish, start_of, unknown_model
from mtsk.serving.reading import FileLimits
from mtsk.serving.schema import CompareForm, FileForm, Model, ModelList, TranscriptionForm
from mtsk.serving.settings import Settings
from mtsk.serving.tickets import Mailbox, Upload, receive_file
from mtsk.types import Segment

_LANGUAGES = ("", "en", "eng", "english")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 405, 408, 413, 429, 500, 503)
}
_KINDS = ("application/json", "text/plain", "text/vtt", "text/event-stream")
_TEXTS: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in _KINDS}}}
_MULTIPART = Form(media_type="multipart/form-data")


@dataclass
class Server:
    """What the routes work with.

    Attributes:
        folder: for uploads.
        is_stopping: takes no new connections.
        created: when the model was loaded, in seconds since 1970.
    """

    engine: Engine
    settings: Settings
    default: str
    batcher: Batcher
    planner: Planner
    mouths: Mouths
    texts: Texts
    metrics: Metrics
    folder: Path
    created: int
    is_ready: bool = False
    is_stopping: bool = False

    @property
    def limits(self) -> FileLimits:
        """Of files."""
        return FileLimits(self.settings.max_duration_s, self.settings.max_side_px)


router = APIRouter(responses=_ERRORS)


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


@router.post("/v1/audio/transcriptions", responses=_TEXTS)
async def transcribe(request: Request, form: Annotated[TranscriptionForm, _MULTIPART]) -> Response:
    """Writes what is said in a file, as OpenAI's API does."""
    server = _server(request)
    if (form.language or "").strip().lower() not in _LANGUAGES:
        message = f"language {form.language!r}: this model knows English (en) alone"
        raise ApiError(400, message, param="language", code="unsupported_language")
    wish = parse_wish(server.engine, server.default, form.model, form.scale, form.budget_ms, form.policy)
    upload = await _receive(server, form)
    work = _Work(server, upload, Mailbox(request, _timeout_s(server, form), server.metrics))
    try:
        plans = server.planner.plans(wish, upload.found)
        work.admit(plans)
        call = _Call(server, request, form, work, plans[0].name)
        first = await work.box.next()  # what fails before the first text gets a proper status
        if not form.stream:
            return await call.whole(first)
    except BaseException:
        work.close()
        raise
    # The stream sees to the end of the work.
    return StreamingResponse(call.stream(first), headers=call.headers(first), media_type="text/event-stream")


class _Work:
    """An upload and what is done with it.

    Attributes:
        box: takes its events.
    """

    def __init__(self, server: Server, upload: Upload, box: Mailbox) -> None:
        self._server, self._upload, self.box = server, upload, box
        self._job: Job | None = None

    @property
    def job(self) -> Job:
        """Once it is admitted."""
        assert self._job is not None
        return self._job

    def admit(self, plans: Sequence[Plan], scales: tuple[Scale, ...] = ()) -> None:
        """See `Batcher.admit`."""
        found = self._upload.found
        self._job = self._server.batcher.admit(plans, self._upload.path, found.duration_s, self.box.put, scales)

    def close(self) -> None:
        """Gives up what is not done, and deletes the upload."""
        self.box.close()
        if self._job is None:
            self._upload.path.unlink(missing_ok=True)
        else:
            self._server.batcher.cancel(self._job)


@dataclass
class _Call:
    """One transcription, after its first event."""

    server: Server
    request: Request
    form: TranscriptionForm
    work: _Work
    asked: str

    async def whole(self, first: Segment | Done) -> Response:
        """Answers when all is done."""
        latest = first
        self._note_text()
        while not isinstance(latest, Done):
            latest = await self.work.box.next()
        answer = self._answer(latest)
        self.work.close()
        return answer.response(self.form.response_format, self._granularities)

    async def stream(self, first: Segment | Done) -> AsyncIterator[str]:
        """Server-sent events, as text comes."""
        try:
            latest, begun = first, False
            self._note_text()
            while not isinstance(latest, Done):
                if latest.text.strip():
                    yield formats.delta_event(f" {latest.text}" if begun else latest.text)
                    begun = True
                latest = await self.work.box.next()
            yield self._answer(latest).done_event(self.form.response_format, self._granularities)
        except ApiError as error:
            yield formats.event({"type": "error", **error.body.model_dump()})
        finally:
            self.work.close()

    def headers(self, first: Segment | Done) -> dict[str, str]:
        """Of a stream: the scale of its first text, as its end is not known yet."""
        plan = self.work.job.plan.name
        scale = first.scale if isinstance(first, Segment) else first.transcript.scale if first.transcript else plan
        return {"x-mtsk-scale": str(scale), "x-mtsk-degraded": str(self.work.job.num_steps > 0).lower()}

    @property
    def _granularities(self) -> list[formats.Granularity]:
        return [*self.form.granularities, *self.form.more_granularities]

    def _note_text(self) -> None:
        self.server.metrics.first_text.observe(time.monotonic() - self.work.box.started_s)

    def _answer(self, done: Done) -> Answer:
        transcript, metrics, job = done.transcript, self.server.metrics, self.work.job
        assert transcript is not None
        now_s = time.monotonic()
        wait_s = max(0.0, (job.started_s or now_s) - job.model.arrived_s)
        degraded = job.num_steps > 0
        answer = Answer(transcript, self.asked, job.plan.name, degraded, self.server.texts, wait_s)
        latency_s = now_s - self.work.box.started_s
        metrics.latency.observe(latency_s)
        metrics.scales.labels(str(transcript.scale)).inc()
        metrics.tokens.inc(transcript.num_tokens)
        metrics.flops.inc(answer.tflops)
        metrics.audio.inc(transcript.duration_s)
        if transcript.duration_s:
            metrics.real_time_factor.observe(latency_s / transcript.duration_s)
        note: dict[str, object] = self.request.state.log
        note.update(
            scale=str(transcript.scale), asked=self.asked, degraded=degraded, tokens=transcript.num_tokens,
            tflops=round(answer.tflops, 4), media_s=round(transcript.duration_s, 3), wait_s=round(wait_s, 4),
        )  # fmt: skip
        if self.server.settings.log_transcripts:
            note["text"] = transcript.text
        return answer


async def _receive(server: Server, form: FileForm) -> Upload:
    if not server.is_ready:
        raise ApiError(503, "the model is loading", retry_after_s=5)
    return await receive_file(form.file.file, server.folder, server.limits)


def _timeout_s(server: Server, form: FileForm) -> float:
    return min(server.settings.timeout_s, form.timeout_s or server.settings.timeout_s)


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """The model, and each of its scales."""
    server = _server(request)
    return ModelList(data=[Model(id=name, created=server.created) for name in model_ids(server.engine)])


@router.get("/v1/models/{model_id}")
async def model(request: Request, model_id: str) -> Model:
    """One of them."""
    server = _server(request)
    if model_id not in model_ids(server.engine):
        raise unknown_model(server.engine, model_id)
    return Model(id=model_id, created=server.created)


@router.post("/v1/mtsk/compare")
async def compare(request: Request, form: Annotated[CompareForm, _MULTIPART]) -> Response:
    """Writes what is said in a file at several scales, encoded once; scales that the file has no media for are left
    out."""
    server = _server(request)
    names = [name.strip() for name in form.scales.split(",") if name.strip()] or ["all"]
    if "all" in names:
        scales = server.engine.grid.scales
    else:
        starts = [start_of(server.engine, name) for name in names]
        scales = tuple(dict.fromkeys(each for each in starts if not isinstance(each, str)))
        if len(scales) < len(set(names)):
            raise ApiError(400, f"scales {form.scales[:100]!r}: give trained scales, or all", param="scales")
    upload = await _receive(server, form)
    work = _Work(server, upload, Mailbox(request, _timeout_s(server, form), server.metrics))
    try:
        work.admit([server.planner.all_of(scales, upload.found)], scales)
        done = await work.box.next()
        assert isinstance(done, Done)
        return JSONResponse(formats.comparison(done.compared, server.texts))
    finally:
        work.close()


@router.post("/v1/mtsk/mouth")
async def mouth(request: Request, form: Annotated[FileForm, _MULTIPART]) -> Response:
    """The mouth crops that the model sees in a video, as one picture: line by line, in the order of time."""
    server = _server(request)
    upload = await _receive(server, form)
    work = _Work(server, upload, Mailbox(request, _timeout_s(server, form), server.metrics))
    try:
        return JSONResponse(await server.mouths.sheet(upload, work.box))
    finally:
        work.close()


@router.get("/health", responses={})
async def health() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded, and the server is not stopping; 503 otherwise."""
    server = _server(request)
    if server.is_stopping or not server.is_ready:
        raise ApiError(503, "stopping" if server.is_stopping else "loading", code="not_ready")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(_server(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
