"""Compression against a naive loop, and the nesting of averages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtsk.model.compress import COMPRESSORS, Compressor, average, average_tokens, stack
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


@settings(deadline=None)  # on a busy machine
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


@settings(deadline=None)  # on a busy machine
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


# Tokens averaged further: the training-free baseline.


def _naive_tokens(row: Tensor, rate: int, wanted: int, num_tokens: int) -> Tensor:
    """One row of real tokens: each is spread over its `rate` steps, and each group of `wanted` steps is averaged."""
    steps = [token for token in row.tolist() for _ in range(rate)]
    coarse = []
    for start in range(0, num_tokens * wanted, wanted):
        group = steps[start : start + wanted]  # the last may be cut: the tokens end before the features do
        coarse.append([sum(step[d] for step in group) / len(group) for d in range(DIM)])
    return torch.tensor(coarse).reshape(num_tokens, DIM)


@settings(deadline=None)  # on a busy machine
@given(lengths, st.integers(1, 6), st.integers(0, 9), st.integers(0, 5))
def test_averaged_tokens_equal_a_naive_loop(row_lengths: list[int], rate: int, more: int, extra: int) -> None:
    """Of any two rates, with every row as if alone."""
    features, wanted = _features(row_lengths, extra), rate + more
    tokens = average(features, rate)
    averaged = average_tokens(tokens, rate, wanted, features.lengths_B // wanted)
    assert averaged.lengths_B.tolist() == [length // wanted for length in row_lengths]
    assert averaged.values_BTD.shape[1] == max(averaged.lengths_B)
    for row, length in enumerate(averaged.lengths_B.tolist()):
        expected = _naive_tokens(tokens.values_BTD[row, : row_lengths[row] // rate], rate, wanted, length)
        torch.testing.assert_close(averaged.values_BTD[row, :length], expected, atol=1e-5, rtol=1e-4)
        assert not averaged.values_BTD[row, length:].any()
        alone = average_tokens(tokens.rows([row]), rate, wanted, features.lengths_B[row : row + 1] // wanted)
        torch.testing.assert_close(averaged.values_BTD[row, :length], alone.values_BTD[0], atol=1e-6, rtol=1e-5)


@settings(deadline=None)  # on a busy machine
@given(lengths, st.integers(1, 5), st.integers(1, 5))
def test_where_rates_divide_tokens_are_average_pooled(row_lengths: list[int], rate: int, factor: int) -> None:
    features = _features(row_lengths)
    tokens, num_tokens_B = average(features, rate), features.lengths_B // (rate * factor)
    averaged = average_tokens(tokens, rate, rate * factor, num_tokens_B)
    pooled = average(tokens, factor)
    assert torch.equal(pooled.lengths_B, num_tokens_B)
    num_tokens = averaged.values_BTD.shape[1]
    torch.testing.assert_close(averaged.values_BTD, pooled.values_BTD[:, :num_tokens], atol=1e-6, rtol=1e-5)
    assert not pooled.values_BTD[:, num_tokens:].any()


def test_averaged_tokens_of_a_long_recording_and_in_half_precision() -> None:
    """Thirty seconds: sums of fractions of time do not drift."""
    features = _features([1500, 1499, 0])
    tokens = average(features, 3)
    averaged = average_tokens(tokens, 3, 4, features.lengths_B // 4)
    for row, length in enumerate((375, 374, 0)):
        expected = _naive_tokens(tokens.values_BTD[row, : (1500, 1499, 0)[row] // 3], 3, 4, length)
        torch.testing.assert_close(averaged.values_BTD[row, :length], expected, atol=1e-3, rtol=1e-3)
    half = Features(tokens.values_BTD.bfloat16(), tokens.lengths_B)
    rounded = average_tokens(half, 3, 4, features.lengths_B // 4).values_BTD
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), averaged.values_BTD, atol=0.03, rtol=0.03)
