"""The report of a whole study, of a half-done one, and of one that has just begun."""

import dataclasses
import re
import time

import numpy as np

from mtsk.scale import Scale
from mtsk.studies.report import write_report
from mtsk.studies.results import Measured, Results
from tests.studies.examples import RESULTS, measured, runs


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)


def test_the_tables_show_every_figure_that_is_written(tmp_path):
    paths = write_report(RESULTS, tmp_path / "new")
    assert [path.name for path in paths] == [
        *("tables.md", "wer-asr.png", "snr-asr.png", "cost-asr.png", "wer-avsr.png", "cost-avsr.png"),
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[1:])
    text = paths[0].read_text(encoding="utf-8")
    assert pictures(text) == [path.name for path in paths[1:]]
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    assert titles == [
        *("Strategies", "ASR", "ASR: differences", "ASR: noise", "ASR: cost", "AVSR", "AVSR: differences"),
        *("AVSR: cost", "Cost", "Training", "Setting"),
    ]
    assert "mean over 1 to 2 seeds" in text
    assert "over 10 utterances" in text


def test_a_study_that_has_just_begun(tmp_path):
    (tables,) = write_report(Results("Strategies", {}), tmp_path)
    assert tables.read_text(encoding="utf-8") == "# Strategies\n\nNothing is measured yet.\n"
    (tables,) = write_report(Results("Strategies", {}, runs=tuple(runs("ASR", "MS", ["a4"]))), tmp_path)
    assert "| ASR | MS | average | 1 |" in tables.read_text(encoding="utf-8")


def test_any_part_may_be_missing(tmp_path):
    for count in (1, 4, 9, 12):
        half = dataclasses.replace(RESULTS, measured=RESULTS.measured[:count], costs=RESULTS.costs[: count % 3])
        text = write_report(half, tmp_path / str(count))[0].read_text(encoding="utf-8")
        assert "| – |" in text
    only_no_input = Results("", {}, (measured("ASR", "MS", None, 90),))
    (tables,) = write_report(only_no_input, tmp_path)
    assert "| MS | average | 90.0 (90.0–90.0) |" in tables.read_text(encoding="utf-8")
    only_noise = Results("", {}, (measured("ASR", "MS", "a4", 90, snr_db=0.0),))
    (tables,) = write_report(only_noise, tmp_path)
    assert "## ASR" in tables.read_text(encoding="utf-8")


def test_matrices_with_alike_names_have_files_of_their_own(tmp_path):
    found = tuple(measured(name, "MS", "a4", 10) for name in ("AVSR (1)", "AVSR 1", "É"))
    paths = write_report(Results("", {}, found), tmp_path)
    assert [path.name for path in paths] == ["tables.md", "wer-avsr-1.png", "wer-avsr-1-2.png", "wer-é.png"]


def test_a_large_study_does_not_take_long(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for matrix in ("ASR", "VSR"):
        for method in range(10):
            for seed in (1, 2, 3):
                for rate in (2, 4, 6, 8, 10):
                    for snr_db in (None, 5.0, 0.0, -5.0):
                        scale = Scale(rate) if matrix == "ASR" else Scale(video=rate)
                        errors = tuple(rng.integers(0, 3, 100).tolist())
                        found.append(Measured(matrix, f"m{method}", "average", seed, scale, snr_db, errors, (6,) * 100))
    start = time.process_time()
    write_report(Results("", {}, tuple(found)), tmp_path)
    assert time.process_time() - start < 15
