"""`mtsk convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RECOGNISERS = ("llama-avsr", "omni-avsr")


def run(
    kind: str,
    source: Path,
    target: Path,
    *,
    llm: str | None = None,
    whisper: str | None = None,
    avhubert: Path | None = None,
    scales: Sequence[str] = (),
    alpha: float | None = None,
) -> int:
    """Converts others' weights to a folder of ours. Returns the exit code.

    Args:
        kind: of the source: `avhubert`, a fairseq checkpoint of AV-HuBERT; or one of `RECOGNISERS`.
        source: file of the kind.
        target: folder to write.
        llm: of a recogniser, as the following: what `mtsk.checkpoints.authors.Told` says.

    Raises:
        ValueError: an unknown kind, a source of another kind, or options that the kind has not.
    """
    if kind == "avhubert":
        if any((llm, whisper, avhubert, scales, alpha is not None)):
            raise ValueError(f"kind {kind!r} takes no options; they are for {' and '.join(RECOGNISERS)}")
        _avhubert(source, target)
    elif kind in RECOGNISERS:
        from mtsk.checkpoints.authors import Told, convert

        lips = None if avhubert is None else str(avhubert)
        config = convert(source, target, Told(llm, whisper, lips, scales, alpha), kind=kind)
        print(f"{kind}: scales {config.grid}, adapters {config.lora.strategy} of rank {config.lora.rank}")
    else:
        raise ValueError(f"kind {kind!r} given; allowed: avhubert, {', '.join(RECOGNISERS)}")
    print(f"wrote {target}")
    return 0


def _avhubert(source: Path, target: Path) -> None:
    from mtsk.checkpoints import avhubert

    shape = avhubert.convert(source, target)
    order = "before" if shape.norm_first else "after"
    print(f"AV-HuBERT: {shape.num_layers} layers, width {shape.width}, {shape.num_heads} heads, normalised {order}")
