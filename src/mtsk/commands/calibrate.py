"""`mtsk calibrate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import mtsk
from mtsk.checkpoints.store import write_policy
from mtsk.commands.evaluate import parse_snrs
from mtsk.config import AutoConfig
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.noise import Babble
from mtsk.evaluation.wer import normalize, word_errors
from mtsk.files import write_whole
from mtsk.inference.calibration import Pass, Trial, calibrate
from mtsk.inference.engine import Engine
from mtsk.inference.snr import estimate_snr_db
from mtsk.inference.trials import Tried, try_scales
from mtsk.types import Example


def run(
    model: str, data_dir: Path, split: str, snr: str, out_dir: Path | None,
    *, noises: int, share: float, batch: int,
) -> int:  # fmt: skip
    """Chooses the thresholds of `auto`, stores them in the checkpoint, and prints them.

    Raises:
        ValueError: if model, data or noise do not fit, or the split is kept for evaluation.
    """
    if noises < 1 or batch < 1 or not 0 < share <= 1:
        raise ValueError(
            f"--noises {noises} --batch {batch} --share {share:g}: from 1, from 1, and above 0 to 1 are allowed"
        )
    folder = mtsk.model_folder(model)
    snrs_db = parse_snrs(snr)
    cuts = load_cuts(data_dir, split, training=True)
    babble = Babble.load(data_dir, "train") if any(value is not None for value in snrs_db) else None
    engine = mtsk.load(folder)
    trials: list[Trial] = []
    for snr_db in snrs_db:
        for seed in range(noises if snr_db is not None else 1):
            dataset = UtteranceDataset(cuts, seed=seed, babble=babble if snr_db is not None else None, snr_db=snr_db)
            # What is heard once counts as often as what is heard in several noises.
            weight = noises if snr_db is None else 1
            found = [each for examples in _batches(dataset, batch) for each in _try(engine, examples)]
            trials += found * weight
    reached = {scale for trial in trials for scale in trial.passes}
    if not reached:
        raise ValueError(f"{data_dir}: no utterance of {split} has sound that lasts for a token")
    finest = max(reached, key=lambda scale: scale.tokens_per_second)
    usable = [trial for trial in trials if finest in trial.passes]
    policy = calibrate(
        usable, finest, share=share, data=f"{len(cuts)} utterances of {split}, {snr}, {noises} noises each"
    )
    write_policy(folder, policy)
    if out_dir is not None:
        write_whole(out_dir / "trials.json", json.dumps([_plain(trial) for trial in usable]) + "\n")
    _print(policy)
    print(f"stored in {folder}")
    return 0


def _batches(dataset: UtteranceDataset, batch: int) -> Iterator[list[Example]]:
    for start in range(0, len(dataset), batch):
        yield [dataset[name, 0] for name in dataset.ids[start : start + batch]]


def _try(engine: Engine, examples: Sequence[Example]) -> list[Trial]:
    """The utterances that have sound, at every scale that they allow."""
    tried: dict[int, list[Tried]] = {}
    for each in try_scales(engine, engine.costs, examples, engine.grid):
        tried.setdefault(each.row, []).append(each)
    trials = []
    for row, results in tried.items():
        example = examples[row]
        if example.waveform is None:
            continue
        passes = {
            each.segment.scale: Pass(
                num_errors=word_errors(example.text, each.segment.text).total,
                confidence=each.segment.sureness,
                flops=each.cost.total_flops - each.cost.encode_flops,
            )
            for each in results
        }
        encode_flops = {letter: flops for each in results for letter, flops in each.encode_flops.items()}
        snr_db, num_words = estimate_snr_db(example.waveform), len(normalize(example.text))
        trials.append(Trial(example.id, snr_db, num_words, passes, encode_flops))
    return trials


def _plain(trial: Trial) -> dict[str, object]:
    passes = {str(scale): [p.num_errors, p.confidence, p.flops] for scale, p in trial.passes.items()}
    return {
        "utterance": trial.utterance,
        "snr_db": trial.snr_db,
        "words": trial.num_words,
        "encode": dict(trial.encode_flops),
        "passes": passes,
    }


def _print(policy: AutoConfig) -> None:
    for band in policy.bands:
        where = "below" if band.min_snr_db is None else f"from {band.min_snr_db:g} dB on"
        steps = [f"{step.scale} (kept from {step.min_confidence:.3f} on)" for step in band.steps[:-1]]
        print(f"sound {where}: {', then '.join([*steps, str(band.steps[-1].scale)])}")
