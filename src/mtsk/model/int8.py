"""Projections with 8-bit weights, for processors: a third of the memory traffic of bfloat16, and exact sums.

Weights are rounded once, to 255 levels per output. Inputs are rounded in every call, per token, so that a row gets the
same result in any batch; and twice, what the first rounding leaves to 255 levels too, as an LLM's inputs have outliers
that 255 levels between them are too coarse for. Both parts of a token read the same weights in one product, which is
summed as integers by oneDNN, through the operators that torch's own quantisation lowers to.

Letters: N tokens, O outputs, I inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LEVELS = 127  # on either side of zero
_ZERO = 128  # what stands for zero in the unsigned inputs
_ROWS = 4096  # of a matrix, that are rounded at once: the head of a small LLM is most of it


def int8_is_fast() -> bool:
    """Whether this processor multiplies 8-bit integers in groups of four (VNNI); others would do so inexactly."""
    return bool(torch.cpu._is_vnni_supported() and torch.backends.mkldnn.enabled)


class Int8Projection:
    """(..., I) float -> (..., O) float32.

    Args:
        weight_OI: on a processor, any precision.
        bias_O: stays as it is.
    """

    @torch.no_grad()
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        scales: list[Tensor] = []
        levels_OI = torch.empty_like(weight_OI, dtype=torch.int8)
        for first in range(0, len(weight_OI), _ROWS):
            exact_OI = weight_OI[first : first + _ROWS].float()
            scales.append(exact_OI.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS)
            levels_OI[first : first + _ROWS] = (exact_OI / scales[-1][:, None]).round_()
        self._scale_O = torch.cat(scales)
        self._packed = torch.ops.onednn.qlinear_prepack(levels_OI, None)
        self._zeros_O = torch.zeros(len(weight_OI), dtype=torch.int32)
        self._bias_O = None if bias_O is None else bias_O.float()

    def __call__(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.float()
        scale_N1 = x_NI.abs().amax(dim=-1, keepdim=True).clamp_min(1e-9).mul(1 / _LEVELS)
        shares_NI = x_NI * scale_N1.reciprocal()
        coarse_NI = shares_NI.round()
        fine_NI = (shares_NI - coarse_NI).mul(2 * _LEVELS).round()  # from half a level below to half a level above
        levels_2NI = torch.stack((coarse_NI, fine_NI)).add_(_ZERO).to(torch.uint8)
        weights = self._packed, self._scale_O, self._zeros_O
        result: tuple[Any, ...] = 1.0, 0, torch.float32, "none", [], ""  # neither quantised again nor changed
        sums_2NO: Tensor = torch.ops.onednn.qlinear_pointwise(levels_2NI, 1.0, _ZERO, *weights, None, *result)
        out_NO = torch.add(sums_2NO[0], sums_2NO[1], alpha=1 / (2 * _LEVELS)) * scale_N1
        return out_NO if self._bias_O is None else out_NO + self._bias_O
