"""Clients that go, and a server that is stopped under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from mtsk.checkpoints.store import save_model
from mtsk.serving.settings import Settings
from tests.commands.conftest import GRID
from tests.serving.conftest import WAIT_S, listening
from tests.tiny import save_tiny_bases, tiny_model

ROUTE = "/v1/audio/transcriptions"
_NUM_ASKING = 24


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def own_address() -> Iterator[str]:
    """Of a server that no other test disturbs."""
    with listening(Settings(default="best", max_wait_s=1e6, target_wait_s=1e6)) as address:
        yield address


def number(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics", timeout=WAIT_S).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def send(address: str, path: Path) -> socket.socket:
    """A request of which nobody reads the answer."""
    body = (
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + path.read_bytes()
        + b"\r\n--x--\r\n"
    )
    kind = "multipart/form-data; boundary=x"
    lines = [f"POST {ROUTE} HTTP/1.1", "host: a", f"content-type: {kind}", f"content-length: {len(body)}", "", ""]
    head = "\r\n".join(lines)
    host, _, port = address.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(head.encode() + body)
    return client


def test_what_nobody_waits_for_is_given_up(own_address: str, long_sound: Path, sound: Path) -> None:
    clients = [send(own_address, long_sound) for _ in range(20)]
    until(lambda: number(own_address, "mtsk_requests_running") + number(own_address, "mtsk_requests_waiting") > 0)
    for client in clients:
        client.close()
    until(lambda: number(own_address, 'mtsk_cancellations_total{reason="disconnect"}') >= 20)
    assert number(own_address, "mtsk_requests_running") + number(own_address, "mtsk_requests_waiting") == 0
    with sound.open("rb") as file:
        assert httpx.post(f"{own_address}{ROUTE}", files={"file": file}, timeout=WAIT_S).status_code == 200


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(tiny_model(scales=GRID, sources=save_tiny_bases(folder)), folder / "checkpoint")
    return folder / "checkpoint"


def test_stopped_under_load(checkpoint: Path) -> None:
    """Every request that was accepted is answered; the process ends by itself, as one that succeeded."""
    clip = sorted((Path(__file__).parents[2] / "examples").glob("*.mp4"))[0]
    command = [sys.executable, "-m", "mtsk.cli", "serve", str(checkpoint), "--port", "0", "--default", "a4"]
    limits = {"MTSK_MAX_WAIT_S": "1e6", "MTSK_TARGET_WAIT_S": "1e6", "MTSK_TIMEOUT_S": str(WAIT_S)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **limits}) as process:
        try:
            assert process.stderr is not None
            events = (json.loads(line) for line in process.stderr)
            port = next(each["port"] for each in events if each["event"] == "listening")
            next(each for each in events if "startup complete" in each["event"])
            address = f"http://127.0.0.1:{port}"
            until(lambda: listens(port))  # a moment later

            def ask() -> httpx.Response:
                with clip.open("rb") as file:
                    return httpx.post(f"{address}{ROUTE}", files={"file": file}, timeout=WAIT_S)

            with ThreadPoolExecutor(_NUM_ASKING) as pool:
                answers = [pool.submit(ask) for _ in range(_NUM_ASKING)]
                for _ in range(_NUM_ASKING // 4):  # some are answered, many are not
                    next(each for each in events if each["event"] == "request" and each["path"] == ROUTE)
                process.send_signal(signal.SIGTERM)
                threading.Thread(target=lambda: list(events), daemon=True).start()
                wait(answers)
            # Connections that came too late are refused; none that was accepted is cut off.
            errors = [answer.exception() for answer in answers if answer.exception()]
            assert all(isinstance(error, httpx.ConnectError) for error in errors)
            accepted = [answer.result() for answer in answers if not answer.exception()]
            assert len(accepted) >= _NUM_ASKING // 4
            assert {answer.status_code for answer in accepted} == {200}
            assert all(answer.json()["text"] for answer in accepted)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
