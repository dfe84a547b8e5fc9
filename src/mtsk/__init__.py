"""mtsk: elastic audio-visual speech recognition. One model, any compression rate, chosen per request.

import mtsk
model = mtsk.load()
print(model.transcribe("clip.mp4", scale="a4v2").text)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as _version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from mtsk.scale import Scale, ScaleGrid

if TYPE_CHECKING:
    import torch

    from mtsk.inference.engine import Engine
    from mtsk.model.avsr import AvsrModel
    from mtsk.types import Transcript

__version__ = _version("mtsk")
__all__ = [
    "DEFAULT_MODEL",
    "Scale",
    "ScaleGrid",
    "Transcript",
    "from_pretrained",
    "load",
    "model_folder",
    "push_to_hub",
    "save_pretrained",
]

DEFAULT_MODEL = "grid-s1"

# How an engine's model was trained: the folder that it was loaded from knows, the model does not.
_FOLDERS: WeakKeyDictionary[Engine, Path] = WeakKeyDictionary()


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["int8"] | None = None,
    revision: str | None = None,
) -> Engine:
    """Loads a model, ready to transcribe.

    Args:
        model: name of a model that comes with the package, a checkpoint folder, or an id on the Hugging Face hub
            (owner/name). Tried in that order.
        device: default: an accelerator if there is one, else the processor.
        dtype: precision of the weights; default: bfloat16 where the device computes it, else float32. `int8`: the
            default, but 8-bit integers for the language model, on processors.
        revision: branch, tag or commit on the hub; default: the newest.

    Raises:
        ValueError: if there is no such model, or its base weights can't be had; or if the model or the device is not
            made for int8.
    """
    from mtsk.inference.engine import Engine

    folder = model_folder(model, revision=revision)
    engine = Engine.load(folder, device=device, dtype=dtype)
    _FOLDERS[engine] = folder
    return engine


from_pretrained = load
"""`load`, by the name that the hub's libraries have for it."""


def save_pretrained(
    model: Engine | str | Path,
    folder: str | Path,
    *,
    license: str | None = None,
    wer: str | Path | None = None,
    data: str | None = None,
    base: Mapping[str, str] | None = None,
) -> None:
    """Writes a model to share: a checkpoint that `load` opens, and a model card, README.md. Nothing in it is pickled;
    base weights are named, not included.

    Args:
        model: an engine, or what `load` takes. A model that is not in memory is copied as it is.
        folder: is made if missing; what was saved there before is replaced.
        license: of the trained weights, as the hub writes it, such as `cc-by-4.0`; default: the card states none.
        wer: a `wer.json` of `mtsk evaluate`, or the folder that has it, for the card.
        data: what these error rates were measured on.
        base: other names for base weights: local folder -> hub id, or the folder that others will have them in.

    Raises:
        ValueError: if there is no such model, or something of the rest can't be; nothing is written then.
    """
    from mtsk.checkpoints import share
    from mtsk.checkpoints.card import Card

    source, training = _source(model)
    card = Card(Path(folder).resolve().name, license, None if wer is None else Path(wer), data)
    share.save(source, Path(folder), card, base=base, training=training)


def push_to_hub(
    model: Engine | str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    wer: str | Path | None = None,
    data: str | None = None,
    base: Mapping[str, str] | None = None,
    private: bool | None = None,
) -> str:
    """Sends to the Hugging Face hub what `save_pretrained` writes. A card that is there is replaced.

    Args:
        model: as of `save_pretrained`, as are `license`, `wer`, `data`, `base`.
        repo_id: owner/name; is made if missing.
        private: whether a new repository is private; default: as the account says.

    Returns:
        The address of the commit.

    Raises:
        ValueError: as `save_pretrained`; if base weights are a local folder that `base` does not map; if the hub
            refuses, or is out of reach.
    """
    from mtsk.checkpoints import share
    from mtsk.checkpoints.card import Card

    source, training = _source(model)
    card = Card(repo_id, license, None if wer is None else Path(wer), data)
    return share.push(source, card, base=base, training=training, private=private)


def _source(model: Engine | str | Path) -> tuple[AvsrModel | Path, dict[str, Any] | None]:
    """What `share` takes: a folder; or a model in memory, and how it was trained."""
    if isinstance(model, str | Path):
        return model_folder(model), None
    from mtsk.checkpoints.store import CONFIG_FILE, read_record

    folder = _FOLDERS.get(model)
    known = folder is not None and (folder / CONFIG_FILE).is_file()
    return model.model, read_record(folder).training if folder is not None and known else None


def model_folder(model: str | Path, *, revision: str | None = None) -> Path:
    """The checkpoint folder of a model; one on the Hugging Face hub is downloaded.

    Raises:
        ValueError: if it is neither the name of a model that comes with the package, nor a folder, nor on the hub.
    """
    here = Path(__file__).parent
    homes = [home for home in (here / "models", here.parents[1] / "models") if home.is_dir()]
    for home in homes:
        if (home / model / "config.json").is_file():
            return home / model
    if Path(model).is_dir():
        return Path(model)
    if isinstance(model, str) and "/" in model:
        from mtsk.checkpoints import card, share

        if card.is_hub_id(model):
            return share.fetch(model, revision)
    names = sorted({path.parent.name for home in homes for path in home.glob("*/config.json")})
    ours = f", or one of: {', '.join(names)}" if names else ""
    raise ValueError(f"no model {str(model)!r}; allowed is a checkpoint folder, a hub id owner/name{ours}")


def __getattr__(name: str) -> Any:
    # Imported on first use: types need torch, and `mtsk --help` must not wait for it.
    if name == "Transcript":
        from mtsk.types import Transcript

        return Transcript
    raise AttributeError(f"module 'mtsk' has no attribute {name!r}")
