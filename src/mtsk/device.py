"""Where to compute, and in which precision."""

from __future__ import annotations

import torch


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
