"""`mtsk export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mtsk
from mtsk.checkpoints.peft_export import PARTS_WEIGHTS, export_peft
from mtsk.checkpoints.store import read_record


def _peft(source: Path, target: Path, scales: Sequence[str]) -> None:
    chosen = read_record(source).model.grid.select(scales)
    for scale, folder in export_peft(source, target, chosen).items():
        print(f"{scale!s:<8} {folder}")
    print(f"projectors and delimiters: {target / PARTS_WEIGHTS}; how they fit: {target / 'README.md'}")


KINDS: dict[str, Callable[[Path, Path, Sequence[str]], None]] = {"peft": _peft}


def run(kind: str, model: str, target: Path, scales: Sequence[str]) -> int:
    """Writes a model in others' formats. Returns the exit code.

    Args:
        kind: `peft`, adapters of the language model.
        model: name of a model, checkpoint folder, or hub id.
        target: folder to write.
        scales: some of the trained scales, or `all`.

    Raises:
        ValueError: if there is no such model or scale, or something else is in the folder.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} given; allowed: {', '.join(KINDS)}")
    KINDS[kind](mtsk.model_folder(model), target, scales)
    return 0
