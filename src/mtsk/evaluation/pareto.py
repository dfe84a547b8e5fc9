"""Error rates against cost: every fixed scale, a policy, and the oracle, by noise and over all of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mtsk.evaluation.wer import Rate, wer_with_interval, word_errors
from mtsk.files import write_whole

ORACLE, MIXED = "oracle", "mixed"
_COLUMNS = ("scale", "noise", "WER %", "TFLOPs", "of dearest", "LLM tokens", "s", "with lips %")


@dataclass(frozen=True)
class Outcome:
    """What one system made of one utterance at one noise level."""

    system: str  # a scale, or a policy
    snr_db: float | None  # None: no noise added
    utterance: str
    reference: str
    text: str
    flops: int  # encoders, faces, and all passes
    num_tokens: int  # that media became, in all passes
    seconds: float
    saw_lips: bool

    @property
    def num_errors(self) -> int:
        """Words."""
        return word_errors(self.reference, self.text).total


@dataclass(frozen=True)
class Point:
    """A system at one noise level, or over all of them."""

    system: str
    noise: str  # clean, such as 5 dB, or mixed
    rate: Rate
    tflops: float  # mean of an utterance
    num_tokens: float
    seconds: float
    lips_share: float


def oracle(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """For each utterance and noise the cheapest of the best outcomes: what a policy that knew the text would choose."""

    def key(outcome: Outcome) -> tuple[str, str]:
        return _noise(outcome.snr_db), outcome.utterance

    grouped = groupby(sorted(outcomes, key=key), key)
    best = [min(group, key=lambda each: (each.num_errors, each.flops)) for _, group in grouped]
    return [replace(each, system=ORACLE) for each in best]


def summarize(outcomes: Sequence[Outcome]) -> list[Point]:
    """A point for each system and noise, and one over all noises; in the order in which they first come."""
    points = []
    for system in dict.fromkeys(each.system for each in outcomes):
        own = [each for each in outcomes if each.system == system]
        snrs_db = list(dict.fromkeys(each.snr_db for each in own))
        points += [_point(system, _noise(snr), [each for each in own if each.snr_db == snr]) for snr in snrs_db]
        if len(snrs_db) > 1:
            points.append(_point(system, MIXED, own))
    return points


def write_pareto(points: Sequence[Point], outcomes: Sequence[Outcome], out_dir: Path) -> None:
    """Writes `pareto.json` (the points), `pareto.md` (a table), `pareto.png`, and `outcomes.jsonl` (each utterance).

    Raises:
        OSError: if they can't be written.
    """
    plain = [{**asdict(point), "rate": asdict(point.rate)} for point in points]
    write_whole(out_dir / "pareto.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")
    lines = [_COLUMNS, tuple("---" if i < 2 else "---:" for i in range(len(_COLUMNS))), *_cells(points)]
    write_whole(out_dir / "pareto.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    image = io.BytesIO()
    plot(points).savefig(image, format="png", dpi=150)
    write_whole(out_dir / "pareto.png", image.getvalue())
    write_whole(out_dir / "outcomes.jsonl", "".join(json.dumps(asdict(each)) + "\n" for each in outcomes))


def print_pareto(points: Sequence[Point], console: Console) -> None:
    """Prints the table."""
    table = Table(title="WER (95 % interval) against the mean cost of an utterance")
    for i, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if i < 2 else "right")
    for cells in _cells(points):
        table.add_row(*cells)
    console.print(table)


def plot(points: Sequence[Point]) -> Figure:
    """WER against operations and against seconds, over all noises."""
    noise = MIXED if any(point.noise == MIXED for point in points) else points[0].noise
    shown = [point for point in points if point.noise == noise]
    figure = Figure(figsize=(11.0, 4.5), layout="constrained")
    axes_of = figure.subplots(1, 2, sharey=True)
    for axes, name, label in zip(axes_of, ("tflops", "seconds"), ("mean TFLOPs", "mean seconds"), strict=True):
        for point in shown:
            percent, x = 100 * point.rate.value, getattr(point, name)
            below = max(0.0, percent - 100 * point.rate.low), max(0.0, 100 * point.rate.high - percent)
            marker = "o" if _is_scale(point.system) else "D"
            axes.errorbar([x], [percent], [[each] for each in below], marker=marker, capsize=3, linestyle="")
            axes.annotate(point.system, (x, percent), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"{label} of an utterance")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    axes_of[0].set_ylabel(f"word error rate, %, {noise}")
    return figure


def _point(system: str, noise: str, own: Sequence[Outcome]) -> Point:
    num = len(own)
    return Point(
        system,
        noise,
        wer_with_interval([word_errors(each.reference, each.text) for each in own]),
        sum(each.flops for each in own) / num / 1e12,
        sum(each.num_tokens for each in own) / num,
        sum(each.seconds for each in own) / num,
        sum(each.saw_lips for each in own) / num,
    )


def _cells(points: Sequence[Point]) -> list[tuple[str, ...]]:
    dearest = {noise: max(p.tflops for p in points if p.noise == noise) for noise in {p.noise for p in points}}
    return [
        (
            point.system,
            point.noise,
            f"{100 * point.rate.value:.1f} ({100 * point.rate.low:.1f}-{100 * point.rate.high:.1f})",
            f"{point.tflops:.4f}",
            f"{100 * point.tflops / dearest[point.noise]:.0f} %",
            f"{point.num_tokens:.1f}",
            f"{point.seconds:.3f}",
            f"{100 * point.lips_share:.0f}",
        )
        for point in points
    ]


def _noise(snr_db: float | None) -> str:
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def _is_scale(system: str) -> bool:
    return system not in (ORACLE, "auto")
