"""The fields of requests, as OpenAI names them, and what is added to them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, Field

from mtsk.serving.formats import Granularity, ResponseFormat
from mtsk.serving.plans import DEFAULT_ID, PolicyName


class FileForm(BaseModel):
    """A form with a media file."""

    file: UploadFile = Field(description="Sound or video: wav, mp3, m4a, flac, ogg, webm, mp4, mov, mkv and others.")
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Give up after so long; the server's own limit applies too."
    )


class TranscriptionForm(FileForm):
    """A transcription."""

    model: str = Field(DEFAULT_ID, description="`mtsk`, or a scale of it such as `mtsk@a4v2`, see /v1/models.")
    language: str | None = Field(None, description="English is the only one.")
    prompt: str | None = Field(None, description="Accepted and ignored.")
    response_format: ResponseFormat = Field("json")
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.0, description="Accepted and ignored: decoding is greedy."
    )
    granularities: list[Granularity] = Field(
        default_factory=list, alias="timestamp_granularities[]", description="For verbose_json; default: segment."
    )
    more_granularities: list[Granularity] = Field(default_factory=list, alias="timestamp_granularities")
    include: list[str] = Field(default_factory=list, alias="include[]", description="Accepted and ignored.")
    chunking_strategy: str | None = Field(None, description="Accepted and ignored.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    scale: str | None = Field(None, description="Compression rates such as a4v2, a16, v5, or best; is not degraded.")
    budget_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="The finest scale that takes so long for a segment (up to 16 s) on an idle server."
    )
    policy: PolicyName | None = Field(
        None, description="auto: scales chosen by what is heard; fixed: never degraded; elastic: may be degraded."
    )


class CompareForm(FileForm):
    """A comparison."""

    scales: str = Field("all", description="Scales, separated by commas, or all.")


class Model(BaseModel):
    """A model, or a scale of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mtsk"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]
