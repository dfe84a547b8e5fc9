"""`mtsk transcribe` writes while it reads: what is left of a process that was killed, and what its terminal shows.

The recording comes through a pipe that stays open, so that the process can't be done when it is killed.
"""

import contextlib
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mtsk.checkpoints.store import write_policy
from mtsk.config import AutoConfig, BandConfig, StepConfig
from mtsk.scale import Scale
from mtsk.types import SAMPLE_RATE_HZ
from tests.commands.conftest import write_sound
from tests.inference.readers import read_srt, read_vtt

_TIMEOUT_S = 240  # importing takes seconds, on a busy machine many
_PLAYED_S, _DECLARED_S = 600, 1000  # more than is read ahead, and less than there should be


def _start(*arguments: str | Path, stderr: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mtsk.cli", "transcribe", *map(str, arguments)]
    screen = os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=stderr, env=screen)


def _wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    end_s = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Path]:
    """A pipe with a long recording of noise that never comes to its end."""
    path, is_over = tmp_path / "talk.wav", threading.Event()
    os.mkfifo(path)
    num_bytes = 2 * SAMPLE_RATE_HZ * _DECLARED_S
    kind = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + num_bytes) + b"WAVEfmt " + kind + b"data" + struct.pack("<I", num_bytes)
    second = (3000 * np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ)).astype("<i2").tobytes()

    def play() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as pipe:
            pipe.write(head)
            for _ in range(_PLAYED_S):
                pipe.write(second)
            is_over.wait(_TIMEOUT_S)

    player = threading.Thread(target=play, daemon=True)
    player.start()
    yield path
    is_over.set()
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # lets a player go that nobody has listened to
    player.join(_TIMEOUT_S)


def _cues(folder: Path, name: str) -> list[list[tuple[int, int, str]]]:
    """Start, end and text of each document of one name; without documents nothing."""
    paths = {suffix: folder / f"talk.wav{name}.{suffix}" for suffix in ("srt", "vtt", "tsv")}
    if not all(path.exists() for path in paths.values()):
        return [[]]
    texts = {suffix: path.read_bytes().decode() for suffix, path in paths.items()}
    rows = [row.split("\t") for row in texts["tsv"].removesuffix("\n").split("\n")]
    assert rows[0] == ["start", "end", "text"]
    shown = [read_srt(texts["srt"]), read_vtt(texts["vtt"])]
    cues = [[(cue.start_ms, cue.end_ms, " ".join(cue.lines)) for cue in document] for document in shown]
    return [*cues, [(int(start), int(end), text) for start, end, text in rows[1:]]]


def _check(folder: Path, name: str, num_at_least: int) -> None:
    """Each document is valid, and as long as was seen before; the last cue may lack in some."""
    documents = _cues(folder, name)
    lengths = [len(document) for document in documents]
    assert min(lengths) >= num_at_least
    assert max(lengths) - min(lengths) <= 1
    for document in documents:
        edges = [edge for start, end, _ in document for edge in (start, end)]
        assert edges == sorted(edges)
        assert document[-1][1] > 1000 * 16 * (num_at_least - 1) / 2, "segments are about 16 s"
        times = [cue[:2] for cue in document[: min(lengths)]]
        assert times == [cue[:2] for cue in documents[0][: min(lengths)]]


@pytest.mark.parametrize(
    ("options", "names"),
    [(["--scale", "a4"], [""]), (["--scale", "a4", "a16"], [".a4", ".a16"]), (["--policy", "auto"], [""])],
    ids=["one scale", "several scales", "a policy"],
)
def test_what_a_killed_process_has_written(
    checkpoint: Path, endless: Path, tmp_path: Path, options: list[str], names: list[str]
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "own"))
    write_policy(model, AutoConfig((BandConfig((StepConfig(Scale(16), 2.0), StepConfig(Scale(4)))),)))
    out = tmp_path / "out"
    arguments: list[str | Path] = [endless, "--no-vad", "--model", model, "-f", "all", "-o", out, *options]
    with _start(*arguments, stderr=subprocess.PIPE) as process:
        seen = 0
        for _ in range(2):  # it appears, and it grows
            wanted = seen + 1
            _wait_until(lambda: all(len(_cues(out, name)[-1]) >= wanted for name in names), process)  # noqa: B023
            seen = min(len(_cues(out, name)[-1]) for name in names)
        process.kill()
        told = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL
    assert told == ("", ""), "no progress in pipes"
    for name in names:
        _check(out, name, seen - 1)
    lines = (out / "talk.wav.txt").read_bytes().decode().removesuffix("\n").split("\n")
    assert len(lines) >= len(names) * (seen - 1)
    if len(names) > 1:
        assert {line.split("\t")[0] for line in lines} == {"a4", "a16"}
    assert not (out / "talk.wav.json").exists()


def test_a_terminal_shows_the_progress(checkpoint: Path, tmp_path: Path) -> None:
    long, short = write_sound(tmp_path / "long.wav", 31.0), write_sound(tmp_path / "short.wav", 3.0)
    screen, its_end = pty.openpty()
    arguments: list[str | Path] = [short, long, "--no-vad", "--model", checkpoint, "--scale", "a4"]
    with _start(*arguments, stderr=its_end) as process:
        os.close(its_end)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
            while part := os.read(screen, 65536):
                shown += part
        out, _ = process.communicate(timeout=_TIMEOUT_S)
    os.close(screen)
    assert process.returncode == 0
    text = shown.decode()
    assert "short.wav" not in text
    for each in ("long.wav", " of 0:31, ", " x real time, ", " left"):
        assert each in text
    assert "\x1b" not in out
    assert len(out.splitlines()) == 4  # a title and a row each
