"""mtsk: elastic audio-visual speech recognition. One model, any compression rate, chosen per request.

import mtsk
model = mtsk.load()
print(model.transcribe("clip.mp4", scale="a4v2").text)
"""

from __future__ import annotations

from importlib.metadata import version as _version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtsk.scale import Scale, ScaleGrid

if TYPE_CHECKING:
    import torch

    from mtsk.inference.engine import Engine
    from mtsk.types import Transcript

__version__ = _version("mtsk")
__all__ = ["DEFAULT_MODEL", "Scale", "ScaleGrid", "Transcript", "load", "model_folder"]

DEFAULT_MODEL = "grid-s1"


def load(
    model: str | Path = DEFAULT_MODEL, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Engine:
    """Loads a model, ready to transcribe.

    Args:
        model: name of a model that comes with the package, or a checkpoint folder.
        device: default: an accelerator if there is one, else the processor.
        dtype: precision of the weights; default: bfloat16 where the device computes it, else float32.

    Raises:
        ValueError: if there is no such model, or its base weights can't be had.
    """
    from mtsk.inference.engine import Engine

    return Engine.load(model_folder(model), device=device, dtype=dtype)


def model_folder(model: str | Path) -> Path:
    """The checkpoint folder of a model.

    Raises:
        ValueError: if it is neither the name of a model that comes with the package nor a folder.
    """
    here = Path(__file__).parent
    homes = [home for home in (here / "models", here.parents[1] / "models") if home.is_dir()]
    for home in homes:
        if (home / model / "config.json").is_file():
            return home / model
    if Path(model).is_dir():
        return Path(model)
    names = sorted({path.parent.name for home in homes for path in home.glob("*/config.json")})
    allowed = f"a checkpoint folder, or one of: {', '.join(names)}" if names else "a checkpoint folder"
    raise ValueError(f"no model {str(model)!r}; allowed is {allowed}")


def __getattr__(name: str) -> Any:
    # Imported on first use: types need torch, and `mtsk --help` must not wait for it.
    if name == "Transcript":
        from mtsk.types import Transcript

        return Transcript
    raise AttributeError(f"module 'mtsk' has no attribute {name!r}")
