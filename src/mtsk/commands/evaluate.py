"""`mtsk evaluate`."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import CutSet
from rich.console import Console

import mtsk
from mtsk.checkpoints.sources import resolve
from mtsk.config import Untrained
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.noise import Babble
from mtsk.evaluation.grid import evaluate
from mtsk.evaluation.peers import WhisperPeer
from mtsk.evaluation.report import have_slots, print_slots, print_table, write_report
from mtsk.inference.engine import Engine
from mtsk.scale import Scale
from mtsk.types import Example


def run(
    data_dir: Path, out_dir: Path, model: str, split: str,
    scales: Sequence[str], snr: str, peers: Sequence[str], batch: int, untrained: Untrained,
) -> int:  # fmt: skip
    """Evaluates, prints the table and writes the report.

    Raises:
        ValueError: if data, model, scales or noise do not fit.
    """
    if not scales:
        raise ValueError("--scale without a scale; give some such as a4v2, a16 or v5, or `all`")
    if batch < 1:
        raise ValueError(f"--batch {batch}: at least 1 utterance at a time is needed")
    snrs_db = _parse_snrs(snr)
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: no such folder; --data takes a folder from `mtsk prepare`")
    cuts = load_cuts(data_dir, split)
    babble = Babble.load(data_dir, "test") if any(value is not None for value in snrs_db) else None
    engine = mtsk.load(model)
    engine.model.untrained = untrained
    chosen = _choose(engine, scales)

    # In a file a table may be as wide as it needs to be.
    console = Console(width=None if sys.stdout.isatty() else 120)
    systems = {name: WhisperPeer(resolve(name), engine.device) for name in peers}
    examples_at = functools.partial(batches_at, cuts, babble, batch)
    rows = evaluate(engine, examples_at, chosen, snrs_db, peers=systems, out_dir=out_dir, console=Console(stderr=True))
    write_report(rows, out_dir)
    print_table(rows, console)
    if have_slots(rows):
        print_slots(rows, console)
    console.print(f"{out_dir}: wer.json, wer.csv, wer.png, hypotheses.jsonl", highlight=False)
    return 0


def _choose(engine: Engine, names: Sequence[str]) -> tuple[Scale, ...]:
    """The scales by name: `all` is every trained one, `a4-20` every rate from 4 to 20."""
    chosen: dict[Scale, None] = {}
    for name in names:
        chosen.update(dict.fromkeys(engine.grid if name == "all" else Scale.parse_ranges(name)))
    for scale in chosen:
        engine.model.reading(scale)
    return tuple(chosen)


def batches_at(cuts: CutSet, babble: Babble | None, batch: int, snr_db: float | None) -> Iterator[Sequence[Example]]:
    """The utterances, so many at a time, in babble at an SNR in dB (None: clean)."""
    dataset = UtteranceDataset(cuts, babble=babble, snr_db=snr_db)
    for start in range(0, len(dataset), batch):
        yield [dataset[name, 0] for name in dataset.ids[start : start + batch]]


def _parse_snrs(text: str) -> list[float | None]:
    try:
        snrs_db = [None if part.strip() == "clean" else float(part) for part in text.split(",")]
    except ValueError:
        snrs_db = [math.nan]
    if not all(snr_db is None or math.isfinite(snr_db) for snr_db in snrs_db):
        raise ValueError(f"--snr {text}: not a list of ratios; write them as clean,10,0,-5 (dB)")
    return list(dict.fromkeys(snrs_db))
