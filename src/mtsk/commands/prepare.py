"""`mtsk prepare`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtsk.checkpoints.sources import face_models
from mtsk.data.corpora import Corpus, folder, grid, labelled, lrs, spoken, vox2
from mtsk.data.noise import NUM_MIXED, prepare_noise
from mtsk.data.prepare import Settings, prepare

_CORPORA_OF = {
    "--split": ("folder",),
    "--table": ("folder", "vox2"),
    "--mix": ("noise",),
    "--landmarks": ("lrs2", "lrs3", "vox2"),
    "--no-pretrain": ("lrs2", "lrs3"),
    "--only": ("vox2",),
    "--hours": ("spoken",),
    "--voices": ("spoken",),
    "--voice-dir": ("spoken",),
    "--seed": ("spoken",),
    "--min-confidence": ("labelled",),
}


def refuse_options_of_others(corpus: str, given: Iterable[str]) -> None:
    """Raises ValueError if one of the given options is of other corpora: it would do nothing."""
    for name in given:
        if corpus not in _CORPORA_OF[name]:
            raise ValueError(f"{name} is for {', '.join(_CORPORA_OF[name])}, not for {corpus}")


def run(
    corpus: str, source: Path, target: Path,
    *, split: str, table: Path | None, workers: int, sheets: int, face: int, lips: bool, mix: int = NUM_MIXED,
    landmarks: Path | None = None, pretrain: bool = True, only: Path | None = None,
) -> int:  # fmt: skip
    """Prepares a corpus and prints the summary. Returns the exit code: 1 if nothing could be used.

    Raises:
        ValueError: if the source is not such a corpus, or an option is not valid.
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
    listed = _list(corpus, source, split, table, landmarks if lips else None, pretrain, only)
    settings = Settings(face_models() if lips else None, face)
    summary = prepare(listed, target, settings, num_workers=workers, num_sheets=sheets if lips else 0)
    print(summary)
    return 0 if summary.num_utterances else 1


def run_spoken(
    texts: Path, target: Path, *, hours: float, kinds: tuple[str, ...], voice_dir: Path | None, seed: int, workers: int
) -> int:
    """Lets voices say the sentences of a file, and prints the summary. Returns 1 if nothing could be said.

    Raises:
        ValueError: if an option is not valid, or a voice is not installed.
    """
    if workers < 0:
        raise ValueError(f"--workers {workers}: allowed are whole numbers from 0 up")
    listed = spoken.list_sources(texts, hours=hours, kinds=kinds, voice_dir=voice_dir, seed=seed)
    summary = prepare(listed, target, Settings(None), num_workers=workers, num_sheets=0)
    print(summary)
    return 0 if summary.num_utterances else 1


def run_labelled(source: Path, target: Path, *, min_confidence: float, workers: int) -> int:
    """Labels recordings by Whisper's own decoder, prepares those whose label it is sure of, and prints the summary.

    The labels are in `labels.jsonl` beside the data: with another `min_confidence` nothing is decoded again.

    Returns:
        The exit code: 1 if nothing could be used.

    Raises:
        ValueError: if an option is out of range, or `source` has no recordings.
    """
    if workers < 0:
        raise ValueError(f"--workers {workers}: allowed are whole numbers from 0 up")
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"--min-confidence {min_confidence:g}: allowed is 0 to 1")
    found = labelled.recordings(source)
    from mtsk.evaluation.labelling import label, whisper_decoder  # heavy, and only this corpus needs it

    labels = label(found, target / labelled.FILE_NAME, whisper_decoder)
    listed = labelled.list_sources(found, labels, min_confidence)
    summary = prepare(listed, target, Settings(None), num_workers=workers, num_sheets=0)
    print(summary)
    return 0 if summary.num_utterances else 1


def _list(
    corpus: str, source: Path, split: str, table: Path | None, landmarks: Path | None, pretrain: bool, only: Path | None
) -> Corpus:
    match corpus:
        case "grid":
            return grid.list_sources(source)
        case "lrs2" | "lrs3":
            return lrs.list_sources(corpus, source, pretrain=pretrain, landmarks=landmarks)
        case "vox2":
            if table is None:
                raise ValueError("vox2 has no text: --table names a .tsv with the columns file and transcript")
            return vox2.list_sources(source, table, only=only, landmarks=landmarks)
    return folder.list_sources(source, split, table)
