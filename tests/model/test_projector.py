"""Projectors: one per rate, each row as if alone."""

import pytest
import torch

from mtsk.config import ProjectorConfig
from mtsk.model.compress import COMPRESSORS
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
