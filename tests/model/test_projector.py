"""Projectors: one per rate, or blended between rates; each row as if alone."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsk.config import ProjectorConfig
from mtsk.model.compress import COMPRESSORS, average
from mtsk.model.masking import zero_beyond
from mtsk.model.projector import Projector, RateProjectors
from mtsk.types import Features

DIM, WIDTH, STD = 6, 10, 0.05
PLAIN = ProjectorConfig(hidden=16, input_norm=False, output_norm=False, input_dropout=0.0)


def _projectors(compression: str, config: ProjectorConfig, rates: tuple[int, ...] = (2, 4, 6)) -> RateProjectors:
    torch.manual_seed(0)
    compressor = COMPRESSORS[compression]  # type: ignore[index]
    return RateProjectors(rates, DIM, compressor, (WIDTH, STD), config).eval()


def _features(lengths: tuple[int, ...] = (13, 8, 24)) -> Features:
    lengths_B = torch.tensor(lengths)
    values = torch.randn(len(lengths), max(lengths), DIM, generator=torch.Generator().manual_seed(1))
    return Features(zero_beyond(values, lengths_B), lengths_B)


@pytest.mark.parametrize("compression", ["average", "stack"])
@pytest.mark.parametrize("rate", [2, 4, 6])
@torch.no_grad()
def test_a_row_is_as_if_alone(compression: str, rate: int) -> None:
    projectors, features = _projectors(compression, ProjectorConfig(hidden=16)), _features()
    together = projectors(features, rate)
    assert together.lengths_B.tolist() == [length // rate for length in (13, 8, 24)]
    for row, length in enumerate(together.lengths_B.tolist()):
        alone = projectors(features.rows([row]), rate)
        torch.testing.assert_close(together.values_BTD[row, :length], alone.values_BTD[0], atol=1e-6, rtol=0)
        assert not together.values_BTD[row, length:].any()


@torch.no_grad()
def test_output_starts_at_the_spread_of_the_embeddings() -> None:
    values = _projectors("average", ProjectorConfig(hidden=16))(_features((24,)), 2).values_BTD
    assert float(values.std()) == pytest.approx(STD, rel=0.1)


@torch.no_grad()
def test_forward_is_linear_relu_linear() -> None:
    projector = Projector(DIM, WIDTH, STD, PLAIN).eval()
    tokens = torch.randn(2, 3, DIM)
    hidden = (tokens @ projector.up.weight.T + projector.up.bias).clamp(min=0)
    expected = hidden @ projector.down.weight.T + projector.down.bias
    torch.testing.assert_close(projector(tokens), expected)


def test_rates_are_sorted_as_numbers() -> None:
    assert _projectors("average", PLAIN, rates=(16, 4, 2)).rates == (2, 4, 16)


# Rates without a projector of their own.


@settings(deadline=None)
@given(st.sets(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 60))
def test_shares(own: set[int], rate: int) -> None:
    """One for a rate of its own, else the two around it, linear in the logarithm; beyond the last, the nearest."""
    projectors = RateProjectors(own, 1, COMPRESSORS["average"], (1, STD), ProjectorConfig(hidden=1))
    shares = projectors.shares(rate)
    finer, coarser = [r for r in own if r <= rate], [r for r in own if r >= rate]
    if rate in own:
        assert shares == {rate: 1.0}
    elif not finer or not coarser:
        assert shares == {(min(own) if not finer else max(own)): 1.0}
    else:
        assert set(shares) == {max(finer), min(coarser)}
        assert sum(shares.values()) == pytest.approx(1.0)
        mean = sum(share * math.log(r) for r, share in shares.items())
        assert mean == pytest.approx(math.log(rate))


@torch.no_grad()
def test_between_two_rates_both_projectors_read() -> None:
    projectors, features = _projectors("average", PLAIN, rates=(2, 8)), _features()
    compressed = average(features, 4)
    fine, coarse = (projectors.at_rate[str(rate)](compressed.values_BTD) for rate in (2, 8))
    found = projectors(features, 4)
    assert found.lengths_B.tolist() == [3, 2, 6]
    expected = (fine + coarse) / 2  # 4 lies in the middle of 2 and 8 as factors go
    for row, length in enumerate(found.lengths_B.tolist()):
        torch.testing.assert_close(found.values_BTD[row, :length], expected[row, :length])
        assert not found.values_BTD[row, length:].any()


@pytest.mark.parametrize("rate", [1, 3, 5, 7, 20])
@torch.no_grad()
def test_rows_are_as_if_alone_at_rates_without_a_projector(rate: int) -> None:
    projectors, features = _projectors("average", ProjectorConfig(hidden=16)), _features()
    together = projectors(features, rate)
    for row, length in enumerate(together.lengths_B.tolist()):
        alone = projectors(features.rows([row]), rate).values_BTD[0]
        torch.testing.assert_close(together.values_BTD[row, :length], alone, atol=1e-6, rtol=0)


def test_blending_is_continuous() -> None:
    """Towards a rate with a projector its share rises to one without a jump."""
    projectors = _projectors("average", PLAIN, rates=(100, 200))
    shares = [projectors.shares(rate).get(200, 0.0) for rate in range(90, 211)]
    steps = [later - earlier for earlier, later in itertools.pairwise(shares)]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert min(steps) >= 0.0
    assert max(steps) < 0.015


@torch.no_grad()
def test_one_projector_serves_all_rates() -> None:
    projectors, features = _projectors("average", PLAIN, rates=(4,)), _features()
    assert len(projectors.at_rate) == 1
    for rate in (1, 4, 6):
        expected = projectors.at_rate["4"](average(features, rate).values_BTD)
        found = projectors(features, rate)
        for row, length in enumerate(found.lengths_B.tolist()):
            assert torch.equal(found.values_BTD[row, :length], expected[row, :length])


@pytest.mark.parametrize("rate", [1, 3, 8])
def test_stacked_features_fit_only_their_own_projector(rate: int) -> None:
    with pytest.raises(ValueError, match=rf"can't be read at rate {rate}; the rates are \(2, 4, 6\)"):
        _projectors("stack", PLAIN)(_features(), rate)


def test_gradients_reach_the_projectors_by_their_shares() -> None:
    projectors = _projectors("average", PLAIN, rates=(2, 8))
    values_BKE = projectors(_features((24,)), 3).values_BTD
    torch.autograd.backward(values_BKE.sum())
    shares = projectors.shares(3)
    for rate in (2, 8):
        projector = projectors.at_rate[str(rate)]
        assert isinstance(projector, Projector)
        gradient_E = projector.down.bias.grad
        assert gradient_E is not None
        assert torch.allclose(gradient_E, torch.full((WIDTH,), 8 * shares[rate]))
