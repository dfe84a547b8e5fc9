"""What every request passes first: who asks, how often, how much; and what every answer has: security headers, a line
in the log. Plain ASGI, so that nothing is read of a request that is refused, and streams pass through.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtsk.serving.errors import ApiError, overloaded
from mtsk.serving.logs import LOGGER, log
from mtsk.serving.metrics import Metrics

_MAX_CLIENTS = 10_000  # whose rate is remembered
_OPEN = ("/", "/health")  # without a key, as is the page
_PAGE = "/page/"
_LIMITED = "/v1/"
_SECURITY = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(self), microphone=(self)",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Keys:
    """The keys that open the server; without any it is open to all."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner_of(self, authorization: str | None) -> str | None:
        """Who holds the key of a header `Authorization`: a name that does not tell the key. None: nobody.

        Takes as long for a wrong key as for a right one.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.hex()[:8] if scheme.lower() == "bearer" and any(found) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class RateLimiter:
    """So many requests a minute of each client, all of them at once if the client likes.

    Args:
        per_minute: 0 for any number.
        clock: gives seconds.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = max(1.0, per_minute)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> requests left, at which time

    def wait_s(self, client: str) -> float:
        """Takes a request of a client; 0 if it is allowed, else when the next one will be."""
        if not self._per_second:
            return 0.0
        now_s = self._clock()
        left, since_s = self._left.pop(client, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._per_second)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._left[client] = (left if wait_s else left - 1, now_s)
        if len(self._left) > _MAX_CLIENTS:
            self._left.popitem(last=False)
        return wait_s


class Gate:
    """The middleware.

    Args:
        app: what it leads to.
        keys: who may pass.
        rate: how often.
        max_bytes: of a request.
        metrics: count answers.
        knock: gives the predicted wait if any request for work would be refused, so that it is not even read.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, rate: RateLimiter, max_bytes: int, metrics: Metrics,
        knock: Callable[[], float | None],
    ) -> None:  # fmt: skip
        self._app, self._keys, self._rate, self._max_bytes = app, keys, rate, max_bytes
        self._metrics, self._knock = metrics, knock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, request_id = time.monotonic(), uuid.uuid4().hex
        fields: dict[str, object] = {}
        scope.setdefault("state", {})["log"] = fields
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**_SECURITY, "x-request-id": request_id}.items():
                    headers[name] = value
            await send(message)

        try:
            await self._pass(scope, _Counted(receive, self._max_bytes), answer)
        except Exception:
            LOGGER.exception("a request failed")
            if not status:
                await ApiError(500, "the server failed; its log says why").response()(scope, receive, answer)
        finally:
            seconds = time.monotonic() - started_s
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            log(
                "request", id=request_id, method=scope["method"], path=scope["path"][:200], status=status,
                seconds=round(seconds, 4), **fields,
            )  # fmt: skip

    async def _pass(self, scope: Scope, receive: _Counted, send: Send) -> None:
        try:
            self._check(scope)
        except ApiError as error:
            # What the client is sending is read, within limits, or it might never see the answer.
            await receive.drain()
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if path in _OPEN or path.startswith(_PAGE):
            return
        client = scope["client"][0] if scope.get("client") else "unknown"
        if self._keys:
            owner = self._keys.owner_of(headers.get("authorization"))
            if owner is None:
                self._metrics.rejections.labels("key").inc()
                message = "no valid API key; send one as the header `Authorization: Bearer KEY`"
                error = ApiError(401, message, code="invalid_api_key")
                error.headers["www-authenticate"] = "Bearer"
                raise error
            client = owner
        if not path.startswith(_LIMITED):
            return
        wait_s = self._rate.wait_s(client)
        if wait_s:
            self._metrics.rejections.labels("rate").inc()
            raise ApiError(429, "too many requests of this client", code="rate_limit_exceeded", retry_after_s=wait_s)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max_bytes:
            self._metrics.rejections.labels("size").inc()
            message = f"the request has {int(length)} bytes; at most {self._max_bytes} are allowed"
            raise ApiError(413, message, code="too_large")
        full_s = self._knock() if scope["method"] == "POST" else None
        if full_s is not None and math.isfinite(full_s):
            self._metrics.rejections.labels("overload").inc()
            raise overloaded(full_s)


class _Counted:
    """A request's body, which may not become too large."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._is_read = False

    async def __call__(self) -> Message:
        """See ASGI."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)
            if self._num_bytes > self._max_bytes:  # parsers of bodies let this error pass
                raise HTTPException(413, f"the request is larger than {self._max_bytes} bytes")
        return message

    async def drain(self) -> None:
        """Reads what is left, within the limit."""
        while not self._is_read and self._num_bytes <= self._max_bytes:
            message = await self._receive()
            if message["type"] != "http.request":
                return
            self._num_bytes += len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)
