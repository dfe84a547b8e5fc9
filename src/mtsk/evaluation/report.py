"""What an evaluation leaves behind: `wer.json`, `wer.csv`, `wer.png`, and tables on the console."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mtsk.evaluation.grid import NO_INPUT, Row
from mtsk.evaluation.wer import Rate, aligned_hits, normalize
from mtsk.files import write_whole

FIELDS = (
    *("scale", "snr_db", "wer", "low", "high", "words", "utterances"),
    *("seconds", "tflops_per_s", "threads"),
)
_MARKERS = "osD^vPX*"


def write_report(rows: Sequence[Row], out_dir: Path) -> None:
    """Writes `wer.json` (a list of objects with the keys `FIELDS`), `wer.csv` (the same) and `wer.png`.

    `scale` is a scale such as a4v2 or a baseline's name; `snr_db` is null for clean; `wer`, `low` and `high` are
    fractions. `seconds` is the median time for an utterance on so many `threads` of the processor, `tflops_per_s` the
    mean operations for a second of the recordings; null where they were not measured or are not known. Each file
    appears whole or not at all.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("a report needs at least one row")
    out_dir.mkdir(parents=True, exist_ok=True)
    records = [_record(row) for row in rows]
    write_whole(out_dir / "wer.json", json.dumps(records, indent=2, allow_nan=False) + "\n")
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_whole(out_dir / "wer.csv", table.getvalue())
    image = io.BytesIO()
    plot(rows).savefig(image, format="png", dpi=150)
    write_whole(out_dir / "wer.png", image.getvalue())


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Prints WER in percent with its interval: scales and baselines down, SNRs across, and what each costs at the first
    SNR."""
    snrs_db = _sorted_snrs(rows)
    table = Table("scale", title="WER % (95 % interval)")
    costs = {row.name: (row.seconds, row.tflops_per_s) for row in reversed(rows)}
    heads = [head for i, head in enumerate(("s", "TFLOPs/s")) if any(cost[i] is not None for cost in costs.values())]
    for head in (*map(_noise, snrs_db), *heads):
        table.add_column(head, justify="right")
    if heads:
        table.caption = f"s: to encode and decode an utterance, median, threads: {torch.get_num_threads()}"
        table.caption += "; TFLOPs/s: operations for a second of the recordings, mean" * ("TFLOPs/s" in heads)
    cells = {(row.name, row.snr_db): _percent(row.rate) for row in rows}
    for name in _sorted_names(rows):
        seconds, tflops_per_s = costs[name]
        cost = ["" if seconds is None else f"{seconds:.2f}", "" if tflops_per_s is None else f"{tflops_per_s:.4f}"]
        table.add_row(name, *(cells.get((name, snr_db), "") for snr_db in snrs_db), *cost[: len(heads)])
    console.print(table)


def have_slots(rows: Sequence[Row]) -> bool:
    """Whether all references have the same number of words, and more than one."""
    lengths = _num_words(rows)
    return len(lengths) == 1 and lengths[0] > 1


def slot_errors(rows: Sequence[Row]) -> dict[tuple[str, float | None], tuple[float, ...]]:
    """Share of utterances in which the word at each position was not recognised, by (name, SNR in dB).

    For corpora whose sentences have one shape, such as GRID, where the letter (the fourth word) is the hardest to see.
    A word that was inserted belongs to no position.

    Raises:
        ValueError: if the references do not all have the same number of words.
    """
    lengths = _num_words(rows)
    if len(lengths) != 1:
        raise ValueError(f"errors by position need references of one length; these have {lengths} words")
    shares = {}
    for row in rows:
        hits = [aligned_hits(each.reference, each.text) for each in row.hypotheses]
        shares[row.name, row.snr_db] = tuple(1 - sum(position) / len(hits) for position in zip(*hits, strict=True))
    return shares


def print_slots(rows: Sequence[Row], console: Console) -> None:
    """Prints `slot_errors` in percent, a column per word position from 1.

    Raises:
        ValueError: as `slot_errors`.
    """
    shares = slot_errors(rows)
    num_positions = len(next(iter(shares.values())))
    table = Table("scale", "noise", title="words not recognised, %, by position")
    for position in range(1, num_positions + 1):
        table.add_column(str(position), justify="right")
    for name in _sorted_names(rows):
        for snr_db in _sorted_snrs(rows):
            if (name, snr_db) in shares:
                table.add_row(name, _noise(snr_db), *(f"{100 * share:.1f}" for share in shares[name, snr_db]))
    console.print(table)


def plot(rows: Sequence[Row]) -> Figure:
    """WER in percent by scale, a series per SNR; no input is a line across, since it does not depend on either."""
    shown = [row for row in rows if row.name != NO_INPUT]
    names, snrs_db = _sorted_names(shown), _sorted_snrs(shown)
    figure = Figure(figsize=(min(16.0, max(6.0, 2.2 + 0.85 * len(names))), 4.5), layout="constrained")
    axes = figure.add_subplot()
    step = 0.7 / max(1, len(snrs_db))
    for index, snr_db in enumerate(snrs_db):
        # Viridis is ordered, as noise is, and legible to the colour-blind; its yellow end is too pale on white.
        style = {
            "color": colormaps["viridis"](0.8 * index / max(1, len(snrs_db) - 1)),
            "marker": _MARKERS[index % len(_MARKERS)],
        }
        offset = (index - (len(snrs_db) - 1) / 2) * step
        _draw_series(axes, [row for row in shown if row.snr_db == snr_db], names, offset, _noise(snr_db), style)
    _draw_no_input(axes, rows, highest=max((row.rate.high for row in shown), default=0.0))
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 12 else 0)
    for boundary in range(1, len(names)):
        axes.axvline(boundary - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, max(1, len(names)) - 0.5)
    axes.set_xlabel("scale (a: audio rate, v: video rate) or baseline")
    axes.set_ylabel("word error rate, %")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(6, len(snrs_db) + 1), frameon=False)
    return figure


def _draw_series(
    axes: Axes, rows: Sequence[Row], names: Sequence[str], offset: float, label: str, style: dict[str, Any]
) -> None:
    percent = [100 * row.rate.value for row in rows]
    # A percentile interval may, in rare cases, lie beside its value; an error bar cannot have negative length.
    below = [max(0.0, 100 * (row.rate.value - row.rate.low)) for row in rows]
    above = [max(0.0, 100 * (row.rate.high - row.rate.value)) for row in rows]
    positions = [names.index(row.name) + offset for row in rows]
    axes.errorbar(positions, percent, [below, above], label=label, linestyle="", capsize=3, markersize=5, **style)


def _draw_no_input(axes: Axes, rows: Sequence[Row], highest: float) -> None:
    """Adds the line, which may lie above the picture: it must not squeeze what is measured."""
    top = 108 * highest or 100.0
    no_input = next((row.rate for row in rows if row.name == NO_INPUT), None)
    if no_input is not None:
        percent = 100 * no_input.value
        inside = percent < 2 * top
        top = max(top, 1.08 * percent) if inside else top
        label = f"no input: {percent:.1f} %" + ("" if inside else " (beyond the axis)")
        axes.axhline(percent, color="0.35", linestyle="--", linewidth=1.2, label=label)
    axes.set_ylim(0, top)


def _record(row: Row) -> dict[str, Any]:
    rate = row.rate
    measured = (row.name, row.snr_db, rate.value, rate.low, rate.high, rate.words, rate.utterances)
    cost = (row.seconds, row.tflops_per_s, None if row.seconds is None else torch.get_num_threads())
    return dict(zip(FIELDS, (*measured, *cost), strict=True))


def _num_words(rows: Sequence[Row]) -> list[int]:
    """The lengths that occur among the references."""
    return sorted({len(normalize(each.reference)) for row in rows for each in row.hypotheses})


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"


def _noise(snr_db: float | None) -> str:
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def _sorted_names(rows: Sequence[Row]) -> list[str]:
    """Scales in their order, then baselines in the order of the rows."""
    scales = sorted({row.scale for row in rows if row.scale is not None})
    return [*map(str, scales), *dict.fromkeys(row.name for row in rows if row.scale is None)]


def _sorted_snrs(rows: Sequence[Row]) -> list[float | None]:
    """Clean, then from little noise to much."""
    return sorted({row.snr_db for row in rows}, key=lambda snr_db: -float("inf") if snr_db is None else -snr_db)
