"""Compression against a naive loop, and the nesting of averages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtsk.model.compress import COMPRESSORS, Compressor, average, stack
from mtsk.model.masking import zero_beyond
from mtsk.types import Features

DIM = 3
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def _features(row_lengths: list[int], extra: int = 0, seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor(row_lengths)
    values = torch.randn(len(row_lengths), max(row_lengths) + extra, DIM, generator=rng)
    return Features(zero_beyond(values, lengths_B), lengths_B)


def _naive(row: Tensor, rate: int, stacked: bool) -> list[list[float]]:
    """One row of real features, group by group, number by number."""
    tokens = []
    for start in range(0, len(row) - rate + 1, rate):
        group = row[start : start + rate].tolist()
        if stacked:
            tokens.append([value for feature in group for value in feature])
        else:
            tokens.append([sum(feature[d] for feature in group) / rate for d in range(DIM)])
    return tokens


@given(lengths, st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_equals_a_naive_loop(row_lengths: list[int], rate: int, stacked: bool, extra: int) -> None:
    features = _features(row_lengths, extra)
    compressed = (stack if stacked else average)(features, rate)
    assert compressed.lengths_B.tolist() == [length // rate for length in row_lengths]
    assert compressed.values_BTD.shape[2] == (DIM * rate if stacked else DIM)
    for row, length in enumerate(row_lengths):
        expected = _naive(features.values_BTD[row, :length], rate, stacked)
        own = compressed.values_BTD[row, : len(expected)]
        torch.testing.assert_close(own, torch.tensor(expected).reshape(own.shape), atol=1e-6, rtol=1e-5)
        assert not compressed.values_BTD[row, len(expected) :].any()


@given(lengths, st.integers(1, 5), st.integers(1, 5))
def test_averages_nest(row_lengths: list[int], first: int, second: int) -> None:
    features = _features(row_lengths)
    nested, direct = average(average(features, first), second), average(features, first * second)
    assert torch.equal(nested.lengths_B, direct.lengths_B)
    torch.testing.assert_close(nested.values_BTD, direct.values_BTD, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("compress", [average, stack])
def test_incomplete_group_is_dropped(compress: Compressor) -> None:
    """Seven features at rate 3: two tokens, and the seventh feature is in neither."""
    features = _features([7])
    changed = Features(features.values_BTD.clone(), features.lengths_B)
    changed.values_BTD[0, 6] += 100.0
    one, other = (compress(each, 3) for each in (features, changed))  # type: ignore[operator]
    assert one.lengths_B.tolist() == [2]
    assert torch.equal(one.values_BTD, other.values_BTD)


@pytest.mark.parametrize("compress", [average, stack])
def test_a_group_that_reaches_into_padding_is_dropped(compress: Compressor) -> None:
    compressed = compress(_features([5, 9]), 3)  # type: ignore[operator]
    assert compressed.lengths_B.tolist() == [1, 3]
    assert not compressed.values_BTD[0, 1:].any()


@pytest.mark.parametrize("name", ["average", "stack"])
@pytest.mark.parametrize("rate", [1, 4])
def test_width(name: str, rate: int) -> None:
    compressor = COMPRESSORS[name]  # type: ignore[index]
    assert compressor.compress(_features([8]), rate).values_BTD.shape[2] == compressor.width(DIM, rate)


@pytest.mark.parametrize("rate", [0, -1])
def test_rate_below_one_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 up, not {rate}"):
        average(_features([8]), rate)
