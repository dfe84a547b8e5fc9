"""Reports: what is written can be read back, and the picture shows what was measured."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rich.console import Console

from mtsk.evaluation.grid import NO_INPUT, Hypothesis, Row
from mtsk.evaluation.report import FIELDS, have_slots, plot, print_slots, print_table, slot_errors, write_report
from mtsk.evaluation.wer import Rate
from mtsk.scale import Scale


def row(name: str, snr_db: float | None, value: float, hypotheses: Sequence[Hypothesis] = ()) -> Row:
    scale = None if "-" in name else Scale.parse(name)
    return Row(name, scale, snr_db, Rate(value, value / 2, value * 1.25, 600, 100), tuple(hypotheses))


ROWS = [
    row("a4v2", -5.0, 0.2),
    row("a4v2", None, 0.0168),
    row("v2", None, 0.118),
    row("v2", -5.0, 0.118),
    row("whisper-base", None, 0.303),
    row("whisper-base", -5.0, 0.9),
    row(NO_INPUT, None, 1.68),
    row(NO_INPUT, -5.0, 1.68),
]


def test_json_and_csv_say_the_same_and_what_was_measured(tmp_path):
    write_report(ROWS, tmp_path / "new" / "folder")
    records = json.loads((tmp_path / "new" / "folder" / "wer.json").read_text())
    assert all(tuple(record) == FIELDS for record in records)
    assert records[0] == {
        **{"scale": "a4v2", "snr_db": -5.0, "wer": 0.2, "words": 600, "utterances": 100},
        **{"low": pytest.approx(0.1), "high": pytest.approx(0.25)},
        **{"seconds": None, "tflops_per_s": None, "threads": None},
    }
    assert records[1]["snr_db"] is None
    assert [(record["scale"], record["wer"]) for record in records] == [(each.name, each.rate.value) for each in ROWS]
    with (tmp_path / "new" / "folder" / "wer.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(records)
    for line, record in zip(table, records, strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in record.items()}


def test_a_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    write_report(ROWS, tmp_path)
    write_report(ROWS[:1], tmp_path)
    assert len(json.loads((tmp_path / "wer.json").read_text())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wer.csv", "wer.json", "wer.png"]
    assert (tmp_path / "wer.png").read_bytes().startswith(b"\x89PNG")


def test_a_number_that_json_lacks_leaves_the_old_report(tmp_path):
    write_report(ROWS, tmp_path)
    old = (tmp_path / "wer.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report([row("a4", None, float("nan"))], tmp_path)
    assert (tmp_path / "wer.json").read_bytes() == old


def test_no_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_report([], tmp_path)


def test_the_table_has_scales_down_and_noise_across():
    file = io.StringIO()
    print_table(ROWS, Console(file=file, width=120))
    lines = [line.split("│") for line in file.getvalue().splitlines()]
    cells = {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in lines if len(line) > 2}
    assert list(cells) == ["v2", "a4v2", "whisper-base", NO_INPUT]
    assert cells["a4v2"] == ["1.7 (0.8-2.1)", "20.0 (10.0-25.0)"]
    header = next(line for line in file.getvalue().splitlines() if "scale" in line)
    assert header.index("clean") < header.index("-5 dB")


def test_what_each_row_costs_is_told(tmp_path):
    measured = [Hypothesis("u0", "a", "a", 2.0, 0.25, 10**11), Hypothesis("u1", "a", "a", 3.0, 0.75, 10**11)]
    rows = [row("a4", None, 0.1, measured), row("whisper-base", None, 0.1, [Hypothesis("u0", "a", "a", 2.0, 0.25)])]
    write_report(rows, tmp_path)
    records = json.loads((tmp_path / "wer.json").read_text())
    assert [(record["seconds"], record["tflops_per_s"]) for record in records] == [(0.5, 0.04), (0.25, None)]
    assert records[0]["threads"] == torch.get_num_threads()
    file = io.StringIO()
    print_table(rows, Console(file=file, width=120))
    lines = [line.split("│") for line in file.getvalue().splitlines()]
    cells = {line[1].strip(): [cell.strip() for cell in line[3:-1]] for line in lines if len(line) > 2}
    assert cells == {"a4": ["0.50", "0.0400"], "whisper-base": ["0.25", ""]}
    assert f"median, threads: {torch.get_num_threads()}" in " ".join(file.getvalue().split())


def test_the_picture_shows_every_value_with_its_interval():
    axes = plot(ROWS).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["v2", "a4v2", "whisper-base"]
    series: dict[str, Any] = {str(container.get_label()): container for container in axes.containers}
    assert list(series) == ["clean", "-5 dB"]
    points, _, bars = series["clean"].lines
    assert sorted(points.get_ydata()) == pytest.approx([1.68, 11.8, 30.3])
    assert sorted(segment[:, 1].tolist() for segment in bars[0].get_segments()) == [
        pytest.approx([0.84, 2.1]),
        pytest.approx([5.9, 14.75]),
        pytest.approx([15.15, 37.875]),
    ]
    assert axes.get_ylim()[1] > 100 * 0.9 * 1.25  # nothing is cut off


@pytest.mark.parametrize(("no_input", "inside"), [(0.81, True), (6.0, False)])
def test_a_far_no_input_line_does_not_squeeze_the_picture(no_input, inside):
    axes = plot([row("a4", None, 0.5), row(NO_INPUT, None, no_input)]).axes[0]
    assert (axes.get_ylim()[1] > 100 * no_input) == inside
    labels = [label for label in (str(line.get_label()) for line in axes.lines) if label.startswith("no input")]
    assert labels == [f"no input: {100 * no_input:.1f} %" + ("" if inside else " (beyond the axis)")]


def slot_rows() -> list[Row]:
    right = Hypothesis("u0", "bin blue at f two now", "bin blue at f two now")
    letter = Hypothesis("u1", "lay red by g nine again", "lay red by c nine again")
    longer = Hypothesis("u2", "lay red by g nine again", "so lay red by b nine now again")
    silent = Hypothesis("u3", "set white in z one soon", "")
    return [row("a4", None, 0.1, [right, letter, longer, silent]), row("a4", -5.0, 0.0, [right])]


def test_slot_errors_by_position():
    assert slot_errors(slot_rows()) == {
        ("a4", None): (0.25, 0.25, 0.25, 0.75, 0.25, 0.25),
        ("a4", -5.0): (0.0,) * 6,
    }
    file = io.StringIO()
    print_slots(slot_rows(), Console(file=file, width=120))
    assert "75.0" in file.getvalue()


def test_slot_errors_need_one_length():
    odd = row("a4", None, 0.0, [Hypothesis("u0", "a b", "a b"), Hypothesis("u1", "a", "a")])
    with pytest.raises(ValueError, match=r"these have \[1, 2\] words"):
        slot_errors([odd])
    assert have_slots(slot_rows())
    assert not have_slots([odd])
    assert not have_slots([row("a4", None, 0.0, [Hypothesis("u0", "a", "a"), Hypothesis("u1", "b", "a")])])
