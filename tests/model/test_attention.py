"""Attention of two products is attention."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtsk.model import attention as attention_module
from mtsk.model.attention import attention


def _parts() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, num, 16, generator=draws).bfloat16() for num in (5, 9, 9))
    return query, key, value


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 200, 5_000_000])
@pytest.mark.parametrize(("peak", "error"), [(1.0, 0.01), (4.0, 0.03)])
@torch.inference_mode()
def test_it_is_that_of_torch(
    is_masked: bool, at_once: int, peak: float, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "_AT_ONCE", at_once)
    query, key, value = _parts()
    query = query * peak
    hidden = torch.arange(9) > torch.tensor([[8, 3, 5, 0, 4], [1, 2, 3, 4, 5]])[:, None, :, None]
    mask = torch.zeros(2, 1, 5, 9, dtype=torch.bfloat16).masked_fill(hidden, -torch.inf) if is_masked else None
    exact_mask = None if mask is None else mask.float()
    expected = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), exact_mask)
    torch.testing.assert_close(attention(query, key, value, mask).float(), expected, atol=4 * error, rtol=0)
    assert float((attention(query, key, value, mask).float() - expected).std()) < error
    assert float(expected.std()) > 0.3, "or the tolerance says nothing"


def test_gradients_are_those_of_torch() -> None:
    gradients = []
    for attend in (attention, functional.scaled_dot_product_attention):
        query, key, value = (part.requires_grad_() for part in _parts())
        total: Tensor = attend(query, key, value).float().square().sum()
        gradients.append(torch.autograd.grad(total, (query, key, value)))
    assert all(torch.equal(own, reference) for own, reference in zip(*gradients, strict=True))
