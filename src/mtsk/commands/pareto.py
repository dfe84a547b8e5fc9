"""`mtsk evaluate --pareto`: error rates against cost, of every scale, `auto` and the oracle."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import mtsk
from mtsk.commands.evaluate import batches_at, choose_scales, parse_snrs
from mtsk.data.dataset import load_cuts
from mtsk.data.noise import Babble
from mtsk.evaluation.pareto import Outcome, oracle, print_pareto, summarize, write_pareto
from mtsk.inference.engine import Engine
from mtsk.inference.policy import Policy
from mtsk.inference.trials import try_scales
from mtsk.scale import Scale
from mtsk.types import Example


def run(
    data_dir: Path, out_dir: Path, model: str, split: str, scales: Sequence[str], snr: str, batch: int,
    *, with_oracle: bool,
) -> int:  # fmt: skip
    """Decodes all utterances at every scale and under `auto`, prints the table and writes the report.

    Raises:
        ValueError: if data, model, scales or noise do not fit, or the model was not calibrated.
    """
    if batch < 1:
        raise ValueError(f"--batch {batch}: at least 1 utterance at a time is needed")
    snrs_db = parse_snrs(snr)
    cuts = load_cuts(data_dir, split)
    babble = Babble.load(data_dir, "test") if any(value is not None for value in snrs_db) else None
    engine = mtsk.load(model)
    policy, chosen = engine.auto, choose_scales(engine, scales)
    examples_at = functools.partial(batches_at, cuts, babble, batch)
    fixed: list[Outcome] = []
    auto: list[Outcome] = []
    for snr_db in snrs_db:
        for examples in examples_at(snr_db):
            fixed += at_scales(engine, examples, snr_db, chosen)
            auto += under(engine, policy, examples, snr_db)
    shown = [*(each for scale in chosen for each in fixed if each.system == str(scale)), *auto]
    shown += oracle(fixed) if with_oracle else []
    points = summarize(shown)
    write_pareto(points, shown, out_dir)
    # In a file a table may be as wide as it needs to be.
    print_pareto(points, Console(width=None if sys.stdout.isatty() else 120))
    print(f"{out_dir}: pareto.json, pareto.md, pareto.png, outcomes.jsonl")
    return 0


def at_scales(
    engine: Engine, examples: Sequence[Example], snr_db: float | None, scales: Sequence[Scale]
) -> list[Outcome]:
    """Each scale alone. All are charged with the time for encoding what they use together."""
    return [
        Outcome(
            str(each.segment.scale), snr_db, examples[each.row].id, examples[each.row].text, each.segment.text,
            each.cost.total_flops, each.segment.num_tokens, each.seconds, each.segment.scale.video is not None,
        )
        for each in try_scales(engine, engine.costs, examples, scales)
    ]  # fmt: skip


def under(engine: Engine, policy: Policy, examples: Sequence[Example], snr_db: float | None) -> list[Outcome]:
    """Under a policy, shown as `auto`. An utterance that it has no scale for is left out."""
    started_s = time.perf_counter()
    segments = engine.recognize_by(examples, [policy] * len(examples))
    seconds = (time.perf_counter() - started_s) / len(examples)
    return [
        Outcome(
            "auto", snr_db, example.id, example.text, segment.text, segment.decision.flops, segment.num_tokens, seconds,
            segment.decision.used_lips,
        )
        for example, segment in zip(examples, segments, strict=True)
        if segment is not None and segment.decision is not None
    ]  # fmt: skip
