"""The report of a study: `tables.md`, which shows every figure and table there are data for, and the figures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure

from mtsk.files import write_whole
from mtsk.studies.figures import cost_figure, snr_figure, styles, wer_figure
from mtsk.studies.results import Block, Results, blocks
from mtsk.studies.tables import cost_table, difference_table, runs_table, setting_table, snr_table, wer_table

TABLES_FILE = "tables.md"

_WER_NOTE = (
    "WER in %, no noise added: mean over {seeds}, in brackets the 95 % bootstrap interval over {utterances}, the same "
    "draws for every cell{scatter}. The interval is for these seeds; it does not hold what other seeds would give. "
    "The best of a column is bold."
)
_DIFFERENCE_NOTE = (
    "Paired differences on the same utterances and the seeds that both have, in percentage points, with a 95 % "
    "bootstrap interval over utterances; with several seeds, *worse* and *better* where it excludes 0. Each cell "
    "stands alone: of many equal pairs about one in twenty excludes 0 by chance, and another seed moves a cell too."
)
_SNR_NOTE = "WER in % by signal-to-noise ratio, as above."
_COST_NOTE = (
    "For the mean utterance with its text, average pooling, one adapter; *total* includes encoders and face tracking. "
    "The figures against cost use these numbers for all rows."
)
_RUNS_NOTE = (
    "*Models* are needed to cover the scales; parameters, passes and minutes are those of all these models together, "
    "mean over seeds. Passes of the language model, steps times scales of a step, say what a method costs. Minutes are "
    "wall time and leave out stages that another run of the study had done already."
)


def write_report(results: Results, out_dir: Path) -> list[Path]:
    """Writes `tables.md` and the figures that it shows; returns the paths, the tables first.

    Works while a study is under way: what is not measured yet is a dash in the tables and absent from the figures. Each
    file appears whole or not at all, the tables after the figures.
    """
    style = styles(results)
    figures: list[Path] = []
    sections = [f"# {results.title}"]
    found = blocks(results)
    for block, slug in zip(found, _slugs([block.matrix for block in found]), strict=True):
        names = {}
        drawn = [wer_figure(block, style), snr_figure(block), cost_figure(block, results.costs, style)]
        for kind, figure in zip(("wer", "snr", "cost"), drawn, strict=True):
            if figure is not None:
                names[kind] = f"{kind}-{slug}.png"
                _write_figure(figure, out_dir / names[kind])
        figures += [out_dir / name for name in names.values()]
        sections += _block_sections(block, names)
    if not results.measured:
        sections.append("Nothing is measured yet.")
    for title, note, table in (
        ("Cost", _COST_NOTE, cost_table(results.costs)),
        ("Training", _RUNS_NOTE, runs_table(results)),
        ("Setting", "", setting_table(results.setting)),
    ):
        if table:
            sections += [f"## {title}", *filter(None, [note]), table.rstrip()]
    write_whole(out_dir / TABLES_FILE, ("\n\n".join(sections) + "\n").encode())
    return [out_dir / TABLES_FILE, *figures]


def _block_sections(block: Block, names: dict[str, str]) -> list[str]:
    if not block.cells:
        return []
    parts = [
        (None, _wer_note(block), wer_table(block), ("wer", "Word error rate by scale")),
        ("Differences", _DIFFERENCE_NOTE, difference_table(block), None),
        ("Noise", _SNR_NOTE, snr_table(block), ("snr", "Word error rate by signal-to-noise ratio")),
    ]
    sections = [f"## {block.matrix}"]
    for title, note, table, picture in parts:
        if table:
            sections += [*([f"### {block.matrix}: {title.lower()}"] if title else []), note, table.rstrip()]
        if picture and picture[0] in names:
            sections.append(_picture(block, names[picture[0]], picture[1]))
    if "cost" in names:
        sections += [f"### {block.matrix}: cost", _picture(block, names["cost"], "Word error rate against TFLOPs")]
    return sections


def _picture(block: Block, name: str, what: str) -> str:
    alternative = re.sub(r"[\[\]\\]", "", f"{what}: {block.matrix}")
    return f"![{alternative}]({quote(name)})"


def _wer_note(block: Block) -> str:
    seeds = sorted({len(cell.seeds) for cell in block.cells.values()})
    utterances = sorted({len(cell.words_U) for cell in block.cells.values()})
    scatter = "" if seeds[-1] == 1 else "; ± is the standard deviation of the seeds"
    return _WER_NOTE.format(seeds=_count(seeds, "seed"), utterances=_count(utterances, "utterance"), scatter=scatter)


def _count(numbers: Sequence[int], noun: str) -> str:
    """`1 seed`, `2 to 3 seeds`."""
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} {noun}" + ("" if numbers == [1] else "s")


def _slugs(names: Sequence[str]) -> Iterator[str]:
    """A distinct file name part for each name."""
    used: set[str] = set()
    for name in names:
        base = re.sub(r"[^\w]+", "-", name.lower()).strip("-") or "matrix"
        slug, number = base, 1
        while slug in used:
            number += 1
            slug = f"{base}-{number}"
        used.add(slug)
        yield slug


def _write_figure(figure: Figure, path: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_whole(path, image.getvalue())
