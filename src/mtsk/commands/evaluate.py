"""`mtsk evaluate`."""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet
from rich.console import Console
from transformers import WhisperConfig

import mtsk
from mtsk.checkpoints.shapes import load_cost_model
from mtsk.checkpoints.sources import resolve, whisper_ctranslate2
from mtsk.config import Untrained
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.noise import Babble
from mtsk.evaluation.error_report import write_errors
from mtsk.evaluation.errors import Lexicon, read_counts
from mtsk.evaluation.flops import RequestFlops, WhisperShape
from mtsk.evaluation.grid import Peer, evaluate
from mtsk.evaluation.peers import FasterWhisperPeer, WhisperPeer
from mtsk.evaluation.report import have_slots, print_slots, print_table, write_report
from mtsk.evaluation.wer import normalize
from mtsk.inference.beam import Beams
from mtsk.inference.encoded import EncodedExamples
from mtsk.inference.engine import Engine
from mtsk.scale import Scale
from mtsk.types import Example


def run(
    data_dir: Path, out_dir: Path, model: str, split: str,
    scales: Sequence[str], snr: str, peers: Sequence[str], batch: int, untrained: Untrained,
    frequencies: Path | None = None, beams: int = 1,
) -> int:  # fmt: skip
    """Evaluates, prints the table and writes the report.

    Raises:
        ValueError: if data, model, scales, noise or frequencies do not fit, or a peer is not installed.
        OSError: if the frequencies can't be read.
    """
    if not scales:
        raise ValueError("--scale without a scale; give some such as a4v2, a16 or v5, or `all`")
    if batch < 1:
        raise ValueError(f"--batch {batch}: at least 1 utterance at a time is needed")
    snrs_db = parse_snrs(snr)
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: no such folder; --data takes a folder from `mtsk prepare`")
    cuts = load_cuts(data_dir, split)
    babble = Babble.load(data_dir, "test") if any(value is not None for value in snrs_db) else None
    counts = None if frequencies is None else _counts(frequencies)
    search = Beams(beams)
    engine = mtsk.load(model)
    engine.model.untrained = untrained
    chosen = choose_scales(engine, scales)

    # In a file a table may be as wide as it needs to be.
    console = Console(width=None if sys.stdout.isatty() else 120)
    systems = {name: _PEERS[name](engine) for name in peers}
    examples_at = functools.partial(batches_at, cuts, babble, batch)
    # Of a search with beams the number of passes is not known afterwards.
    flops_of = None if beams > 1 else RequestFlops(engine.model, load_cost_model(engine.model.config))
    rows = evaluate(
        _Searching(engine, search), examples_at, chosen, snrs_db,
        peers=systems, flops_of=flops_of, out_dir=out_dir, console=Console(stderr=True),
    )  # fmt: skip
    write_report(rows, out_dir)
    write_errors(rows, out_dir, Lexicon(counts, lambda word: len(engine.model.prompts.word_ids(word))))
    print_table(rows, console)
    if have_slots(rows):
        print_slots(rows, console)
    names = "wer.json, wer.csv, wer.png, errors.json, errors.md, hypotheses.jsonl"
    console.print(f"{out_dir}: {names}", highlight=False)
    return 0


@dataclass(frozen=True)
class _Searching:
    """An engine that decodes with beams, as the evaluation asks for it."""

    engine: Engine
    beams: Beams

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """See `Engine.encode`."""
        return self.engine.encode(examples)

    def usable(self, encoded: EncodedExamples, scale: Scale) -> list[int]:
        """See `Engine.usable`."""
        return self.engine.usable(encoded, scale)

    def decode(self, encoded: EncodedExamples, scale: Scale, rows: Sequence[int]) -> list[str]:
        """See `Engine.decode`."""
        return self.engine.decode(encoded, scale, rows, beams=self.beams)

    def decode_no_input(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine.decode_no_input`."""
        return self.engine.decode_no_input(examples)


def _whisper_base(engine: Engine) -> Peer:
    """In the precision of the engine, so that their times compare."""
    return WhisperPeer(resolve("whisper-base"), engine.device, dtype=engine.dtype)


def _faster_whisper_base(engine: Engine) -> Peer:  # noqa: ARG001 - it runs on the processor, whatever the engine does
    shape = WhisperShape.of(WhisperConfig.from_pretrained(resolve("whisper-base")))
    return FasterWhisperPeer(whisper_ctranslate2(), shape)


_PEERS: Mapping[str, Callable[[Engine], Peer]] = {
    "whisper-base": _whisper_base,
    "faster-whisper-base-int8": _faster_whisper_base,
}


def _counts(path: Path) -> Counter[str]:
    """How often words come in a file of sentences or counts, or in the training sentences of a prepared folder, where
    a sentence that was recorded several times counts once."""
    if not path.is_dir():
        return read_counts(path)
    texts = {part.text or "" for cut in load_cuts(path, "train") for part in cut.supervisions}
    return Counter(word for text in texts for word in normalize(text))


def choose_scales(engine: Engine, names: Sequence[str]) -> tuple[Scale, ...]:
    """The scales by name: `all` is every trained one, `a4-20` every rate from 4 to 20.

    Raises:
        ValueError: if one is no scale, or was not trained.
    """
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


def parse_snrs(text: str) -> list[float | None]:
    """Signal-to-noise ratios in dB; None is clean.

    Raises:
        ValueError: if one is no number.
    """
    try:
        snrs_db = [None if part.strip() == "clean" else float(part) for part in text.split(",")]
    except ValueError:
        snrs_db = [math.nan]
    if not all(snr_db is None or math.isfinite(snr_db) for snr_db in snrs_db):
        raise ValueError(f"--snr {text}: not a list of ratios; write them as clean,10,0,-5 (dB)")
    return list(dict.fromkeys(snrs_db))
