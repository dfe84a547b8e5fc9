"""Scales and grids: text forms, order, counts of tokens, refusals."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsk.scale import AUDIO_FEATURE_RATE_HZ, VIDEO_FEATURE_RATE_HZ, Scale, ScaleGrid

rates = st.none() | st.integers(1, 200)
scales = st.tuples(rates, rates).filter(any).map(lambda pair: Scale(*pair))

# Cappellazzo et al. 2025 (arXiv 2503.06362), table 4: LLM tokens of a 10 s clip. Seven are not media: BOS, the four
# delimiters, and two of the prompt as the paper counts it.
TABLE_4 = {(1, 1): 757, (4, 2): 257, (4, 5): 182, (16, 2): 163, (16, 5): 88}


@given(scales)
def test_text_round_trip(scale: Scale) -> None:
    assert Scale.parse(str(scale)) == scale
    assert Scale.parse(f"  {str(scale).upper()} ") == scale


@given(st.integers(1, 99), st.integers(1, 99))
def test_pair_form_is_audio_then_video(audio: int, video: int) -> None:
    assert Scale.parse(f"{audio},{video}") == Scale.parse(f"{audio} , {video}") == Scale(audio=audio, video=video)


@pytest.mark.parametrize("text", ["", " ", "4", "4,", ",2", "b4", "a", "v", "a4v", "v2a4", "a-4", "a4 v2", "a4.5"])
def test_other_text_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text)) + ".*a4v2"):
        Scale.parse(text)


@pytest.mark.parametrize("text", ["a0", "v0", "a4v0", "0,2"])
def test_rate_below_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="from 1 up, not 0"):
        Scale.parse(text)


def test_a_scale_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="an audio rate, a video rate or both"):
        Scale()


def test_order_is_sound_lips_both_and_finer_first() -> None:
    ordered = [Scale.parse(text) for text in ("a4", "a16", "v2", "v10", "a4v2", "a4v5", "a16v2", "a16v5")]
    for shuffled in itertools.islice(itertools.permutations(ordered), 0, None, 997):
        assert sorted(shuffled) == ordered
    assert ordered[0] <= ordered[1] < ordered[-1] > ordered[2] >= ordered[2]


@given(scales, scales)
def test_order_is_total(one: Scale, other: Scale) -> None:
    assert (one < other) + (one == other) + (one > other) == 1


@pytest.mark.parametrize(("rates", "tokens"), TABLE_4.items())
def test_tokens_of_the_papers_table_4(rates: tuple[int, int], tokens: int) -> None:
    scale = Scale(*rates)
    num_tokens = scale.num_tokens(
        num_audio_features=10 * AUDIO_FEATURE_RATE_HZ, num_video_features=10 * VIDEO_FEATURE_RATE_HZ
    )
    assert num_tokens + 7 == tokens


@given(scales, st.integers(0, 2000), st.integers(0, 2000))
def test_tokens_are_those_of_the_parts(scale: Scale, audio: int, video: int) -> None:
    def count(part: Scale) -> int:
        return part.num_tokens(num_audio_features=audio, num_video_features=video)

    assert count(scale) == sum(map(count, scale.parts))
    assert (scale.audio is not None) + (scale.video is not None) == len(scale.parts)
    assert count(scale) <= scale.tokens_per_second * max(audio / 50, video / 25) + 1e-9


def test_tokens_per_second() -> None:
    assert Scale.parse("a4v2").tokens_per_second == 12.5 + 12.5
    assert Scale.parse("a16").tokens_per_second == 3.125
    assert Scale.parse("v5").tokens_per_second == 5.0


def test_grid_is_sorted_without_repeats() -> None:
    grid = ScaleGrid(tuple(map(Scale.parse, ["a16", "a4v2", "4,2", "v5", "a4"])))
    assert str(grid) == "a4 a16 v5 a4v2"
    assert len(grid) == 4
    assert list(grid) == list(grid.scales)
    assert grid.audio_rates == (4, 16)
    assert grid.video_rates == (2, 5)
    assert Scale(4, 2) in grid
    assert Scale(4, 5) not in grid


def test_joint_grid_has_all_three_tasks() -> None:
    assert str(ScaleGrid.joint((4, 16), (2, 5))) == "a4 a16 v2 v5 a4v2 a4v5 a16v2 a16v5"


def test_untrained_scale_names_the_trained() -> None:
    grid = ScaleGrid(tuple(map(Scale.parse, ["a4", "v2", "a4v2"])))
    with pytest.raises(ValueError, match=r"a8 was not trained; this model has: a4 v2 a4v2"):
        grid.require(Scale.parse("a8"))
    assert grid.require(Scale.parse("v2")) == Scale(video=2)


def test_select() -> None:
    grid = ScaleGrid(tuple(map(Scale.parse, ["a4", "v2", "a4v2"])))
    assert grid.select(["all"]) == grid.scales
    assert list(map(str, grid.select(["4,2", "a4", "a4v2"]))) == ["a4v2", "a4"]
    assert list(map(str, grid.select(["v2", "all"]))) == ["v2", "a4", "a4v2"]
    with pytest.raises(ValueError, match="a5 was not trained"):
        grid.select(["all", "a5"])


# Ranges.


@given(st.integers(1, 60), st.integers(0, 12))
def test_a_range_is_every_rate_from_its_first_to_its_last(first: int, more: int) -> None:
    rates = range(first, first + more + 1)
    assert Scale.parse_ranges(f"a{first}-{first + more}") == tuple(Scale(audio=rate) for rate in rates)
    assert Scale.parse_ranges(f" V{first}-{first + more} ") == tuple(Scale(video=rate) for rate in rates)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a4-6v2", "a4v2 a5v2 a6v2"),
        ("a4v2-3", "a4v2 a4v3"),
        ("a4-5v1-2", "a4v1 a4v2 a5v1 a5v2"),
        ("a12v2-3", "a12v2 a12v3"),
        ("a4-4", "a4"),
    ],
)
def test_ranges_of_both_are_combined(text: str, expected: str) -> None:
    assert " ".join(map(str, Scale.parse_ranges(text))) == expected


@given(scales)
def test_a_scale_is_a_range_of_itself(scale: Scale) -> None:
    assert Scale.parse_ranges(str(scale)) == (scale,)
    assert Scale.parse_ranges("4,2") == (Scale(4, 2),)


@pytest.mark.parametrize(
    "text", ["", "-", "4-20", "a-4", "a4-", "a4-v2", "a4v2-", "a4--6", "a4-6-8", "v2-3a4", "a4 - 6"]
)
def test_no_range_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text)) + " is not a scale.*a4v2"):
        Scale.parse_ranges(text)


@pytest.mark.parametrize("text", ["a20-4", "v5-1", "a4v3-2", "a6-4v1-5"])
def test_an_empty_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' has an empty range of rates; write the finer rate first"):
        Scale.parse_ranges(text)


@pytest.mark.parametrize("text", ["a0-3", "v0-1", "a4-6v0-2"])
def test_a_range_from_zero_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="from 1 up, not 0"):
        Scale.parse_ranges(text)


# Tasks, and what stands in for a scale that was not trained.


@given(scales)
def test_task_and_rates_by_letter(scale: Scale) -> None:
    assert scale.task == "".join(letter for letter in "av" if scale.rate(letter) is not None)
    assert (scale.rate("a"), scale.rate("v")) == (scale.audio, scale.video)


@given(st.lists(scales, min_size=1, max_size=8), scales)
def test_nearest_finer_is_the_cheapest_that_is_nowhere_coarser(trained: list[Scale], wanted: Scale) -> None:
    grid = ScaleGrid(tuple(trained))

    def allowed(each: Scale) -> bool:
        pairs = ((each.audio, wanted.audio), (each.video, wanted.video))
        return all((own is None) == (its is None) and (own or 0) <= (its or 0) for own, its in pairs)

    finer = [each for each in grid if allowed(each)]
    if not finer:
        with pytest.raises(ValueError, match=f"no trained scale is as fine as {wanted} or finer; this model has: a?v?"):
            grid.nearest_finer(wanted)
        return
    found = grid.nearest_finer(wanted)
    assert found in finer
    assert found.tokens_per_second == min(each.tokens_per_second for each in finer)
    if wanted in grid:
        assert found == wanted


def test_nearest_finer_of_known_grids() -> None:
    grid = ScaleGrid.joint((4, 16), (2, 5))
    wanted = {"a15": "a4", "a16": "a16", "a50": "a16", "v3": "v2", "a20v4": "a16v2", "a5v9": "a4v5"}
    assert {text: str(grid.nearest_finer(Scale.parse(text))) for text in wanted} == wanted
    for text in ("a3", "v1", "a3v9", "a20v1"):
        with pytest.raises(ValueError, match="no trained scale is as fine"):
            grid.nearest_finer(Scale.parse(text))


def test_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one scale"):
        ScaleGrid(())


def test_a_range_is_bounded() -> None:
    with pytest.raises(ValueError, match="999 rates"):
        Scale.parse_ranges("a1-999")
