"""The benchmark of a server under load: arrivals, figures and tables, and one run against a small server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load import RUNS, chosen_runs, draw
from benchmarks.load_client import Answer, Client, Step, Watched, arrivals
from benchmarks.load_figures import recovery_s, rows_of, run_of, summary, write_results
from benchmarks.recordings import Utterance

CLIPS = [Utterance(Path("one.mp4"), 3.0, "bin blue at f two now"), Utterance(Path("two.mp4"), 3.0, "set red")]
STEPS = (Step(10.0, 4.0), Step(0.5, 4.0))
ANSWERS = [
    Answer(0.5, 0, 0, 200, 1.5, "a4v2", False, "bin blue at f two now"),
    Answer(1.0, 0, 1, 200, 2.5, "a16", True, "set bread"),
    Answer(2.0, 0, 0, 429, 0.01),
    Answer(4.5, 1, 1, 200, 0.5, "a16", True, "set red"),
    Answer(5.0, 1, 0, 429, 0.01),
    Answer(7.0, 1, 0, 200, 0.5, "a4v2", False, "bin blue at f two now"),
]


def test_arrivals() -> None:
    times = arrivals([Step(2.0, 50.0), Step(0.5, 50.0)], 4.0)
    assert times == arrivals([Step(2.0, 50.0), Step(0.5, 50.0)], 4.0)
    assert times == sorted(times)
    first, second = ([at_s for at_s, step in times if step == index] for index in (0, 1))
    assert all(0 < at_s < 50 for at_s in first)
    assert all(50 < at_s < 100 for at_s in second)
    assert len(first) == pytest.approx(400, rel=0.2)
    assert len(second) == pytest.approx(100, rel=0.4)
    assert arrivals([Step(1.0, 1.1)], 4.0, seed=None) == [(0.25, 0), (0.5, 0), (0.75, 0), (1.0, 0)]


def test_figures() -> None:
    rows = rows_of(ANSWERS, CLIPS)
    assert not any("text" in row for row in rows)
    told = summary([row for row in rows if row["step"] == 0], 4.0)
    assert told["statuses"] == {"200": 2, "429": 1}
    assert told["goodput_per_s"] == 0.25  # one of the answers is too late
    assert told["wer"] == 1 / 8
    assert told["degraded"] == 0.5
    assert told["scales"] == {"a4v2": 1, "a16": 1}
    levels = {"at_s": [1.0, 3.0, 5.0, 6.0, 7.0], "level": [0.0, 3.0, 1.0, 0.0, 1.0]}
    assert recovery_s(levels, STEPS) == 2.0
    assert recovery_s({"at_s": [1.0, 5.0], "level": [0.0, 1.0]}, STEPS) is None


def test_report(tmp_path: Path) -> None:
    memory = {"model": "m", "resident_mib": {"before": 100.0, "after": 104.0, "peak": 120.0}, "server_cores": 1.5}
    run = memory | run_of(ANSWERS, Watched([0.5], [{"level": 2.0}]), STEPS, CLIPS)
    slow = memory | run_of(ANSWERS[1:], Watched(), STEPS, CLIPS)
    results: dict[str, Any] = {
        "about": {"hardware": "x", "num_cores": 2, "versions": "y"}, "options": ["--default", "best"],
        "finest": "m", "capacity_per_s": {"m": 4.0}, "client_share": 0.1,
        "runs": {"fixed-3x": slow, "elastic-3x": run, "elastic-10x": run},
    }  # fmt: skip
    results["plots"] = draw(results["runs"], tmp_path)
    assert results["plots"] == ["3x", "10x"]
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in results["plots"])
    write_results(tmp_path, results)
    text = (tmp_path / "README.md").read_text()
    assert "| 10 x capacity: statuses | 200 and 429 | 200: 2, 429: 1 | yes |" in text
    assert "| 10 x capacity: growth of memory | below 5.0 % | 4.0 % | yes |" in text
    assert "elastic over fixed | at least 1.5 | 0.25 / 0.00 a second | yes |" in text
    written = json.loads((tmp_path / "results.json").read_text())
    assert [len(each["requests"]) for each in written["runs"].values()] == [5, 6, 6]
    row = dict(zip(written["columns"], written["runs"]["elastic-3x"]["requests"][1], strict=True))
    assert (row["at_s"], row["status"], row["scale"], row["errors"], row["words"]) == (1.0, 200, "a16", 1, 2)


def test_runs_are_chosen() -> None:
    class Options:
        steps, runs, fixed, elastic, scale_time = ("3:60",), None, False, True, 0.5

    options: Any = Options()
    assert [(run.name, run.steps) for run in chosen_runs(options)] == [("elastic-own", (Step(3.0, 30.0),))]
    options.steps, options.elastic, options.scale_time = None, False, 1.0
    assert chosen_runs(options) == list(RUNS)


def test_against_a_server(address: str, sound: Path) -> None:
    clips = [Utterance(sound, 1.0, "bin blue")]
    client = Client(address, clips, "mtsk@a4")
    answers, watched = asyncio.run(client.open_loop([(0.0, 0), (0.01, 0), (0.02, 1)]))
    assert [(each.status, each.step, each.scale, each.is_degraded) for each in answers] == [
        (200, 0, "a4", False), (200, 0, "a4", False), (200, 1, "a4", False)
    ]  # fmt: skip
    assert all(each.text for each in answers)
    assert set(watched.numbers[0]) == {"running", "waiting", "level", "predicted_wait_s"}
    bad = Client(address, clips, "none")
    assert [each.status for each in asyncio.run(bad.open_loop([(0.0, 0)]))[0]] == [404]
