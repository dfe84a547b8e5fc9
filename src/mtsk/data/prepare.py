"""Media files -> a prepared folder: sound and mouth crops decoded once, and one lhotse manifest for each split.

DST/audio/<id>.flac (16 kHz, mono), DST/mouth/<id>.npy (uint8, T x 96 x 96), DST/cuts_<split>.jsonl.gz, DST/prepare.json
(the summary), DST/sheets/<id>.png (mouth crops to look at), DST/prepare_log.jsonl (one line per file that is done, from
which an interrupted run goes on). Paths in the manifests are relative to DST, so it can be moved. Memory does not grow
with the corpus beyond the names of its files: what was found in each is on the disk, see `mtsk.data.prepare_log`.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.array import Array, TemporalArray
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mtsk.data.corpora import Corpus, Piece, Source
from mtsk.data.prepare_log import Log, Record
from mtsk.data.workers import Died, map_unordered
from mtsk.files import write_whole
from mtsk.media import FaceModels, Media, MouthTracker, contact_sheet, load_media
from mtsk.media.landmarks import LandmarkTracker, read_landmarks
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Word

_LOG = "prepare_log.jsonl"
_SUMMARY = "prepare.json"
_NUM_REASONS_SHOWN = 10
_NOT_LISTED = "its corpus no longer lists it"
_MAX_DIFFERENCE_FRAMES = 2  # between supplied landmarks and the pictures of a file, at its end
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
    is left out with its reason, in the summary. What an earlier run took of the same corpus (see `Corpus.prefix`) and
    this one does not list leaves the manifests, as its talker may be one of evaluation now; a run that lists it again
    brings it back without reading it.

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
    log = Log(dst / _LOG)
    todo = [source for source in corpus.sources if not log.is_done(source.id, _key(source, settings))]
    moves = _moves(corpus, log)
    relisted = _relisted(corpus, log, todo)
    if todo or relisted or not (dst / _SUMMARY).exists():
        (dst / _SUMMARY).unlink(missing_ok=True)  # comes back when the manifests agree with the log
        with log:
            for record in log.read(relisted):
                log.add(replace(record, reason=relisted[record.id]))
            for record in _work(todo, dst, settings, num_workers, progress):
                log.add(record)
        _write_manifests(dst, log)
        _write_sheets(dst, log, num_sheets)
    summary = _summarise(log, (*corpus.notes, *moves), len(todo))
    write_whole(dst / _SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def _moves(corpus: Corpus, log: Log) -> list[str]:
    """What to say of utterances that were in another split before."""
    moves = Counter((log.entries[s.id].split, s.split) for s in corpus.sources if s.id in log.entries)
    return [f"{count} utterances moved from split {a} to {b}" for (a, b), count in moves.items() if a != b]


def _relisted(corpus: Corpus, log: Log, todo: Sequence[Source]) -> dict[str, str]:
    """File that the corpus no longer lists, or lists again and has not to be read -> the reason of its record."""
    listed = {source.id for source in corpus.sources}
    returned = listed - {source.id for source in todo}
    reasons = {id: "" for id in sorted(returned) if log.entries[id].is_set_aside}
    if corpus.prefix:
        own = (id for id, entry in log.entries.items() if entry.is_used and id.startswith(corpus.prefix))
        reasons |= {id: _NOT_LISTED for id in own if id not in listed}
    return reasons


def _work(todo: Sequence[Source], dst: Path, settings: Settings, num_workers: int, progress: bool) -> Iterator[Record]:
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("", total=len(todo))
        function = partial(_prepare_one, dst=dst, settings=settings)
        for result in map_unordered(function, todo, num_workers):
            if isinstance(result, Died):
                source = result.item
                reason = "the process that read it died (a crash, or out of memory)"
                yield Record(source.id, source.split, _key(source, settings), (), reason, retry=True)
            else:
                yield result
            bar.advance(task)


def _prepare_one(source: Source, *, dst: Path, settings: Settings) -> Record:
    """Reads a file, writes the sound and lips of its utterances, and describes them."""
    refused = partial(Record, source.id, source.split, _key(source, settings), ())
    if source.refusal:
        return refused(source.refusal)
    try:
        pieces = [piece for piece in source.utterances() if piece.text.strip()]
    except (ValueError, OSError) as error:
        return refused(str(error))
    if not pieces:
        return refused("it has no text")
    tracker = _tracker(settings)
    try:
        if source.make is None:
            media, warnings = _load(source, tracker)
        else:
            made, words = source.make()
            media, warnings = Media(source.id, made, None, len(made) / SAMPLE_RATE_HZ, False), []
            pieces = [Piece(source.text, words)]
    except (ValueError, OSError) as error:
        return refused(str(error))
    mouth = media.mouth if media.mouth is not None and media.mouth.num_detected else None
    if media.waveform is None and mouth is None:
        wanted = "sound" if tracker is None else "sound nor a face"
        return refused("; ".join((f"it has no {wanted}", *warnings)))
    if mouth is None and media.has_video_stream and tracker is not None:
        warnings.append("no lips: kept as sound alone")
    if media.waveform is None:
        warnings.append("no sound: kept as lips alone")
    cuts = []
    for piece in pieces:
        waveform, crops_THW = _cut(piece, media.waveform, None if mouth is None else mouth.crops_THW)
        if waveform is None and crops_THW is None:
            warnings.append(f"the file ends before its utterance {piece.suffix} at {piece.start_s:.2f} s: left out")
            continue
        utterance = replace(source, id=source.id + piece.suffix, text=piece.text, words=piece.words)
        cuts.append(_store(utterance, waveform, crops_THW, dst).to_dict())
    return Record(
        source.id,
        source.split,
        _key(source, settings),
        tuple(cuts),
        reason="" if cuts else "; ".join(warnings),
        warnings=tuple(warnings),
        num_interpolated=0 if mouth is None else mouth.num_interpolated,
        num_missing=0 if mouth is None else mouth.num_missing,
    )


def _load(source: Source, tracker: MouthTracker | None) -> tuple[Media, list[str]]:
    """Sound and mouth of a file, and what to know about them.

    Raises:
        MediaError: if the file can't be used.
        OSError: if it can't be read.
    """
    notes: list[str] = []
    num_landmarks = 0
    if source.landmarks is not None and tracker is not None:
        try:
            landmarks = read_landmarks(source.landmarks)
            tracker, num_landmarks = LandmarkTracker(landmarks), len(landmarks)
        except (ValueError, OSError) as error:
            notes.append(f"{error}; the face was looked for instead")
    media = load_media(source.path, tracker=tracker)
    if media.waveform is None and source.sound is not None:
        sound = load_media(source.sound, tracker=None)
        media = replace(media, waveform=sound.waveform)
        notes += sound.warnings
    num_frames = None if media.mouth is None else media.mouth.num_frames
    if num_landmarks and num_frames and abs(num_landmarks - num_frames) > _MAX_DIFFERENCE_FRAMES:
        notes.append(f"{source.landmarks} has {num_landmarks} frames, the video {num_frames}")
    return media, [*media.warnings, *notes]


def _cut(
    piece: Piece, waveform: NDArray[np.float32] | None, crops_THW: NDArray[np.uint8] | None
) -> tuple[NDArray[np.float32] | None, NDArray[np.uint8] | None]:
    """What of a file belongs to a piece, sound and lips from the same frame on; None what is not there."""
    first = math.floor(piece.start_s * VIDEO_FPS + 1e-6)
    end = None if math.isinf(piece.end_s) else math.ceil(piece.end_s * VIDEO_FPS - 1e-6)
    samples = SAMPLE_RATE_HZ // VIDEO_FPS
    if waveform is not None:
        waveform = waveform[first * samples : None if end is None else end * samples]
    if crops_THW is not None:
        crops_THW = crops_THW[first:end]
    return (
        None if waveform is None or not len(waveform) else waveform,
        None if crops_THW is None or not len(crops_THW) else crops_THW,
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
    words = _spelled(source.words)
    lips = "none" if settings.face_models is None else settings.face
    text = f"{source.text}|{source.refusal}|{words}"
    file = _state(source.path) if source.make is None else repr(source.make)
    key = f"{file}|{source.split}|{source.speaker}|{text}|lips={lips}|pipeline={PIPELINE_VERSION}"
    for piece in source.pieces:
        key += f"|{piece.suffix},{piece.start_s},{piece.end_s},{piece.text},{_spelled(piece.words)}"
    for name, path in (("script", source.script), ("sound", source.sound), ("landmarks", source.landmarks)):
        key += "" if path is None else f"|{name}={_state(path)}"
    return key


def _spelled(words: Sequence[Word]) -> str:
    return ";".join(f"{word.text},{word.start_s},{word.end_s}" for word in words)


def _state(path: Path) -> str:
    """Changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _write_manifests(dst: Path, log: Log) -> None:
    """The cuts in the order of the files' names, one line after the other."""
    splits = {entry.split for entry in log.entries.values() if entry.is_used}
    for old in dst.glob("cuts_*.jsonl.gz"):
        if old.name[len("cuts_") : -len(".jsonl.gz")] not in splits:
            old.unlink()
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(gzip.open(dst / f".unfinished_{split}.jsonl.gz", "wt", encoding="utf-8"))
            for split in splits
        }
        for record in log.read(sorted(id for id, entry in log.entries.items() if entry.is_used)):
            for cut in record.cuts:
                files[record.split].write(json.dumps(cut, ensure_ascii=False) + "\n")
    for split in splits:
        (dst / f".unfinished_{split}.jsonl.gz").replace(dst / f"cuts_{split}.jsonl.gz")


def _write_sheets(dst: Path, log: Log, num_sheets: int) -> None:
    """Of as many files, drawn at random, the first utterance with lips."""
    with_lips = sorted(
        id for id, entry in log.entries.items() if entry.is_used and entry.num_cuts > entry.num_without_lips
    )
    (dst / "sheets").mkdir(exist_ok=True)
    for record in log.read(random.Random(0).sample(with_lips, min(num_sheets, len(with_lips)))):
        id = next(cut["id"] for cut in record.cuts if "mouth" in cut["custom"])
        contact_sheet(np.load(dst / "mouth" / f"{id}.npy"), dst / "sheets" / f"{id}.png")


def _summarise(log: Log, notes: tuple[str, ...], num_new: int) -> Summary:
    num_utterances: dict[str, int] = defaultdict(int)
    duration_h: dict[str, float] = defaultdict(float)
    by_id = {id: entry for id, entry in sorted(log.entries.items()) if not entry.is_set_aside}
    entries = by_id.values()
    num_aside = len(log.entries) - len(entries)
    if num_aside:
        notes += (f"{num_aside} files that were prepared earlier are in no split: {_NOT_LISTED}",)
    for entry in entries:
        if entry.is_used:
            num_utterances[entry.split] += entry.num_cuts
            duration_h[entry.split] += entry.duration_s / 3600
    return Summary(
        num_utterances=dict(sorted(num_utterances.items())),
        duration_h={split: round(hours, 4) for split, hours in sorted(duration_h.items())},
        num_without_lips=sum(entry.num_without_lips for entry in entries),
        num_without_sound=sum(entry.num_without_sound for entry in entries),
        num_frames=sum(entry.num_frames for entry in entries),
        num_frames_interpolated=sum(entry.num_interpolated for entry in entries),
        num_frames_missing=sum(entry.num_missing for entry in entries),
        num_new=num_new,
        refused={id: entry.reason for id, entry in by_id.items() if not entry.num_cuts},
        warnings={id: entry.warnings for id, entry in by_id.items() if entry.warnings},
        notes=notes,
    )
