"""Requests made up from the server's own description: whatever is sent, it is the sender's fault, not the server's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.core.result import Ok

from tests.serving.conftest import WAIT_S

Operation = APIOperation[Any, Any, Any, Any]
_CALM = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[*HealthCheck],  # what is made up is slow, and large
)
_NAMES = ("model", "scale", "scales", "language")  # few of them are known
_ROUTES = ("/v1/audio/transcriptions", "/v1/mtsk/compare", "/v1/mtsk/mouth")


@pytest.fixture(scope="module")
def operations(address: str) -> list[Operation]:
    """All that the server describes."""
    description = schemathesis.openapi.from_url(f"{address}/openapi.json")
    return [each.ok() for each in description.get_all_operations() if isinstance(each, Ok)]


def cases(operation: Operation) -> Iterator[Any]:
    """Strategies: what the description allows, and, where there is something to say, what it does not."""
    modes = GenerationMode if operation.body else [GenerationMode.POSITIVE]
    return (operation.as_strategy(generation_mode=mode) for mode in modes)


def check(case: Case[Any]) -> int:
    """Not a server's error, and what fails says why in OpenAI's shape. Returns the status."""
    response = case.call(timeout=WAIT_S)
    assert response.status_code < 500, response.text
    # To what is no request of HTTP the server under the application answers.
    if response.status_code >= 400 and "x-request-id" in response.headers:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.status_code


def test_whatever_is_sent(operations: list[Operation]) -> None:
    assert {operation.path for operation in operations} > set(_ROUTES)
    for operation in operations:
        for strategy in cases(operation):

            @_CALM
            @given(case=strategy)
            def send(case: Case[Any]) -> None:
                check(case)

            send()


@pytest.mark.parametrize("route", _ROUTES)
def test_sound_with_whatever_fields(operations: list[Operation], route: str, sound: Path) -> None:
    """A file that can be read, so that the other fields count."""
    [operation] = (each for each in operations if each.path == route)
    statuses = set()
    for strategy in cases(operation):

        @_CALM
        @given(case=strategy, is_named=strategies.booleans())
        def send(case: Case[Any], is_named: bool) -> None:
            if isinstance(case.body, dict):
                body: dict[str, Any] = {**case.body, "file": sound.read_bytes()}
                case.body = {name: value for name, value in body.items() if is_named or name not in _NAMES}
            statuses.add(check(case))

        send()
    assert 400 in statuses
    assert (200 in statuses) == (route != "/v1/mtsk/mouth")  # which wants pictures
