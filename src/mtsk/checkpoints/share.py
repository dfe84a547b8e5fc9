"""Models to share: a folder with a model card; to the Hugging Face hub, and from it. Base weights are never sent."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, snapshot_download

from mtsk.checkpoints.card import MARK, Card, hub_id_of
from mtsk.checkpoints.store import CONFIG_FILE, WEIGHTS_FILE, Record, base_sources, read_record, save_model
from mtsk.checkpoints.wheels import FetchError
from mtsk.model.avsr import AvsrModel

CARD_FILE = "README.md"
_FILES = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
# What the hub's client raises: its own errors, those of its HTTP library, and those of the system.
_HUB_ERRORS = (errors.HTTPError, errors.HFValidationError, OSError)  # type: ignore[attr-defined]


def save(
    model: AvsrModel | Path,
    folder: Path,
    card: Card,
    *,
    base: Mapping[str, str] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Writes `config.json`, `model.safetensors` and a model card.

    Args:
        model: one in memory, or a checkpoint folder, whose weights are copied as they are.
        folder: is made if missing; what was saved there before is replaced.
        card: what the checkpoint does not know.
        base: other names for base weights: local folder -> hub id, or the folder that others will have them in.
        training: how a model in memory was trained. A folder knows.

    Raises:
        ValueError: if the model is no checkpoint, `base` names no base weights of it, the card's `wer.json` is none, or
            the folder has a README.md that was not written here.
    """
    base = dict(base or {})
    # What can't be written is found before anything is.
    card.text(read_record(model) if isinstance(model, Path) else Record(model.config, {}, training or {}))
    _check_names(model, base)
    readme = folder / CARD_FILE
    if readme.is_file() and MARK not in readme.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{readme} is not a card written by mtsk; move it away, or choose another folder")
    if not isinstance(model, Path):
        save_model(model, folder, training=training)
    elif folder.resolve() != model.resolve():
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copyfile(model / name, folder / name)
    _rename(folder / CONFIG_FILE, base)
    readme.write_text(card.text(read_record(folder)), encoding="utf-8")


def push(
    model: AvsrModel | Path,
    card: Card,
    *,
    base: Mapping[str, str] | None = None,
    training: dict[str, Any] | None = None,
    private: bool | None = None,
) -> str:
    """Sends a model to the Hugging Face hub, to the repository that is the card's title.

    The token is that of `hf auth login`, or of the variable HF_TOKEN.

    Args:
        model: see `save`, as are `base` and `training`.
        private: whether a new repository is private; default: as the account says.

    Returns:
        The address of the commit.

    Raises:
        ValueError: as `save`; if base weights are a local folder without another name; if the hub refuses, or is out of
            reach.
    """
    base = dict(base or {})
    local = [s for s in _sources(model) if s not in base and hub_id_of(s) is None]
    if local:
        raise ValueError(
            f"base weights {', '.join(local)} are a local folder, which others do not have; "
            "give `base`, which maps it to a hub id, or to the name of the folder that they will put them in"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(model, folder, card, base=base, training=training)
        try:
            api = HfApi()
            api.create_repo(card.title, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=card.title, folder_path=folder, allow_patterns=_FILES, commit_message="Model of mtsk"
            )
        except _HUB_ERRORS as error:
            raise ValueError(f"{card.title} could not be sent to the Hugging Face hub: {_line(error)}") from error
    return str(commit)


def fetch(hub_id: str, revision: str | None = None) -> Path:
    """A checkpoint folder from the Hugging Face hub, or from the hub's cache where there is no network.

    Args:
        hub_id: owner/name.
        revision: branch, tag or commit; default: the newest.

    Raises:
        FetchError: in one line, if it can't be had.
    """
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_FILES))
    except errors.LocalEntryNotFoundError as error:
        reason = "the Hugging Face hub can't be reached, and its cache does not have it"
        raise FetchError(f"no model {hub_id!r}: there is no such folder, and {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = "the Hugging Face hub has no such model, or it is private"
        raise FetchError(f"no model {hub_id!r}: there is no such folder, and {reason}") from error
    except _HUB_ERRORS as error:
        raise FetchError(f"no model {hub_id!r}: there is no such folder, and on the hub: {_line(error)}") from error


def _sources(model: AvsrModel | Path) -> tuple[str, ...]:
    return base_sources(read_record(model).model if isinstance(model, Path) else model.config)


def _check_names(model: AvsrModel | Path, base: Mapping[str, str]) -> None:
    sources = _sources(model)
    odd = [source for source in base if source not in sources]
    if odd:
        raise ValueError(f"base names {', '.join(odd)}; the base weights of this model are {', '.join(sources)}")
    fixed = [name for name in base.values() if not name or name.startswith((".", "~")) or Path(name).is_absolute()]
    if fixed:
        raise ValueError(f"base gives the name {fixed[0]!r}; allowed is a hub id owner/name, or a relative folder")


def _rename(path: Path, base: Mapping[str, str]) -> None:
    """Gives base weights other names in a `config.json`, and takes local paths out of the record of training."""
    record = json.loads(path.read_text(encoding="utf-8"))
    renamed = _replaced(record, base)
    renamed["training"] = _without_paths(renamed.get("training"))
    if renamed != record:
        path.write_text(json.dumps(renamed, indent=2) + "\n", encoding="utf-8")


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _without_paths(value: Any) -> Any:
    """Of an absolute path only its last part: the rest says something of a machine, and nothing of the model."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _line(error: Exception) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
