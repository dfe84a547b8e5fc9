"""Tables: small examples, word for word."""

import dataclasses

import pytest

from mtsk.studies.results import Estimate, Results, blocks
from mtsk.studies.tables import (
    cost_table,
    difference_table,
    format_difference,
    format_number,
    format_wer,
    runs_table,
    setting_table,
    snr_table,
    wer_table,
)
from tests.studies.examples import RESULTS, measured, runs

ASR, AVSR = blocks(RESULTS)


def test_wer_by_scale_with_the_best_in_bold_and_dashes_for_what_is_missing():
    assert wer_table(ASR).splitlines() == [
        "| method | compressor | a4 | a8 | no input |",
        "| --- | --- | ---: | ---: | ---: |",
        "| independent | average | **10.0** (10.0–10.0) | 20.0 (20.0–20.0) | – |",
        "| MS | average | 30.0 ±14.1 (30.0–30.0) | **10.0** (10.0–10.0) | 90.0 (90.0–90.0) |",
        "| training-free | average | **10.0** (10.0–10.0) | 190.0 (190.0–190.0) | – |",
    ]
    assert wer_table(AVSR).splitlines()[2:] == [
        "| SS | average | **10.0** (10.0–10.0) | **10.0** (10.0–10.0) |",
        "| MSS | average | 20.0 (20.0–20.0) | – |",
    ]


def test_a_single_row_has_no_best():
    (block,) = blocks(Results("", {}, (measured("ASR", "MS", "a4", 10),)))
    assert "**" not in wer_table(block)
    assert difference_table(block) == ""
    assert snr_table(block) == ""


def test_differences_to_independent_or_else_the_first():
    assert difference_table(ASR).splitlines() == [
        "| method | compressor | minus | a4 | a8 |",
        "| --- | --- | --- | ---: | ---: |",
        # Seed 1 alone: independent has no seed 2.
        "| MS | average | independent, average | +10.0 (+10.0 to +10.0) | -10.0 (-10.0 to -10.0) |",
        "| training-free | average | independent, average | +0.0 (+0.0 to +0.0) | +170.0 (+170.0 to +170.0) |",
    ]
    assert difference_table(AVSR).splitlines()[2:] == ["| MSS | average | SS, average | +10.0 (+10.0 to +10.0) | – |"]


@pytest.mark.parametrize(("num_seeds", "end"), [(1, "+2.0)"), (3, "+2.0) worse")])
def test_a_verdict_needs_several_seeds(num_seeds: int, end: str) -> None:
    assert format_difference(Estimate(0.01, 0.005, 0.02, None, num_seeds)).endswith(end)


def test_wer_by_snr():
    lines = snr_table(ASR).splitlines()
    assert lines[0] == "| method | compressor | scale | clean | 5 dB | -5 dB |"
    assert lines[2] == "| independent | average | a4 | 10.0 (10.0–10.0) | – | – |"
    expected = "| MS | average | a4 | 30.0 ±14.1 (30.0–30.0) | 30.0 (30.0–30.0) | 50.0 (50.0–50.0) |"
    assert lines[4] == expected
    assert len(lines) == 2 + 6


def test_cost_by_scale():
    assert cost_table(RESULTS.costs).splitlines() == [
        "| scale | LLM tokens | LLM TFLOPs | total TFLOPs |",
        "| --- | ---: | ---: | ---: |",
        "| a4 | 50.2 | 11.4 | 1234 |",
        "| a8 | 25.0 | 0.00612 | 0.500 |",
        "| a4v2 | 60.0 | 1.00 | 2.00 |",
    ]


def test_many_models_against_one():
    assert runs_table(RESULTS).splitlines()[2:] == [
        # a4 has two seeds: 1.5 M in the mean, and a8 1 M.
        "| ASR | independent | average | 3 | 2 | 2 | 2.50 M | 200 | 2.0 |",
        "| ASR | MS | average | 1 | 1 | 1 | 1.50 M | 100 | 1.0 |",
    ]


def test_the_setting_cannot_break_its_table():
    assert setting_table(RESULTS.setting).splitlines()[2:] == ["| hardware | 2 CPU cores |", "| data | a \\| b |"]


def test_nothing_gives_nothing():
    (block,) = blocks(Results("", {}, runs=tuple(runs("ASR", "MS", ["a4"]))))
    empty = dataclasses.replace(RESULTS, measured=(), runs=())
    for text in (wer_table(block), difference_table(block), snr_table(block), cost_table(()), runs_table(empty)):
        assert text == ""
    assert setting_table({}) == ""


def test_estimates_in_words():
    estimate = Estimate(0.026, 0.021, 0.032, 0.002, 3)
    assert format_wer(estimate, bold=True) == "**2.6** ±0.2 (2.1–3.2)"
    assert format_difference(estimate) == "+2.6 ±0.2 (+2.1 to +3.2) worse"
    assert format_difference(Estimate(-0.001, -0.01, 0.008, None, 1)) == "-0.1 (-1.0 to +0.8)"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (11.4, "11.4"), (0.0612, "0.0612"), (1234.4, "1234"), (1.3, "1.30"), (99.96, "100")]
)
def test_three_digits(value, text):
    assert format_number(value).startswith(text)
    assert "e" not in format_number(value)
