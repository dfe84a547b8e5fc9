"""A tiny model that is calibrated and has character heads, files to send, and a server that listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn

from mtsk.config import AutoConfig, BandConfig, CtcConfig, StepConfig
from mtsk.inference.engine import Engine
from mtsk.scale import Scale
from mtsk.serving.app import create_app
from mtsk.serving.settings import Settings
from tests.commands.conftest import GRID, HearsSpeech, face_frames, write_sound
from tests.tiny import tiny_model

__all__ = ["face_frames"]

# Sound is read at a16, and never sure enough to be left there.
AUTO = AutoConfig((BandConfig((StepConfig(Scale(16), 2.0), StepConfig(Scale(4, 2)))),), "made up")
WAIT_S = 120  # on a busy machine much takes long


def tiny_engine() -> Engine:
    """Writes nonsense, but always the same: in double precision, as nonsense is full of near ties."""
    model = tiny_model(scales=GRID)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_ctc(CtcConfig(hidden=8, num_layers=1, kernel=3))
    return Engine(model, dtype=torch.float64, auto=AUTO)


@pytest.fixture(autouse=True)
def _hears_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("inference.engine", "inference.policy_run", "serving.reading"):
        monkeypatch.setattr(f"mtsk.{module}.SpeechDetector", HearsSpeech, raising=False)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """For what the server's answers are compared with."""
    return tiny_engine()


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of noise."""
    return write_sound(tmp_path_factory.mktemp("sound") / "good.wav")


@pytest.fixture(scope="session")
def long_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several segments."""
    return write_sound(tmp_path_factory.mktemp("sound") / "long.wav", duration_s=50.0)


@contextmanager
def listening(settings: Settings) -> Iterator[str]:
    """A server with a tiny model in a thread; its address."""
    config = uvicorn.Config(create_app(tiny_engine(), settings), port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    try:
        until_s = time.monotonic() + WAIT_S
        while not server.started and time.monotonic() < until_s:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a server that is never too busy."""
    with listening(Settings(default="best", max_wait_s=1e6, target_wait_s=1e6, timeout_s=WAIT_S)) as address:
        yield address
