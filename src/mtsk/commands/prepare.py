"""`mtsk prepare`."""

from __future__ import annotations

from pathlib import Path

from mtsk.checkpoints.sources import face_models
from mtsk.data.corpora import folder, grid
from mtsk.data.noise import prepare_noise
from mtsk.data.prepare import Settings, prepare


def run(
    corpus: str, source: Path, target: Path,
    *, split: str, table: Path | None, workers: int, sheets: int, face: int, lips: bool, mix: int,
) -> int:  # fmt: skip
    """Prepares a corpus and prints the summary. Returns the exit code: 1 if nothing could be used.

    Raises:
        ValueError: if the source is not such a corpus.
    """
    for name, value in (("workers", workers), ("sheets", sheets), ("face", face)):
        if value < 0:
            raise ValueError(f"--{name} {value}: allowed are whole numbers from 0 up")
    if not source.is_dir():
        raise ValueError(f"{source}: {'is not a folder' if source.exists() else 'no such folder'}")
    if corpus == "noise":
        counts = prepare_noise(source, target, num_workers=workers, num_mixed=mix)
        print(f"noise: {counts['train']} recordings for training, {counts['test']} for evaluation, talkers disjoint")
        return 0
    listed = grid.list_sources(source) if corpus == "grid" else folder.list_sources(source, split, table)
    settings = Settings(face_models() if lips else None, face)
    summary = prepare(listed, target, settings, num_workers=workers, num_sheets=sheets if lips else 0)
    print(summary)
    return 0 if summary.num_utterances else 1
