"""A tiny model as a checkpoint folder, clips with and without a face, and the command run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import mtsk
from mtsk import cli
from mtsk.checkpoints.store import save_model
from mtsk.inference.engine import Engine
from mtsk.media.vad import SpeechDetector
from mtsk.scale import ScaleGrid
from mtsk.types import SAMPLE_RATE_HZ
from tests.media.clips import Kind, load_frames, write_clip
from tests.shared import shared_data
from tests.tiny import save_tiny_bases, tiny_model

GRID = ScaleGrid.joint((4, 16), (2, 5))
MP4 = Kind("mp4", "libx264", "aac", rate_hz=44_100)
DURATION_S = 1.6  # the tone of `write_clip` begins at 1.2 s


@dataclass(frozen=True)
class Result:
    """What a user sees of a run."""

    code: int | str | None
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Of standard output."""
        return self.out.splitlines()

    @property
    def errors(self) -> list[str]:
        """Lines of standard error."""
        return self.err.splitlines()


Run = Callable[..., Result]


class HearsSpeech(SpeechDetector):
    """Takes any sound for speech: the clips here hold tones and noise."""

    def feed(self, samples_N: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ones_like(super().feed(samples_N))

    def finish(self) -> NDArray[np.float32]:
        return np.ones_like(super().finish())


@pytest.fixture(autouse=True)
def _hears_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("engine", "policy_run"):
        monkeypatch.setattr(f"mtsk.inference.{module}.SpeechDetector", HearsSpeech)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(tiny_model(scales=GRID, sources=save_tiny_bases(folder)), folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    """The same model through the Python API."""
    return mtsk.load(checkpoint)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `mtsk` in this process. What libraries in C write to the process's streams is seen too."""

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["mtsk", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Result(ended.value.code, out, err)

    return run


@pytest.fixture
def transcribe(run: Run, checkpoint: Path) -> Run:
    """Runs `mtsk transcribe` with the tiny model."""
    return lambda *arguments: run("transcribe", *arguments, "--model", checkpoint)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file that any of the tests may read."""
    return write_sound(tmp_path_factory.mktemp("sound") / "good.wav")


@pytest.fixture(scope="session")
def face_frames() -> list[NDArray[np.uint8]]:
    """Pictures of a person who talks, RGB at 25 a second."""
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.mp4"))
    path = examples[0] if examples else sorted((shared_data("grid") / "s1").glob("*.mp4"))[0]
    return load_frames(path)[: round(DURATION_S * 25)]


def write_sound(path: Path, duration_s: float = 1.0, level: float = 0.1) -> Path:
    """Noise; with a level of 0, digital silence."""
    noise = np.random.default_rng(0).standard_normal(round(duration_s * SAMPLE_RATE_HZ))
    soundfile.write(path, level * noise, SAMPLE_RATE_HZ, subtype="PCM_16")
    return path


def write_face(path: Path, frames: list[NDArray[np.uint8]], kind: Kind = MP4, rotation: int = 0) -> Path:
    """A clip of the person in the frames, which is stored turned if `rotation` says so to the player."""
    stored = [np.ascontiguousarray(np.rot90(frame, -rotation // 90)) for frame in frames]

    def picture(time_s: float) -> NDArray[np.uint8]:
        return stored[min(round(time_s * 25), len(stored) - 1)]

    return write_clip(path, kind, duration_s=DURATION_S, picture=picture, rotation=rotation)
