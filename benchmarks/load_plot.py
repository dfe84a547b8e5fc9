"""A picture of servers under load: latency, scales, word errors and refusals over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.load_figures import GOOD_S
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BIN_S = 2.0
_COLUMN_INCH, _HEIGHT_INCH = 6.0, 9.0
_DOTS_PER_INCH = 90


def plot(runs: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws runs side by side.

    Args:
        runs: name -> run, see `load_figures.run_of`.
        path: of a PNG.
    """
    figure = Figure(figsize=(_COLUMN_INCH * len(runs), _HEIGHT_INCH), layout="constrained")
    columns = figure.subplots(4, len(runs), sharex="col", sharey="row", squeeze=False)
    scales = _scales(runs)
    for index, (name, run) in enumerate(runs.items()):
        latency, used, wer, load = columns[:, index]
        latency.set_title(f"{name} ({run['model']})")
        _draw_latency(latency, run["requests"], scales)
        edges_s = np.arange(0, sum(step["duration_s"] for step in run["steps"]) + _BIN_S, _BIN_S)
        bins = [
            [row for row in run["requests"] if start <= row["at_s"] < start + _BIN_S] for start in edges_s[:-1].tolist()
        ]
        _draw_scales(used, edges_s, bins, scales)
        _draw_wer(wer, edges_s, bins)
        _draw_load(load, edges_s, bins)
        load.set_xlabel("request came at, s")
        for axes in (latency, used, wer, load):
            _mark_steps(axes, run["steps"], names=axes is latency)
    for axes, label in zip(columns[:, 0], ("latency, s", "share of answers", "WER, %", "a second"), strict=True):
        axes.set_ylabel(label)
    columns[0, 0].set_yscale("log")
    columns[1, -1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    columns[3, -1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _scales(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each scale that was used -> its colour, the finest first."""
    from mtsk.scale import Scale

    names = {row["scale"] for run in runs.values() for row in run["requests"] if row["status"] == 200}
    ordered = sorted(names, key=lambda name: -Scale.parse(name).tokens_per_second)
    return dict(zip(ordered, colormaps["viridis"](np.linspace(0.0, 0.9, max(1, len(ordered)))), strict=True))


def _draw_latency(axes: Axes, rows: Sequence[Mapping[str, Any]], scales: Mapping[str, Any]) -> None:
    for scale, colour in scales.items():
        chosen = [row for row in rows if row.get("scale") == scale]
        axes.plot(
            [row["at_s"] for row in chosen], [row["latency_s"] for row in chosen], ".", color=colour, markersize=4
        )
    axes.axhline(GOOD_S, color="grey", linestyle="--", linewidth=1)


def _draw_scales(
    axes: Axes, edges_s: Any, bins: Sequence[Sequence[Mapping[str, Any]]], scales: Mapping[str, Any]
) -> None:
    below = np.zeros(len(bins))
    nums = np.array([sum(row["status"] == 200 for row in rows) for rows in bins])
    for scale, colour in scales.items():
        share = np.array([sum(row.get("scale") == scale for row in rows) for rows in bins]) / np.maximum(1, nums)
        axes.bar(edges_s[:-1], share, _BIN_S, below, align="edge", color=colour, label=scale)
        below += share


def _draw_wer(axes: Axes, edges_s: Any, bins: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    errors = np.array([sum(row.get("errors", 0) for row in rows) for rows in bins], np.float64)
    words = np.array([sum(row.get("words", 0) for row in rows) for rows in bins], np.float64)
    rate = np.divide(100 * errors, words, out=np.full(len(bins), np.nan), where=words > 0)
    axes.plot(edges_s[:-1] + _BIN_S / 2, rate, "o-", markersize=3, color="tab:red")


def _draw_load(axes: Axes, edges_s: Any, bins: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    came = np.array([len(rows) for rows in bins]) / _BIN_S
    refused = np.array([sum(row["status"] == 429 for row in rows) for rows in bins]) / _BIN_S
    good = (
        np.array([sum(row["status"] == 200 and row["latency_s"] <= GOOD_S for row in rows) for rows in bins]) / _BIN_S
    )
    axes.step(edges_s[:-1], came, where="post", color="black", label="came")
    axes.step(edges_s[:-1], refused, where="post", color="tab:red", label="refused (429)")
    axes.step(edges_s[:-1], good, where="post", color="tab:green", label=f"answered in {GOOD_S:g} s")


def _mark_steps(axes: Axes, steps: Sequence[Mapping[str, Any]], *, names: bool) -> None:
    begin_s = 0.0
    for step in steps:
        if begin_s:
            axes.axvline(begin_s, color="lightgrey", linewidth=1, zorder=0)
        if names:
            axes.text(begin_s, 1.0, f" {step['multiple']:g} x", transform=axes.get_xaxis_transform(), va="top")
        begin_s += step["duration_s"]
