"""Pictures of a study. Each function gives None where there is nothing to draw. No pyplot: no state is shared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtsk.scale import Scale
from mtsk.studies.results import Block, Cost, Estimate, Results, Row, distinct_rows
from mtsk.studies.tables import NO_INPUT, format_snr

# Okabe and Ito's palette, told apart by the colour-blind, without its yellow, which is too pale on white.
_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = "osD^vPX*<>"
_LINES = ("-", "--", ":", "-.")
_LEAST_CUT = 10.0  # %: below this the whole range is readable
_BEYOND = "beyond the axis"
_NAME: dict[str, Any] = {"ha": "center", "fontsize": "small"}
_NAME_PT = 12.0  # height of a small name


@dataclass(frozen=True)
class _Point:
    x: float
    estimate: Estimate

    @property
    def percent(self) -> float:
        return 100 * self.estimate.value


def styles(results: Results) -> dict[Row, dict[str, Any]]:
    """Colour and marker by method, line and filling by compressor: the same in every figure of a study."""
    rows = distinct_rows(results.measured, results.runs)
    methods = list(dict.fromkeys(row.method for row in rows))
    compressors = list(dict.fromkeys(row.compressor for row in rows))
    found = {}
    for row in rows:
        method, compressor = methods.index(row.method), compressors.index(row.compressor)
        color = _COLORS[method % len(_COLORS)]
        found[row] = {
            "color": color,
            "marker": _MARKERS[method % len(_MARKERS)],
            "linestyle": _LINES[compressor % len(_LINES)],
            "markerfacecolor": color if compressor == 0 else "white",
        }
    return found


def wer_figure(block: Block, style: dict[Row, dict[str, Any]]) -> Figure | None:
    """Clean WER of each row: against the rate where the matrix has one modality, else by scale, side by side."""
    rates = _rates(block.scales)
    centres = list(map(float, rates or range(len(block.scales))))
    gap = min((b - a for a, b in itertools.pairwise(centres)), default=1.0)
    series: dict[Row, list[_Point]] = {}
    for row in block.rows:
        for centre, scale in zip(centres, block.scales, strict=True):
            estimate = block.wer(row, scale)
            if estimate:
                series.setdefault(row, []).append(_Point(centre, estimate))
    if not series:
        return None
    width = 7.5 if rates else min(16.0, max(7.0, 2.0 + len(centres) * (0.6 + 0.14 * len(series))))
    figure = Figure(figsize=(width, 4.4 + 0.22 * math.ceil((len(series) + 1) / 3)), layout="constrained")
    axes = figure.add_subplot()
    top = _cut(series.values())
    spread = (0.3 if rates else 0.7) * gap
    for index, (row, points) in enumerate(series.items()):
        offset = spread * ((index + 0.5) / len(series) - 0.5)
        moved = [_Point(point.x + offset, point.estimate) for point in points]
        drawn = style[row] if rates else {**style[row], "linestyle": ""}
        _draw(axes, moved, _label(row, block), top=math.inf, style=drawn)
    stacked = _name_beyond(axes, [(p, style[row]["color"]) for row, points in series.items() for p in points], top)
    _draw_no_input(axes, block, top, room=1.06 + 0.06 * stacked)
    axes.set_xticks(centres, [str(rate) for rate in rates] if rates else list(map(str, block.scales)))
    if rates:
        axes.set_xlabel(f"{'audio' if block.scales[0].video is None else 'video'} features per LLM token")
    else:
        for boundary in range(1, len(centres)):
            axes.axvline(boundary - 0.5, color="0.9", linewidth=0.8, zorder=0)
        axes.set_xlim(-0.5, len(centres) - 0.5)
        axes.set_xlabel("scale (a: audio rate, v: video rate)")
    axes.set_title(block.matrix)
    _finish(figure, [axes])
    return figure


def snr_figure(block: Block) -> Figure | None:
    """WER against SNR: a panel per row, a line per scale."""
    noisy_db = sorted(snr_db for snr_db in block.snrs_db if snr_db is not None)
    if len(block.snrs_db) < 2:
        return None
    # Clean is no number: it has its own place to the right of the others.
    step = max((b - a for a, b in itertools.pairwise(noisy_db)), default=5.0)
    places = {snr_db: noisy_db[-1] + step if snr_db is None else snr_db for snr_db in block.snrs_db}
    panels: dict[Row, dict[Scale, list[_Point]]] = {}
    for row in block.rows:
        for scale in block.scales:
            found = [(place, block.wer(row, scale, snr_db)) for snr_db, place in places.items()]
            points = sorted((_Point(place, each) for place, each in found if each), key=lambda point: point.x)
            if len(points) > 1:
                panels.setdefault(row, {})[scale] = points
    if not panels:
        return None
    columns = min(4, math.ceil(math.sqrt(len(panels))))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(6.0, 3.4 * columns + 0.6), 2.9 * lines + 0.9), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    top = _cut(points for panel in panels.values() for points in panel.values())
    for axes, (row, panel) in zip(grid, panels.items(), strict=False):
        for index, scale in enumerate(block.scales):
            _draw(axes, panel.get(scale, []), str(scale), top=top, style=_scale_style(index, len(block.scales)))
        axes.set_title(_label(row, block), fontsize="medium")
        axes.set_xticks(sorted(places.values()), [format_snr(snr).removesuffix(" dB") for snr in _ascending(places)])
        axes.set_ylim(0, 1.06 * top)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("babble, SNR in dB")
    figure.suptitle(block.matrix)
    _finish(figure, grid[: len(panels)], columns)
    return figure


def cost_figure(block: Block, costs: Sequence[Cost], style: dict[Row, dict[str, Any]]) -> Figure | None:
    """Clean WER against the TFLOPs of the LLM, and against all TFLOPs: a point per row and scale."""
    by_scale = {cost.scale: cost for cost in costs}
    series: dict[Row, list[tuple[Cost, Estimate]]] = {}
    for row in block.rows:
        for scale in block.scales:
            estimate = block.wer(row, scale)
            if estimate and scale in by_scale:
                series.setdefault(row, []).append((by_scale[scale], estimate))
    if not series:
        return None
    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True).tolist()
    top = _cut([_Point(0.0, estimate) for _, estimate in points] for points in series.values())
    shown = {cost.scale: cost for points in series.values() for cost, _ in points}
    for axes, key in zip(panels, ("llm_tflops", "total_tflops"), strict=True):
        for row, found in series.items():
            points = sorted((_Point(getattr(cost, key), each) for cost, each in found), key=lambda point: point.x)
            _draw(axes, points, _label(row, block), top=top, style=style[row], interval=False)
        axes.set_ylim(0, 1.06 * top)
        places = {scale: getattr(cost, key) for scale, cost in shown.items()}
        _name_scales(axes, places)
        # The panels have ranges of their own, so what a scale saves is said in words.
        ratio = max(places.values()) / max(min(places.values()), 1e-9)
        what = "of the LLM" if key == "llm_tflops" else "in all"
        axes.set_xlabel(f"TFLOPs {what}, mean utterance (most is {ratio:.2f} x least)")
    figure.suptitle(block.matrix)
    _finish(figure, panels, 2)
    return figure


def _rates(scales: Sequence[Scale]) -> list[int]:
    """The rates where all scales have the same single modality, else nothing."""
    if all(scale.video is None for scale in scales):
        return [scale.audio for scale in scales if scale.audio is not None]
    if all(scale.audio is None for scale in scales):
        return [scale.video for scale in scales if scale.video is not None]
    return []


def _cut(series: Iterable[Sequence[_Point]]) -> float:
    """The WER in percent up to which the axis must reach.

    A method may collapse, as training-free compression does, to more than 100 %. A linear axis that shows it squeezes
    the others into a line, and a logarithmic one flattens the differences that matter. So the axis shows what lies
    within three times the worst value of the middle method, and what lies beyond is named at its upper edge.
    """
    found = [list(points) for points in series if points]
    worst = sorted(max(point.percent for point in points) for points in found)
    limit = max(_LEAST_CUT, 3 * worst[(len(worst) - 1) // 2])
    inside = [100 * point.estimate.high for points in found for point in points if point.percent <= limit]
    highest = [point.percent for points in found for point in points if point.percent <= limit]
    return max(1.0, *highest, min(limit, max(inside)))


def _draw(
    axes: Axes, points: Sequence[_Point], label: str, *, top: float, style: dict[str, Any], interval: bool = True
) -> None:
    """A series; what lies beyond `top` gets a triangle at the upper edge."""
    if not points:
        return
    # A percentile interval may, in rare cases, lie beside its value; an error bar cannot have negative length.
    below = [max(0.0, point.percent - 100 * point.estimate.low) for point in points]
    above = [max(0.0, 100 * point.estimate.high - point.percent) for point in points]
    bars: dict[str, Any] = {"yerr": [below, above], "capsize": 2.5, "elinewidth": 1.0} if interval else {}
    values = [point.percent for point in points]
    axes.errorbar([p.x for p in points], values, label=label, markersize=5, linewidth=1.4, **bars, **style)
    for point in points:
        if point.percent > top:
            axes.plot([point.x], [1.03 * top], label=_BEYOND, marker="^", color=style["color"], linestyle="")


def _name_beyond(axes: Axes, points: Sequence[tuple[_Point, str]], top: float) -> int:
    """Writes values beyond the axis at its upper edge, in their colours, one below the other; how many at most."""
    stacks: dict[float, list[tuple[_Point, str]]] = {}
    for point, color in points:
        if point.percent > top:
            stacks.setdefault(point.x, []).append((point, color))
    for x, stack in stacks.items():
        for level, (point, color) in enumerate(sorted(stack, key=lambda each: -each[0].percent)):
            how: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "va": "top"}
            place = (0, -2 - _NAME_PT * level)
            axes.annotate(f"▲ {point.percent:.1f}", (x, 1.0), place, color=color, **_NAME, **how)
    return max(map(len, stacks.values()), default=0)


def _draw_no_input(axes: Axes, block: Block, top: float, room: float) -> None:
    """Adds the WER without input as a line across, if it does not squeeze what is measured, and sets the range."""
    found = [estimate.value for row in block.rows if (estimate := block.no_input(row))]
    if found:
        percent = 100 * min(found)
        inside = percent < 1.4 * top
        top = max(top, percent) if inside else top
        label = f"no input{'' if len(found) == 1 else f', lowest of {len(found)}'}: {percent:.1f} %"
        label += "" if inside else " (beyond the axis)"
        axes.axhline(percent, color="0.35", linestyle="--", linewidth=1.2, label=label)
    axes.set_ylim(0, room * top)


def _name_scales(axes: Axes, places: dict[Scale, float]) -> None:
    """A logarithmic axis of TFLOPs, with the scales' names above it; names that would overlap are moved apart."""
    axes.set_xscale("log")
    ordered = sorted(places, key=lambda scale: places[scale])
    low, high = (math.log10(max(places[scale], 1e-9)) for scale in (ordered[0], ordered[-1]))
    margin = max(0.01, 0.08 * (high - low))
    low, high = low - margin, high + margin
    axes.set_xlim(10**low, 10**high)
    ticks = [10 ** (low + share * (high - low)) for share in (0.08, 0.36, 0.64, 0.92)]
    digits = 2 if high - low > 0.15 else 3
    ticks = sorted({float(f"{tick:.{digits}g}") for tick in ticks})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    shares = [(math.log10(max(places[scale], 1e-9)) - low) / (high - low) for scale in ordered]
    for scale, share, name_share in zip(ordered, shares, _apart(shares, 0.05), strict=True):
        axes.axvline(places[scale], color="0.9", linewidth=0.8, zorder=0)
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        how: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "axes fraction",
            "arrowprops": line,
            "rotation": 90,
        }
        axes.annotate(str(scale), (share, 1.0), (name_share, 1.035), va="bottom", **_NAME, **how)


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Ascending values, moved to at least that distance, each group about its middle."""
    groups = [[value] for value in values]  # of values that touch
    placed = [list(group) for group in groups]
    merged = True
    while merged:
        merged = False
        for index in range(len(groups) - 1):
            if placed[index + 1][0] - placed[index][-1] < least - 1e-9:
                groups[index : index + 2] = [groups[index] + groups[index + 1]]
                middle, count = sum(groups[index]) / len(groups[index]), len(groups[index])
                spaced = [middle + least * (place - (count - 1) / 2) for place in range(count)]
                placed[index : index + 2] = [spaced]
                merged = True
                break
    return [value for group in placed for value in group]


def _scale_style(index: int, count: int) -> dict[str, Any]:
    # Viridis is ordered, as compression is, and legible to the colour-blind; its yellow end is too pale on white.
    color = colormaps["viridis"](0.85 * index / max(1, count - 1))
    return {"color": color, "marker": _MARKERS[index % len(_MARKERS)], "linestyle": "-"}


def _ascending(places: dict[float | None, float]) -> list[float | None]:
    return sorted(places, key=lambda snr_db: places[snr_db])


def _label(row: Row, block: Block) -> str:
    several = len({each.compressor for each in block.rows}) > 1
    return f"{row.method}, {row.compressor}" if several else row.method


def _finish(figure: Figure, panels: Sequence[Axes], columns: int = 1) -> None:
    """What all figures share: the grid, the name of the axis, and one legend above."""
    handles: dict[str, Any] = {}
    for index, axes in enumerate(panels):
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if index % columns == 0:
            axes.set_ylabel("word error rate, %")
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    remarks = [label for label in handles if label == _BEYOND or label.startswith(NO_INPUT)]
    if _BEYOND in handles:
        handles[_BEYOND] = Line2D([], [], marker="^", color="0.4", linestyle="")
    handles.update({label: handles.pop(label) for label in remarks})  # to the end
    longest = max((len(label) for label in handles if label not in remarks), default=1)
    ncols = max(1, min(len(handles), int((figure.get_size_inches()[0] - 1.5) / (0.085 * longest + 0.65))))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False)
