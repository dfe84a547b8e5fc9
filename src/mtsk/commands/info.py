"""`mtsk info`."""

from __future__ import annotations

import mtsk
from mtsk.checkpoints.store import WEIGHTS_FILE, read_record


def run(model: str) -> int:
    """Prints what a checkpoint says of itself; loads no weights.

    Raises:
        ValueError: if there is no such model.
    """
    folder = mtsk.model_folder(model)
    record = read_record(folder)
    config = record.model
    size_mb = (folder / WEIGHTS_FILE).stat().st_size / 1e6
    base = ", ".join(f"{source} ({digest})" for source, digest in record.base.items())
    lora = config.lora
    print(f"{folder}\n  trained weights  {size_mb:.1f} MB\n  base weights     {base}")
    print(f"  compression      {config.compression}\n  adapters         {lora.strategy}, rank {lora.rank}")
    print(f"  trained by       {record.training.get('recipe', 'unknown')}")
    print("  scale    tokens/s")
    for scale in config.grid:
        print(f"  {scale!s:<8} {scale.tokens_per_second:7.1f}")
    return 0
