"""Tables of the benchmark of speed, from the figures of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.systems import BATCHED, STAGES

PARTS = ("clips", "ten-minutes", "hour")
_MAX_MIB = 2048
_PEER = "faster-whisper int8"

Figures = Mapping[str, Any]
"""What a part measured, as its JSON has it."""


def write_report(folder: Path) -> str:
    """Writes README.md beside the figures of the parts that were measured, and returns what is in it."""
    paths = {part: folder / f"{part}.json" for part in PARTS}
    parts = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items() if path.exists()}
    text = report(parts)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
    return text


def report(parts: Mapping[str, Figures]) -> str:
    """Markdown: what was asked for, and the tables of every part there is."""
    makers = {"clips": _clips, "ten-minutes": _ten_minutes, "hour": _hour}
    lines = [
        "# Speed",
        "",
        "Written by `make bench`; [benchmarks](../../../benchmarks/README.md) says how it is measured.",
    ]
    checks = [check for part, figures in parts.items() for check in _checks(part, figures)]
    lines += ["", "| asked for | limit | measured | |", "|---|---|---|---|", *checks]
    for part, figures in parts.items():
        lines += ["", *makers[part](figures)]
    return "\n".join(lines)


def _clips(figures: Figures) -> list[str]:
    one = [row for row in figures["rows"] if row["batch"] == 1]
    several = [row for row in figures["rows"] if row["batch"] > 1]
    size = several[0]["batch"]
    return [
        f"## Clips of GRID, {one[0]['audio_s']:g} s of sound and pictures",
        "",
        _about(figures),
        "",
        f"One by one, medians of {len(one[0]['seconds'])} clips; times in milliseconds of one clip.",
        "",
        *_table(one, peer="greedy", unit_s=0.001),
        "",
        f"{size} at once, medians of {len(several[0]['seconds'])} rounds; times in milliseconds of one clip.",
        "",
        *_table(several, peer=f"{BATCHED}greedy", unit_s=0.001 * size),
        "",
        *_systems(figures, "one by one"),
    ]


def _ten_minutes(figures: Figures) -> list[str]:
    rows = figures["rows"]
    return [
        f"## A recording of {rows[0]['audio_s'] / 60:g} minutes, sound alone",
        "",
        _about(figures),
        "",
        f"Medians of {len(rows[0]['seconds'])} rounds (one of what is not batched); times in seconds of the whole.",
        "",
        *_table(rows, peer=f"{BATCHED}greedy", unit_s=1.0),
        "",
        *_systems(figures, "in the whole part"),
    ]


def _hour(figures: Figures) -> list[str]:
    rows = figures["rows"]
    silence_s = sum(silence["duration_s"] for silence in figures["settings"]["silences"])
    return [
        f"## A recording of {rows[0]['audio_s'] / 60:g} minutes, {silence_s / 60:.3g} of them silence",
        "",
        _about(figures),
        "",
        "Once; times in seconds of the whole.",
        "",
        *_table(rows, peer=None, unit_s=1.0),
        "",
        *_systems(figures, "in the whole part"),
    ]


def _about(figures: Figures) -> str:
    about, threads = figures["about"], figures["settings"]["threads"]
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    return (
        f"Model `{figures['model']}`. {about['hardware']}, {threads} threads on {threads} cores; "
        f"Python {about['python']}, {versions}."
    )


def _table(rows: Sequence[Figures], *, peer: str | None, unit_s: float) -> list[str]:
    """A line for each row.

    Args:
        peer: setting of faster-whisper that all are compared with.
        unit_s: of the times.
    """
    of_peer = None if peer is None else find(rows, _PEER, peer)
    stages = [stage for stage in STAGES if any(stage in each for row in rows for each in row["stages"])]
    head = ["system", "setting", "time", "real-time factor"]
    head += [] if of_peer is None else [f"times as fast as {_PEER}, {peer} (least, most)"]
    head += [*stages, "WER"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            row["system"],
            row["setting"],
            _digits(median(row["seconds"]) / unit_s),
            f"{real_time_factor(row):.3f}",
        ]
        if of_peer is not None:
            ratios = speed_ratios(row, of_peer)
            cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})")
        for stage in stages:
            seconds = median(each.get(stage, 0.0) for each in row["stages"])
            cells.append(_digits(seconds / unit_s) if seconds else "-")
        lines.append(_line([*cells, f"{100 * row['wer']:.1f} %"]))
    return lines


def _systems(figures: Figures, when: str) -> list[str]:
    head = ["process", f"peak memory {when}, MiB", "seconds to load"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for name, system in figures["systems"].items():
        lines.append(_line([name, f"{system['peak_mib']:.0f}", f"{system['load_s']:.1f}"]))
    return lines


def _checks(part: str, figures: Figures) -> list[str]:
    """Lines of the first table: what is asked for of a part, and whether it is so."""
    rows, peak_mib = figures["rows"], figures["systems"]["mtsk"]["peak_mib"]
    memory = _check(f"{part}: peak memory, MiB", f"at most {_MAX_MIB}", f"{peak_mib:.0f}", peak_mib <= _MAX_MIB)
    if part == "hour":
        return [memory]
    if part == "clips":
        one = [row for row in rows if row["batch"] == 1]
        faster = median(speed_ratios(find(one, "mtsk", "a16"), find(one, _PEER, "greedy")))
        factor = real_time_factor(find(one, "mtsk", "a16v5"))
        return [
            _check(f"clips, a16: times as fast as {_PEER}, greedy", "at least 3", f"{faster:.2f}", faster >= 3),
            _check("clips, a16v5 with faces: real-time factor", "at most 0.15", f"{factor:.3f}", factor <= 0.15),
        ]
    peer = find(rows, _PEER, f"{BATCHED}greedy")
    limit = real_time_factor(peer)
    checks = []
    for row in rows:
        if row["system"].startswith("mtsk"):
            factor, name = real_time_factor(row), f"{row['system']}, {row['setting']}"
            asked = f"{part}, {name}: real-time factor, against {_PEER}, batched"
            checks.append(_check(asked, f"at most {limit:.3f}", f"{factor:.3f}", factor <= limit))
    return [*checks, memory]


def _check(what: str, limit: str, measured: str, holds: bool) -> str:
    return _line([what, limit, measured, "yes" if holds else "no"])


def find(rows: Sequence[Figures], system: str, setting: str) -> Figures:
    """The row of a system at a setting."""
    return next(row for row in rows if (row["system"], row["setting"]) == (system, setting))


def real_time_factor(row: Figures) -> float:
    """Seconds that a second of the recording takes."""
    return float(median(row["seconds"]) / row["audio_s"])


def speed_ratios(row: Figures, peer: Figures) -> list[float]:
    """How many times as fast as the peer, in each round that both were in."""
    return [theirs / own for own, theirs in zip(row["seconds"], peer["seconds"], strict=False)]


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
