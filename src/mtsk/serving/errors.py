"""Errors as OpenAI's API reports them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error"}
_TYPES |= {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is no success.

    Args:
        status: of HTTP.
        message: for people; says what was given and what is allowed.
        param: the field at fault.
        code: for programs.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(
            error=ErrorDetail(message=message, type=_TYPES.get(status, "invalid_request_error"), param=param, code=code)
        )
        self.headers = {} if retry_after_s is None else {"retry-after": str(max(1, math.ceil(retry_after_s)))}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body.model_dump(), self.status, {**self.headers, **(headers or {})})


def overloaded(wait_s: float) -> ApiError:
    """The queue is full; `wait_s` is how long it would take to be served."""
    message = f"the server is busy: a request would wait {wait_s:.1f} s; try again later"
    return ApiError(429, message, code="overloaded", retry_after_s=wait_s)


def add_handlers(app: FastAPI) -> None:
    """Gives all errors of an application this shape."""

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"{HTTPStatus(error.status_code).phrase}; see /openapi.json for what there is"
        return ApiError(error.status_code, message).response(error.headers)

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(error.errors()).response()

    async def on_bug(_: Request, error: Exception) -> Response:
        del error  # the server's log has it
        return ApiError(500, "the server failed; its log says why").response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_bug)


def _invalid(problems: Sequence[Any]) -> ApiError:
    """The first problem that validation found, the field named as the client named it."""
    first = problems[0]
    names = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    param = names[0] if names else None
    message = str(first.get("msg", "invalid"))
    return ApiError(
        400, f"{param}: {message}" if param else message, param=param, code=str(first.get("type", "invalid"))
    )
