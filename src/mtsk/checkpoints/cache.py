"""The cache folder of base weights: built whole or not at all, and checked before use."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

MANIFEST = "manifest.json"
FORMAT = 1  # raise it when what is put into the folders changes
MEND = "delete that folder and run `python -m mtsk.checkpoints.sources`"
_STALE_S = 6 * 3600.0  # no conversion takes that long: its process was killed


class CacheError(ValueError):
    """A folder in the cache is not what was put there."""


def cache_dir() -> Path:
    """The cache folder: `MTSK_CACHE`, else `mtsk` in the place the system keeps for caches."""
    if override := os.environ.get("MTSK_CACHE"):
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mtsk"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; read once per process while size and time of the file stay."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - they are part of the key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(folder: Path, identity: str, fill: Callable[[Path], None]) -> Path:
    """Make a cache folder unless it is there: all of it appears at once, or nothing does.

    Another process that builds the same folder is waited for.

    Args:
        folder: where it shall be.
        identity: what the content was made from; kept in the manifest.
        fill: writes the content into the folder that it is given.

    Returns:
        `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.exists():
            return folder
        _sweep(folder.parent, f".{folder.name}-")
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True
        ) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            fill(made)
            _seal(made, identity)
            made.rename(folder)
    return folder


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed processes left behind."""
    for path in parent.glob(f"{prefix}*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _STALE_S:
            shutil.rmtree(path, ignore_errors=True)


def _seal(folder: Path, identity: str) -> None:
    """Write the manifest and make everything durable, so that a name in the cache stands for content on the disk."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    files = {path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
    manifest = folder / MANIFEST
    manifest.write_text(
        json.dumps({"format": FORMAT, "identity": identity, "files": files}, indent=1), encoding="utf-8"
    )
    for path in [*paths, manifest]:
        path.chmod(0o644)  # safetensors makes files that only their owner may read
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def verify(folder: Path) -> str:
    """Check every file of a cache folder by size and SHA-256; hashes once per process and state of a file.

    Returns:
        The identity of the content, as given to `build`.

    Raises:
        CacheError: a file is missing or changed; says which, where, and how to mend it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found_format, identity = int(manifest["format"]), str(manifest["identity"])
        entries = [(name, int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"no readable {MANIFEST} in {folder} ({error!r}); {MEND}") from error
    if found_format != FORMAT:
        raise CacheError(f"{folder} has format {found_format}, this version of mtsk reads {FORMAT}; {MEND}")
    for name, size, sha256 in entries:
        path = folder / name
        if not path.is_file():
            raise CacheError(f"{name} is missing in {folder}; {MEND}")
        if path.stat().st_size != size:
            raise CacheError(f"{name} in {folder} has {path.stat().st_size} bytes, not {size}; {MEND}")
        if file_sha256(path) != sha256:
            raise CacheError(f"{name} in {folder} is damaged: its SHA-256 is not {sha256}; {MEND}")
    return identity
