"""Tables of a study in Markdown, in the form of the paper's. Each function gives "" where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from mtsk.scale import Scale
from mtsk.studies.results import Block, Cost, Estimate, Results, Row, RunFacts

MISSING = "–"
NO_INPUT = "no input"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], num_text_columns: int = 1) -> str:
    """A table whose first columns are text, and whose others are numbers, aligned to the right."""
    rules = ["---" if index < num_text_columns else "---:" for index in range(len(header))]
    escaped = [[_escape(cell) for cell in row] for row in (header, *rows)]
    lines = [escaped[0], rules, *escaped[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def wer_table(block: Block) -> str:
    """Clean WER % (95 % interval) by scale; decoding without input, which has no scale, has its own column."""
    rows = [[block.wer(row, scale) for scale in block.scales] for row in block.rows]
    unheard = {row: block.no_input(row) for row in block.rows}
    if not any(found for row in rows for found in row) and not any(unheard.values()):
        return ""
    best = [min((found.value for found in column if found), default=None) for column in zip(*rows, strict=True)]
    lines = []
    for row, found in zip(block.rows, rows, strict=True):
        pairs = zip(found, best, strict=True)
        several = len(block.rows) > 1
        cells = [format_wer(e, bold=several and e is not None and e.value == b) for e, b in pairs]
        lines.append([*_names(row), *cells, *([format_wer(unheard[row])] if any(unheard.values()) else [])])
    header = ["method", "compressor", *map(str, block.scales), *([NO_INPUT] if any(unheard.values()) else [])]
    return markdown_table(header, lines, num_text_columns=2)


def difference_table(block: Block) -> str:
    """Clean WER of each row minus that of its reference, in points; worse and better where the interval excludes 0."""
    lines = []
    any_found = False
    for row in block.rows:
        reference = block.reference(row)
        if reference is None:
            continue
        found = [block.difference(row, reference, scale) for scale in block.scales]
        any_found |= any(found)
        lines.append([*_names(row), ", ".join(_names(reference)), *map(format_difference, found)])
    header = ["method", "compressor", "minus", *map(str, block.scales)]
    return markdown_table(header, lines, num_text_columns=3) if any_found else ""


def snr_table(block: Block) -> str:
    """WER % by SNR, a row per method and scale; "" where there is only one SNR."""
    if len(block.snrs_db) < 2:
        return ""
    lines = [
        [*_names(row), str(scale), *(format_wer(block.wer(row, scale, snr_db)) for snr_db in block.snrs_db)]
        for row in block.rows
        for scale in block.scales
        if any((row, scale, snr_db) in block.cells for snr_db in block.snrs_db)
    ]
    header = ["method", "compressor", "scale", *map(format_snr, block.snrs_db)]
    return markdown_table(header, lines, num_text_columns=3) if lines else ""


def cost_table(costs: Sequence[Cost]) -> str:
    """Tokens and TFLOPs per mean utterance, by scale."""
    lines = [
        [str(cost.scale), f"{cost.num_tokens:.1f}", format_number(cost.llm_tflops), format_number(cost.total_tflops)]
        for cost in sorted(costs, key=lambda cost: cost.scale)
    ]
    return markdown_table(["scale", "LLM tokens", "LLM TFLOPs", "total TFLOPs"], lines) if lines else ""


def runs_table(results: Results) -> str:
    """What covers the scales of a row: how many models, and their parameters, passes and minutes together.

    A model that was trained with several seeds counts once, with the mean of its seeds, so that a row of many models
    and a row of one are compared for one seed.
    """
    groups: dict[tuple[str, Row], list[RunFacts]] = {}
    for run in results.runs:
        groups.setdefault((run.matrix, Row(run.method, run.compressor)), []).append(run)
    lines = []
    for (matrix, row), runs in groups.items():
        models: dict[tuple[Scale, ...], list[RunFacts]] = {}
        for run in runs:
            models.setdefault(run.scales, []).append(run)
        num_trainable = sum(_mean(run.num_trainable for run in model) for model in models.values())
        num_passes = sum(_mean(run.num_passes for run in model) for model in models.values())
        train_s = sum(_mean(run.train_s for run in model) for model in models.values())
        counts = [len(runs), len({run.seed for run in runs}), len(models)]
        numbers = [f"{num_trainable / 1e6:.2f} M", f"{num_passes:.0f}", f"{train_s / 60:.1f}"]
        lines.append([matrix, *_names(row), *map(str, counts), *numbers])
    header = [
        "matrix",
        "method",
        "compressor",
        "runs",
        "seeds",
        "models",
        "trainable parameters",
        "LLM passes",
        "minutes",
    ]
    return markdown_table(header, lines, num_text_columns=3) if lines else ""


def setting_table(setting: Mapping[str, str]) -> str:
    """What the figures depend on."""
    return markdown_table(["setting", "value"], setting.items(), num_text_columns=2) if setting else ""


def format_wer(estimate: Estimate | None, *, bold: bool = False) -> str:
    """`2.6 ±0.2 (2.1–3.2)`: percent, standard deviation of the seeds where there are several, 95 % interval."""
    if estimate is None:
        return MISSING
    value = f"{100 * estimate.value:.1f}"
    interval = f"({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"
    return (f"**{value}**" if bold else value) + _scatter(estimate) + " " + interval


def format_difference(estimate: Estimate | None) -> str:
    """`+1.2 ±0.3 (+0.4 to +2.0) worse`: as `format_wer`, in percentage points."""
    if estimate is None:
        return MISSING
    interval = f"({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
    told = estimate.excludes_zero and estimate.num_seeds > 1  # one seed can't tell a method from its luck
    verdict = "" if not told else " worse" if estimate.value > 0 else " better"
    return f"{100 * estimate.value:+.1f}{_scatter(estimate)} {interval}{verdict}"


def format_snr(snr_db: float | None) -> str:
    """`clean` or `5 dB`."""
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def format_number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _scatter(estimate: Estimate) -> str:
    return "" if estimate.seed_sd is None else f" ±{100 * estimate.seed_sd:.1f}"


def _names(row: Row) -> list[str]:
    return [row.method, row.compressor]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
