"""Media files -> a prepared folder: sound and mouth crops decoded once, and one lhotse manifest for each split.

DST/audio/<id>.flac (16 kHz, mono), DST/mouth/<id>.npy (uint8, T x 96 x 96), DST/cuts_<split>.jsonl.gz, DST/prepare.json
(the summary), DST/sheets/<id>.png (mouth crops to look at), DST/prepare_log.jsonl (one line per file that is done, from
which an interrupted run goes on). Paths in the manifests are relative to DST, so it can be moved.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.array import Array, TemporalArray
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mtsk.data.corpora import Corpus, Source
from mtsk.data.workers import Died, map_unordered
from mtsk.media import FaceModels, MediaError, MouthTracker, contact_sheet, load_media
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS

_LOG = "prepare_log.jsonl"
_SUMMARY = "prepare.json"
_NUM_REASONS_SHOWN = 10
PIPELINE_VERSION = 1
"""Part of what says whether a file is done. Raise it when a change to `mtsk.media` or to this module makes another
result of the same file, in sound, mouth crops or manifest: prepared folders are then made anew by the next run."""


@dataclass(frozen=True)
class Settings:
    """What decides the result for a file, besides the file."""

    face_models: FaceModels | None
    """None: the sound alone."""
    face: int = 0
    """Which face to follow when there are several, the largest first."""


@dataclass(frozen=True)
class Summary:
    """What a prepared folder holds, over all runs into it."""

    num_utterances: dict[str, int]
    """By split."""
    duration_h: dict[str, float]
    """By split."""
    num_without_lips: int
    num_without_sound: int
    num_frames: int
    """Mouth crops."""
    num_frames_interpolated: int
    """Of these, frames whose face was not found and lies between frames where it was."""
    num_frames_missing: int
    """Of these, frames far from any with a face; the last place was held."""
    num_new: int
    """Files that this run worked on; the others were done before."""
    refused: dict[str, str]
    """Utterance -> why it was left out."""
    warnings: dict[str, tuple[str, ...]]
    """Utterance -> what to know about it."""
    notes: tuple[str, ...]
    """About the corpus."""

    def __str__(self) -> str:
        lines = [
            f"{split}: {count} utterances, {self.duration_h[split]:.2g} h"
            for split, count in self.num_utterances.items()
        ]
        lines.append(
            f"{self.num_new} files read in this run; {self.num_without_lips} utterances without lips, "
            f"{self.num_without_sound} without sound; of {self.num_frames} mouth crops {self.num_frames_interpolated} "
            f"interpolated, {self.num_frames_missing} without a face"
        )
        lines += self.notes
        lines += [f"refused: {len(self.refused)}"] if self.refused else []
        shown = list(self.refused.items())[:_NUM_REASONS_SHOWN]
        lines += [f"  {id}: {reason}" for id, reason in shown]
        if len(self.refused) > len(shown):
            lines.append(f"  ... and {len(self.refused) - len(shown)} more, see {_SUMMARY}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Record:
    """A line of the log: what became of one file."""

    id: str
    split: str
    key: str
    """Changes with the file, its text and the settings."""
    cut: dict[str, Any] | None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    num_interpolated: int = 0
    num_missing: int = 0
    retry: bool = False


def prepare(
    corpus: Corpus,
    dst: Path,
    settings: Settings,
    *,
    num_workers: int = 1,
    num_sheets: int = 12,
    progress: bool = True,
) -> Summary:
    """Prepares a corpus for training and evaluation.

    May be interrupted at any time and run again; files that are done and have not changed are not read again. Several
    corpora may go into one folder; an utterance of the same name replaces the earlier one. A file that can't be used
    is left out with its reason, in the summary.

    Args:
        corpus: what to prepare, see `mtsk.data.corpora`.
        dst: the prepared folder.
        settings: which lips, if any.
        num_workers: processes; 0 works in this one.
        num_sheets: pictures of all mouth crops of an utterance, for this many utterances drawn at random.
        progress: show a bar with the time that remains, on stderr.

    Raises:
        OSError: if `dst` can't be written.
    """
    for folder in ("audio", "mouth"):
        (dst / folder).mkdir(parents=True, exist_ok=True)
    records = _read_log(dst / _LOG)
    keyed = [(source, _key(source, settings)) for source in corpus.sources]
    todo = [(source, key) for source, key in keyed if _is_due(records.get(source.id), key)]
    moves = _moves(corpus, records)
    if todo or not (dst / _SUMMARY).exists():
        (dst / _SUMMARY).unlink(missing_ok=True)  # comes back when the manifests agree with the log
        _write_log(dst / _LOG, records)
        with (dst / _LOG).open("a", encoding="utf-8") as log:
            for record in _work(todo, dst, settings, num_workers, progress):
                records[record.id] = record
                log.write(json.dumps(asdict(record)) + "\n")
                log.flush()
        _write_manifests(dst, records)
        _write_sheets(dst, records, num_sheets)
    summary = _summarise(records, (*corpus.notes, *moves), len(todo))
    _replace_text(dst / _SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def _moves(corpus: Corpus, records: dict[str, _Record]) -> list[str]:
    """What to say of utterances that were in another split before."""
    moves = Counter((records[s.id].split, s.split) for s in corpus.sources if s.id in records)
    return [f"{count} utterances moved from split {a} to {b}" for (a, b), count in moves.items() if a != b]


def _work(
    todo: list[tuple[Source, str]], dst: Path, settings: Settings, num_workers: int, progress: bool
) -> Iterator[_Record]:
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("", total=len(todo))
        function = partial(_prepare_one, dst=dst, settings=settings)
        for result in map_unordered(function, todo, num_workers):
            if isinstance(result, Died):
                source, key = result.item
                reason = "the process that read it died (a crash, or out of memory)"
                yield _Record(source.id, source.split, key, None, reason, retry=True)
            else:
                yield result
            bar.advance(task)


def _prepare_one(keyed: tuple[Source, str], *, dst: Path, settings: Settings) -> _Record:
    """Reads a file, writes its sound and lips, and describes them."""
    source, key = keyed
    refused = partial(_Record, source.id, source.split, key, None)
    if source.refusal:
        return refused(source.refusal)
    if not source.text.strip():
        return refused("it has no text")
    tracker = _tracker(settings)
    try:
        media = load_media(source.path, tracker=tracker)
    except (MediaError, OSError) as error:
        return refused(str(error))
    mouth = media.mouth if media.mouth is not None and media.mouth.num_detected else None
    if media.waveform is None and mouth is None:
        wanted = "sound" if tracker is None else "sound nor a face"
        return refused("; ".join((f"it has no {wanted}", *media.warnings)))
    warnings = list(media.warnings)
    if mouth is None and media.has_video_stream and tracker is not None:
        warnings.append("no lips: kept as sound alone")
    if media.waveform is None:
        warnings.append("no sound: kept as lips alone")
    cut = _store(source, media.waveform, None if mouth is None else mouth.crops_THW, dst)
    return _Record(
        source.id,
        source.split,
        key,
        cut.to_dict(),
        warnings=tuple(warnings),
        num_interpolated=0 if mouth is None else mouth.num_interpolated,
        num_missing=0 if mouth is None else mouth.num_missing,
    )


@cache
def _tracker(settings: Settings) -> MouthTracker | None:
    """One per process: loading the models takes longer than following a face through a clip."""
    if settings.face_models is None:
        return None
    return MouthTracker(settings.face_models, face=settings.face)


def _store(
    source: Source, waveform: NDArray[np.float32] | None, crops_THW: NDArray[np.uint8] | None, dst: Path
) -> MonoCut:
    """Writes the arrays; the cut has paths relative to `dst`."""
    custom: dict[str, Any] = {"has_audio": waveform is not None}
    if crops_THW is not None:
        np.save(dst / "mouth" / f"{source.id}.npy", crops_THW, allow_pickle=False)
        array = Array("numpy_files", "mouth", f"{source.id}.npy", list(crops_THW.shape))
        custom["mouth"] = TemporalArray(array, temporal_dim=0, frame_shift=1 / VIDEO_FPS, start=0.0)
    if waveform is None:
        # A cut needs a recording: silence that lasts as long as the lips; `has_audio` tells.
        assert crops_THW is not None
        waveform = np.zeros(len(crops_THW) * SAMPLE_RATE_HZ // VIDEO_FPS, dtype=np.float32)
    audio_path = f"audio/{source.id}.flac"
    soundfile.write(dst / audio_path, np.clip(waveform, -1.0, 1.0), SAMPLE_RATE_HZ, subtype="PCM_16")
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    recording = Recording(
        id=source.id,
        sources=[AudioSource(type="file", channels=[0], source=audio_path)],
        sampling_rate=SAMPLE_RATE_HZ,
        num_samples=len(waveform),
        duration=duration_s,
    )
    alignment = [AlignmentItem(word.text, word.start_s, word.end_s - word.start_s) for word in source.words]
    supervision = SupervisionSegment(
        id=source.id,
        recording_id=source.id,
        start=0.0,
        duration=duration_s,
        text=" ".join(source.text.lower().split()),
        speaker=source.speaker or None,
        alignment={"word": alignment} if alignment else None,
    )
    return MonoCut(source.id, 0.0, duration_s, 0, [supervision], recording=recording, custom=custom)


def _key(source: Source, settings: Settings) -> str:
    try:
        status = source.path.stat()
        file = f"{status.st_size}:{status.st_mtime_ns}"
    except OSError:
        file = "missing"
    words = ";".join(f"{word.text},{word.start_s},{word.end_s}" for word in source.words)
    lips = "none" if settings.face_models is None else settings.face
    text = f"{source.text}|{source.refusal}|{words}"
    return f"{file}|{source.split}|{source.speaker}|{text}|lips={lips}|pipeline={PIPELINE_VERSION}"


def _is_due(record: _Record | None, key: str) -> bool:
    return record is None or record.key != key or record.retry


def _read_log(path: Path) -> dict[str, _Record]:
    """The last record of each utterance. A last line cut short by an interruption is dropped."""
    if not path.exists():
        return {}
    records = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for line in lines[:-1]:
        values = json.loads(line)
        record = _Record(**{**values, "warnings": tuple(values["warnings"])})
        records[record.id] = record
    return records


def _write_log(path: Path, records: dict[str, _Record]) -> None:
    _replace_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in records.values()))


def _write_manifests(dst: Path, records: dict[str, _Record]) -> None:
    cuts: dict[str, list[MonoCut]] = defaultdict(list)
    for record in sorted(records.values(), key=lambda record: record.id):
        if record.cut is not None:
            cuts[record.split].append(MonoCut.from_dict(json.loads(json.dumps(record.cut))))
    for old in dst.glob("cuts_*.jsonl.gz"):
        if old.name[len("cuts_") : -len(".jsonl.gz")] not in cuts:
            old.unlink()
    for split, members in cuts.items():
        unfinished = dst / f".unfinished_{split}.jsonl.gz"
        CutSet(members).to_file(unfinished)
        unfinished.replace(dst / f"cuts_{split}.jsonl.gz")


def _write_sheets(dst: Path, records: dict[str, _Record], num_sheets: int) -> None:
    with_lips = sorted(
        id for id, record in records.items() if record.cut is not None and "mouth" in record.cut["custom"]
    )
    (dst / "sheets").mkdir(exist_ok=True)
    for id in random.Random(0).sample(with_lips, min(num_sheets, len(with_lips))):
        contact_sheet(np.load(dst / "mouth" / f"{id}.npy"), dst / "sheets" / f"{id}.png")


def _summarise(records: dict[str, _Record], notes: tuple[str, ...], num_new: int) -> Summary:
    num_utterances: dict[str, int] = defaultdict(int)
    duration_h: dict[str, float] = defaultdict(float)
    num_without_lips = num_without_sound = num_frames = 0
    for record in records.values():
        if record.cut is None:
            continue
        num_utterances[record.split] += 1
        duration_h[record.split] += record.cut["duration"] / 3600
        mouth = record.cut["custom"].get("mouth")
        num_without_lips += mouth is None
        num_frames += 0 if mouth is None else mouth["array"]["shape"][0]
        num_without_sound += not record.cut["custom"]["has_audio"]
    return Summary(
        num_utterances=dict(sorted(num_utterances.items())),
        duration_h={split: round(hours, 4) for split, hours in sorted(duration_h.items())},
        num_without_lips=num_without_lips,
        num_without_sound=num_without_sound,
        num_frames=num_frames,
        num_frames_interpolated=sum(record.num_interpolated for record in records.values()),
        num_frames_missing=sum(record.num_missing for record in records.values()),
        num_new=num_new,
        refused={id: record.reason for id, record in sorted(records.items()) if record.cut is None},
        warnings={id: record.warnings for id, record in sorted(records.items()) if record.warnings},
        notes=notes,
    )


def _replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".unfinished_{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
