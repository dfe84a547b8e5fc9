"""The command as a process of its own: its streams, a reader that leaves, and Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtsk.types import FaceModels
from tests.commands.conftest import write_face

_TIMEOUT_S = 240  # importing takes seconds, on a busy machine many
_MANY = 500  # more files than are done before a signal arrives


def start(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mtsk.cli", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **streams)


def test_a_good_and_a_bad_file(
    checkpoint: Path, tmp_path: Path, face_models: FaceModels, face_frames: list[NDArray[np.uint8]]
) -> None:
    """Libraries write nothing of their own, as some do where Python does not see it, once in a process."""
    clip, bad = write_face(tmp_path / "clip.mp4", face_frames), tmp_path / "letter.mp4"
    bad.write_text("dear")
    with start("transcribe", bad, clip, "--no-vad", "--model", checkpoint, "--scale", "all", "-f", "json") as process:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == 1
    assert len(out.splitlines()) == 1
    assert err.splitlines() == [line for line in err.splitlines() if line.startswith(f"mtsk: error: {bad}: ")]
    assert len(err.splitlines()) == 1


def test_the_reader_leaves(checkpoint: Path, sound: Path) -> None:
    """As behind `| head -1`."""
    with start("transcribe", *[sound] * _MANY, "--no-vad", "--model", checkpoint, "-f", "json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("{")
        process.stdout.close()
        assert process.wait(_TIMEOUT_S) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""


def test_nobody_reads_the_help() -> None:
    read, write = os.pipe()
    os.close(read)
    with start("transcribe", "--help", stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=_TIMEOUT_S)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")


def test_interrupted(checkpoint: Path, sound: Path) -> None:
    with start("transcribe", *[sound] * _MANY, "--no-vad", "--model", checkpoint, "-f", "json") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=_TIMEOUT_S)
    assert (process.returncode, err) == (128 + signal.SIGINT, "mtsk: interrupted\n")
