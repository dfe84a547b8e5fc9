"""Padding masks."""

import torch

from mtsk.model.masking import additive_mask, inside, zero_beyond

LENGTHS = torch.tensor([3, 0, 1])


def test_inside() -> None:
    assert inside(LENGTHS, 4).tolist() == [[True, True, True, False], [False] * 4, [True, False, False, False]]


def test_zero_beyond_forgets_whatever_was_there() -> None:
    values = torch.full((3, 4, 2), 5.0)
    values[0, 3] = torch.inf
    values[1] = torch.nan
    expected = torch.tensor([[5, 5, 5, 0], [0, 0, 0, 0], [5, 0, 0, 0]]).float()
    assert torch.equal(zero_beyond(values, LENGTHS), expected[..., None].expand(-1, -1, 2))


def test_zero_beyond_lets_no_gradient_through() -> None:
    values = torch.ones(3, 4, 2, requires_grad=True)
    torch.autograd.backward(zero_beyond(values, LENGTHS).sum())
    assert values.grad is not None
    assert torch.equal(values.grad, zero_beyond(torch.ones(3, 4, 2), LENGTHS))


def test_additive_mask_hides_padded_keys_from_every_query() -> None:
    mask = additive_mask(LENGTHS, torch.zeros(3, 4, 2))
    assert mask is not None
    assert mask.shape == (3, 1, 4, 4)
    for query in range(4):
        assert torch.equal(mask[:, 0, query] == 0, inside(LENGTHS, 4))
    assert bool(torch.isfinite(mask).all())  # a row without any key must not become NaN
    assert bool((mask[mask != 0] < -1e30).all())


def test_no_mask_where_nothing_is_padded() -> None:
    assert additive_mask(torch.tensor([4, 4]), torch.zeros(2, 4, 2)) is None
