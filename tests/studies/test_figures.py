"""Figures show what was measured: series, places and heights, read from the axes."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from mtsk.studies.figures import cost_figure, snr_figure, styles, wer_figure
from mtsk.studies.results import Cost, Results, blocks
from tests.studies.examples import RESULTS, measured

STYLE = styles(RESULTS)
ASR, AVSR = blocks(RESULTS)


def series(axes: Axes) -> dict[str, tuple[Any, Any]]:
    """x and y of each labelled series, as lists."""
    lines: dict[str, Any] = {str(each.get_label()): each.lines[0] for each in axes.containers}  # type: ignore[attr-defined]
    return {
        label: (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for label, line in lines.items()
    }


def test_wer_against_the_rate():
    figure = wer_figure(ASR, STYLE)
    assert figure is not None
    axes = figure.axes[0]
    found = series(axes)
    assert {label: heights for label, (_, heights) in found.items()} == {
        "independent": pytest.approx([10, 20]),
        "MS": pytest.approx([30, 10]),
        "training-free": pytest.approx([10, 190]),
    }
    assert all(np.abs(np.array(places) - [4, 8]).max() < 1 for places, _ in found.values())
    assert list(axes.get_xticks()) == [4, 8]
    assert axes.get_xlabel() == "audio features per LLM token"


def test_a_collapse_is_named_and_does_not_squeeze_the_others():
    figure = wer_figure(ASR, STYLE)
    assert figure is not None
    axes = figure.axes[0]
    assert 30 < axes.get_ylim()[1] < 60
    (name,) = axes.texts
    assert name.get_text() == "▲ 190.0"
    assert name.get_color() == STYLE[ASR.rows[2]]["color"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["independent", "MS", "training-free", "no input: 90.0 % (beyond the axis)"]


def test_no_input_within_reach_is_in_the_picture():
    (block,) = blocks(Results("", {}, (measured("ASR", "MS", "a4", 60), measured("ASR", "MS", None, 70))))
    figure = wer_figure(block, STYLE)
    assert figure is not None
    assert figure.axes[0].get_ylim()[1] > 70
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MS", "no input: 70.0 %"]


def test_pairs_of_rates_stand_side_by_side():
    figure = wer_figure(AVSR, STYLE)
    assert figure is not None
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a4v2", "a4v5"]
    (ss_places, ss), (mss_places, mss) = (series(axes)[label] for label in ("SS", "MSS"))
    assert (ss, mss) == (pytest.approx([10, 10]), pytest.approx([20]))
    assert -0.5 < ss_places[0] < mss_places[0] < 0.5 < ss_places[1] < 1.5


def test_compressors_differ_in_line_and_name():
    found = (measured("VSR", "MS", "v2", 10), measured("VSR", "MS", "v2", 10, compressor="stack"))
    results = Results("", {}, found)
    (block,) = blocks(results)
    style = styles(results)
    figure = wer_figure(block, style)
    assert figure is not None
    assert list(series(figure.axes[0])) == ["MS, average", "MS, stack"]
    average, stack = (style[row] for row in block.rows)
    assert average["color"] == stack["color"]
    assert average["linestyle"] != stack["linestyle"]
    assert figure.axes[0].get_xlabel() == "video features per LLM token"


def test_wer_against_snr_has_a_panel_per_method_and_clean_at_the_right():
    assert snr_figure(AVSR) is None
    figure = snr_figure(ASR)
    assert figure is not None
    (axes,) = (each for each in figure.axes if each.get_visible())  # the others have one noise level each
    assert axes.get_title() == "MS"
    (places, heights) = series(axes)["a4"]
    assert places == [-5, 5, 15]
    assert heights == pytest.approx([50, 30, 30])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["-5", "5", "clean"]


def test_wer_against_cost():
    figure = cost_figure(ASR, RESULTS.costs, STYLE)
    assert figure is not None
    llm, total = figure.axes
    assert series(llm)["MS"] == (pytest.approx([0.00612, 11.4]), pytest.approx([10, 30]))
    assert series(total)["MS"] == (pytest.approx([0.5, 1234.5]), pytest.approx([10, 30]))
    assert [text.get_text() for text in llm.texts] == ["a8", "a4"]
    assert "2469.00 x least" in total.get_xlabel()
    assert cost_figure(ASR, [RESULTS.costs[2]], STYLE) is None


def test_names_of_close_scales_do_not_overlap():
    scales = ["a4v2", "a4v3", "a4v4", "a16v2"]
    (block,) = blocks(Results("", {}, tuple(measured("AVSR", "MS", scale, 10) for scale in scales)))
    costs = [Cost(scale, 1.0, 1 + 0.001 * index, 1.0) for index, scale in enumerate(block.scales)]
    figure = cost_figure(block, costs, STYLE)
    assert figure is not None
    for axes in figure.axes:  # in the second all cost the same
        places = [text.xyann[0] for text in axes.texts]  # type: ignore[attr-defined]
        assert np.diff(places).min() > 0.049
