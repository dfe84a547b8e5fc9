"""The report of error rates against cost, on outcomes that can be counted by hand."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from mtsk.evaluation.pareto import MIXED, Outcome, oracle, print_pareto, summarize, write_pareto


def _outcome(system: str, snr_db: float | None, name: str, text: str, flops: int, *, lips: bool = False) -> Outcome:
    return Outcome(system, snr_db, name, "bin blue now", text, flops, flops // 10, flops / 100, lips)


OUTCOMES = [
    _outcome("a16", None, "u", "bin blue now", 10),
    _outcome("a16", None, "w", "bin red now", 10),
    _outcome("a16", 0.0, "u", "red red red", 10),
    _outcome("a16", 0.0, "w", "red red red", 10),
    _outcome("a4v2", None, "u", "bin blue now", 40, lips=True),
    _outcome("a4v2", None, "w", "bin blue now", 40, lips=True),
    _outcome("a4v2", 0.0, "u", "bin blue now", 40, lips=True),
    _outcome("a4v2", 0.0, "w", "bin red red", 40, lips=True),
]


def test_the_oracle_takes_the_cheapest_of_the_best() -> None:
    best = {(each.snr_db, each.utterance): (each.flops, each.num_errors) for each in oracle(OUTCOMES)}
    assert best == {(None, "u"): (10, 0), (None, "w"): (40, 0), (0.0, "u"): (40, 0), (0.0, "w"): (40, 2)}


def test_points_are_means_and_corpus_rates() -> None:
    points = {(point.system, point.noise): point for point in summarize([*OUTCOMES, *oracle(OUTCOMES)])}
    assert len(points) == 9
    assert points["a16", "clean"].rate.value == pytest.approx(1 / 6)
    assert points["a16", "0 dB"].rate.value == 1.0
    assert points["a16", MIXED].rate.value == pytest.approx(7 / 12)
    mixed = points["oracle", MIXED]
    assert mixed.rate.value == pytest.approx(2 / 12)
    assert mixed.tflops == pytest.approx(130 / 4 / 1e12)
    assert mixed.num_tokens == pytest.approx(13 / 4)
    assert mixed.seconds == pytest.approx(1.3 / 4)
    assert (mixed.lips_share, points["oracle", "clean"].lips_share) == (0.75, 0.5)


def test_one_noise_level_has_no_mixture() -> None:
    assert {point.noise for point in summarize(OUTCOMES[:2])} == {"clean"}


def test_everything_is_written(tmp_path: Path) -> None:
    points = summarize(OUTCOMES)
    write_pareto(points, OUTCOMES, tmp_path)
    plain = json.loads((tmp_path / "pareto.json").read_text())
    assert [(each["system"], each["noise"]) for each in plain] == [(each.system, each.noise) for each in points]
    assert plain[0]["rate"]["value"] == pytest.approx(1 / 6)
    assert len((tmp_path / "outcomes.jsonl").read_text().splitlines()) == len(OUTCOMES)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "pareto.md").read_text().splitlines()
    assert len(lines) == 2 + len(points)
    assert "| a16 | clean | 16.7 (" in lines[2]
    assert "25 %" in lines[2]
    console = Console(width=150, record=True)
    print_pareto(points, console)
    assert "mixed" in console.export_text()
