"""`mtsk convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _avhubert(source: Path, target: Path) -> None:
    from mtsk.checkpoints import avhubert

    shape = avhubert.convert(source, target)
    order = "before" if shape.norm_first else "after"
    print(f"AV-HuBERT: {shape.num_layers} layers, width {shape.width}, {shape.num_heads} heads, normalised {order}")


KINDS: dict[str, Callable[[Path, Path], None]] = {"avhubert": _avhubert}


def run(kind: str, source: Path, target: Path) -> int:
    """Converts others' weights to a folder that a configuration can name. Returns the exit code.

    Args:
        kind: of the source: `avhubert`, a fairseq checkpoint of AV-HuBERT.
        source: file of the kind.
        target: folder to write.

    Raises:
        ValueError: an unknown kind, or a source of another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} given; allowed: {', '.join(KINDS)}")
    KINDS[kind](source, target)
    print(f"wrote {target}")
    return 0
