"""Policies as pure functions: what is chosen first, when a text is decoded again, and what a budget buys."""

import pytest

from mtsk.config import AutoConfig, BandConfig, StepConfig, from_dict, to_dict
from mtsk.inference.policy import Attempt, Auto, Budget, Fixed, Known
from mtsk.scale import Scale, ScaleGrid

A4, A16, V2, V5, A4V2, A16V5 = map(Scale.parse, ("a4", "a16", "v2", "v5", "a4v2", "a16v5"))
GRID = ScaleGrid((A4, A16, V2, V5, A4V2, A16V5))
CLIP = Known(3.0, 3.0, 25.0)
CONFIG = AutoConfig(
    (
        BandConfig((StepConfig(A16, 0.9), StepConfig(A4, 0.8), StepConfig(A4V2)), 15.0),
        BandConfig((StepConfig(V5, 0.95), StepConfig(A4V2))),
    )
)


def _tokens(scale: Scale, duration_s: float) -> float:
    return scale.tokens_per_second * duration_s


def test_fixed_is_never_decoded_again_and_falls_back_to_what_is_there() -> None:
    fixed = Fixed(A4V2)
    first = fixed.first(CLIP)
    assert first is not None
    assert first.scale == A4V2
    assert fixed.next(CLIP, [Attempt(A4V2, "", 0.0)]) is None
    for known, scale in ((Known(3.0, 0.0, 25.0), A4), (Known(0.0, 3.0), V2)):
        choice = fixed.first(known)
        assert choice is not None
        assert choice.scale == scale
        assert "a4v2 needs" in choice.why
    assert fixed.first(Known(0.01, 0.01)) is None
    assert (fixed.looks, Fixed(A4).looks) == ("first", "never")


@pytest.mark.parametrize(
    ("limit", "scale"),
    [(75.0, A4V2), (74.9, A4), (37.5, A4), (37.4, A16V5), (24.0, A16)],
)
def test_a_budget_buys_the_finest_that_fits(limit: float, scale: Scale) -> None:
    choice = Budget(GRID, limit, "tokens", _tokens).first(CLIP)
    assert choice is not None
    assert choice.scale == scale
    assert choice.why.startswith("budget:")


def test_a_budget_that_buys_nothing_takes_the_cheapest_and_says_so() -> None:
    choice = Budget(GRID, 5.0, "tokens", _tokens).first(CLIP)
    assert choice is not None
    assert choice.scale == A16
    assert choice.why == "over budget: 9.38 of 5 tokens"
    # What is cheap depends on the price: here the scales with one modality are the dear ones.
    odd = Budget(GRID, 0.5, "ms", lambda scale, _: 1.0 if scale == A4V2 else 2.0).first(CLIP)
    assert odd is not None
    assert odd.scale == A4V2


def test_a_budget_reads_lips_alone_only_without_sound() -> None:
    budget = Budget(GRID, 40.0, "tokens", _tokens)
    choices = [budget.first(Known(sound_s, 3.0)) for sound_s in (3.0, 0.0)]
    assert [choice and choice.scale for choice in choices] == [A4, V2]
    assert budget.first(Known(0.0, 0.0)) is None
    assert budget.next(CLIP, [Attempt(A4, "", 0.0)]) is None


def test_a_budget_is_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="0 ms; more than 0"):
        Budget(GRID, 0.0, "ms", _tokens)


def test_auto_goes_on_where_a_text_is_unsure_and_stops_where_it_is_sure() -> None:
    auto = Auto(GRID, CONFIG)
    first = auto.first(CLIP)
    assert first is not None
    assert (first.scale, first.why) == (A16, "sound at 25 dB")
    assert auto.next(CLIP, [Attempt(A16, "a", 0.9)]) is None
    second = auto.next(CLIP, [Attempt(A16, "a", 0.8999)])
    assert second is not None
    assert second.scale == A4
    assert "unsure, 0.90 < 0.90" in second.why
    third = auto.next(CLIP, [Attempt(A16, "a", 0.5), Attempt(A4, "b", 0.1)])
    assert third is not None
    assert third.scale == A4V2
    assert auto.next(CLIP, [Attempt(A4V2, "c", 0.0)]) is None
    # What nothing estimated is not trusted.
    unknown = auto.next(CLIP, [Attempt(A16, "a", None)])
    assert unknown is not None
    assert unknown.scale == A4


def test_auto_looks_at_lips_at_once_in_noise_and_without_sound() -> None:
    auto = Auto(GRID, CONFIG)
    for known in (Known(3.0, 3.0, 14.9), Known(0.0, 3.0)):
        choice = auto.first(known)
        assert choice is not None
        assert choice.scale == V5
    assert auto.looks == "if needed"


def test_auto_without_lips_uses_what_the_sound_allows() -> None:
    auto = Auto(GRID, CONFIG)
    noisy = auto.first(Known(3.0, 0.0, 5.0))  # no step of this band is possible
    assert noisy is not None
    assert noisy.scale == A4
    assert auto.next(Known(3.0, 0.0, 5.0), [Attempt(A4, "", 0.0)]) is None
    clean = Known(3.0, 0.0, 25.0)
    assert auto.next(clean, [Attempt(A16, "", 0.0), Attempt(A4, "", 0.0)]) is None  # lips would be next
    assert auto.first(Known(0.0, 0.0)) is None


def test_auto_knows_only_trained_scales() -> None:
    with pytest.raises(ValueError, match="a16 was not trained"):
        Auto(ScaleGrid((A4, V5, A4V2)), CONFIG)


def test_thresholds_are_stored_and_checked() -> None:
    assert from_dict(AutoConfig, to_dict(CONFIG)) == CONFIG
    band = BandConfig((StepConfig(A4),))
    for bands in ((), (band, band), (BandConfig(band.steps, 3.0),), (BandConfig(band.steps, 3.0),) * 2 + (band,)):
        with pytest.raises(ValueError, match="falling values"):
            AutoConfig(bands)
    with pytest.raises(ValueError, match="at least one step"):
        BandConfig(())
