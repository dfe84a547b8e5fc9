"""Projectors: one per rate, each row as if alone, a coarse one started from a fine one."""

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


@pytest.mark.parametrize("coarser", [4, 6])
@torch.no_grad()
def test_stacked_copy_reads_the_mean_of_the_finer_groups(coarser: int) -> None:
    projectors = _projectors("stack", PLAIN)
    projectors.copy_rate(2, coarser)
    groups = torch.randn(3, coarser // 2, 2 * DIM)  # as many groups of the finer rate as the coarser spans
    coarse = projectors.at_rate[str(coarser)](groups.flatten(1)[None])
    fine = projectors.at_rate["2"](groups.mean(dim=1)[None])
    torch.testing.assert_close(coarse, fine, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, ProjectorConfig(hidden=16)])
@torch.no_grad()
def test_averaged_copy_is_the_finer_projector(config: ProjectorConfig) -> None:
    projectors = _projectors("average", config)
    projectors.copy_rate(2, 6)
    tokens = torch.randn(1, 5, DIM)
    assert torch.equal(projectors.at_rate["6"](tokens), projectors.at_rate["2"](tokens))


@torch.no_grad()
def test_copy_is_independent_of_its_source() -> None:
    projectors = _projectors("average", PLAIN)
    projectors.copy_rate(2, 4)
    source, target = projectors.at_rate["2"], projectors.at_rate["4"]
    assert isinstance(source, Projector)
    assert isinstance(target, Projector)
    source.up.weight.zero_()
    assert target.up.weight.any()


@pytest.mark.parametrize(("finer", "coarser"), [(4, 6), (4, 2)])
def test_stacked_copy_needs_a_multiple(finer: int, coarser: int) -> None:
    with pytest.raises(ValueError, match=f"rate {coarser} is no multiple of rate {finer}"):
        _projectors("stack", PLAIN).copy_rate(finer, coarser)


def test_rates_are_sorted_as_numbers() -> None:
    assert _projectors("average", PLAIN, rates=(16, 4, 2)).rates == (2, 4, 16)
