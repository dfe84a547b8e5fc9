"""Where to compute, and in which precision."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Literal

import torch

# oneDNN keeps what it prepares for each shape that it meets, 1024 of them unless it is told otherwise. Prompts and
# texts have many lengths, so few are met again: 140 MiB more after eight minutes of speech, and no faster (measured).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

_PRECISIONS: dict[str, torch.dtype | Literal["int8"] | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": "int8",
}


def dtype_of(precision: str) -> torch.dtype | Literal["int8"] | None:
    """What `mtsk.load` takes, by its name on the command line.

    Raises:
        ValueError: naming the precisions there are.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"no precision {precision!r}; there are: {', '.join(_PRECISIONS)}")
    return _PRECISIONS[precision]


def best_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def has_bf16(device: torch.device | None = None) -> bool:
    """Whether a device computes bfloat16 in hardware, so that it is faster than float32."""
    device = device or best_device()
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def give_back_memory() -> None:
    """Hands what is free on the C library's heap back to the system, where that is glibc; it keeps holes between blocks
    of many sizes otherwise, as recordings make them: 300 MiB in eight minutes of speech (measured)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
