"""The cache folder: all or nothing, and damage is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtsk.checkpoints import cache


def _fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"0123456789")
    (folder / "config").write_bytes(b"{}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cache.build(tmp_path / "model", "abc", _fill)


def _visible(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if not entry.name.endswith(".lock"))


def test_what_was_built_is_there_and_passes(folder: Path) -> None:
    assert _visible(folder) == ["config", cache.MANIFEST, "weights"]
    assert _visible(folder.parent) == ["model"]
    assert cache.verify(folder) == "abc"


def test_a_folder_that_is_there_is_not_built_again(folder: Path) -> None:
    def never(_: Path) -> None:
        raise AssertionError

    assert cache.build(folder, "other", never) == folder
    assert cache.verify(folder) == "abc"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted(folder: Path) -> None:
        _fill(folder)
        raise error

    with pytest.raises(error):
        cache.build(tmp_path / "model", "abc", interrupted)
    assert _visible(tmp_path) == []
    cache.build(tmp_path / "model", "abc", _fill)
    assert cache.verify(tmp_path / "model") == "abc"


def test_a_killed_build_leaves_no_folder_and_is_swept_later(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from mtsk.checkpoints import cache\n"
        "def fill(folder):\n"
        "    (folder / 'weights').write_bytes(b'half')\n"
        "    os._exit(9)\n"
        "cache.build(pathlib.Path(sys.argv[1]), 'abc', fill)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], check=False).returncode == 9
    (left,) = _visible(tmp_path)
    assert left.startswith(".model-")
    os.utime(tmp_path / left, (time.time() - 1e5,) * 2)
    cache.build(tmp_path / "model", "abc", _fill)
    assert _visible(tmp_path) == ["model"]


def test_two_processes_build_once(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from mtsk.checkpoints import cache\n"
        "def fill(folder):\n"
        "    with open(sys.argv[2], 'a') as log:\n"
        "        log.write('x')\n"
        "    time.sleep(0.3)\n"
        "    (folder / 'weights').write_bytes(b'0123456789')\n"
        "cache.build(pathlib.Path(sys.argv[1]), 'abc', fill)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "x"
    assert cache.verify(tmp_path / "model") == "abc"


def _flip(path: Path) -> None:
    path.write_bytes(b"0123456780")
    os.utime(path, ns=(0, 0))  # this test may be quicker than the clock of the file system


def _cut(path: Path) -> None:
    path.write_bytes(b"0123")


@pytest.mark.parametrize(
    ("damage", "said"), [(_flip, "is damaged"), (_cut, "has 4 bytes, not 10"), (Path.unlink, "is missing")]
)
def test_damage_is_named_with_place_and_mend(folder: Path, damage: object, said: str) -> None:
    assert callable(damage)
    cache.verify(folder)
    damage(folder / "weights")
    with pytest.raises(cache.CacheError) as caught:
        cache.verify(folder)
    for part in ("weights", str(folder), said, "delete that folder and run"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"format": 1, "identity": "a"}'])
def test_a_damaged_manifest_is_named(folder: Path, content: bytes) -> None:
    (folder / cache.MANIFEST).write_bytes(content)
    with pytest.raises(cache.CacheError, match=r"no readable manifest\.json"):
        cache.verify(folder)


def test_another_format_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    with pytest.raises(cache.CacheError, match="has format 1"):
        cache.verify(folder)


def test_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTSK_CACHE", str(tmp_path))
    assert cache.cache_dir() == tmp_path
    monkeypatch.delenv("MTSK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.cache_dir() == tmp_path / "xdg" / "mtsk"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == tmp_path / "home" / ".cache" / "mtsk"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_dir() == tmp_path / "home" / "Library" / "Caches" / "mtsk"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.cache_dir() == tmp_path / "local" / "mtsk"
