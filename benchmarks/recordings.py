"""What the benchmark of speed transcribes: clips of GRID, and utterances of LibriSpeech joined to long recordings."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
PAUSES_S = (0.3, 1.0)  # the least and the most between two utterances
_NOISE = 3e-4  # of pauses, -70 dB of full scale: a quiet room
_CHUNK_S = 10.0  # of a pause that is written at once


@dataclass(frozen=True)
class Utterance:
    """A file, how long it lasts, and what is said in it."""

    path: Path
    duration_s: float
    text: str


@dataclass(frozen=True)
class Silence:
    """A long silence: after which share of the recording, and how long."""

    share: float
    duration_s: float


def data_folder() -> Path:
    """The data for development: beside the repository, or where MTSK_SHARED says.

    Raises:
        ValueError: if it is not there.
    """
    folder = Path(os.environ.get("MTSK_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not (folder / "grid" / "s1_splits.json").is_file() or not (folder / "librispeech" / "test-other.tsv").is_file():
        raise ValueError(f"{folder} has no grid/s1_splits.json and librispeech/test-other.tsv; MTSK_SHARED says where")
    return folder


def grid_clips(folder: Path, num_clips: int) -> list[Utterance]:
    """Clips of GRID's talker s1 from the test split, spread over it."""
    names = json.loads((folder / "s1_splits.json").read_text())["test"]
    chosen = [names[index * len(names) // num_clips] for index in range(num_clips)]
    clips = []
    for name in chosen:
        lines = [line.split() for line in (folder / "s1" / f"{name}.align").read_text().splitlines()]
        words = [word for _, _, word in lines if word not in ("sil", "sp")]
        clips.append(Utterance(folder / "s1" / f"{name}.mp4", 3.0, " ".join(words)))
    return clips


def librispeech(folder: Path) -> list[Utterance]:
    """The utterances of test-other, one of each talker in turn."""
    with (folder / "test-other.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    by_talker: dict[str, list[Utterance]] = {}
    for row in rows:
        path = folder / "test-other" / row["file"]
        by_talker.setdefault(row["talker"], []).append(Utterance(path, sf.info(path).duration, row["transcript"]))
    most = max(map(len, by_talker.values()))
    return [each[index] for index in range(most) for each in by_talker.values() if index < len(each)]


def plan(
    utterances: Sequence[Utterance], duration_s: float, silences: Sequence[Silence] = (), seed: int = 0
) -> list[Utterance | float]:
    """Utterances and the seconds of silence between them, up to a duration.

    The utterances come in turn and begin anew after the last. No one is cut: the end is filled up with silence.

    Args:
        utterances: at least one.
        duration_s: of the whole.
        silences: beside the short pauses.
        seed: of the pauses.

    Returns:
        The parts, in order of time; their durations add up to `duration_s`.
    """
    random = np.random.default_rng(seed)
    waiting = sorted(silences, key=lambda silence: silence.share)
    parts: list[Utterance | float] = []
    now_s = 0.0
    for utterance in cycle(utterances):
        while waiting and now_s >= waiting[0].share * duration_s:
            silence = waiting.pop(0)
            parts.append(silence.duration_s)
            now_s += silence.duration_s
        pause_s = float(random.uniform(*PAUSES_S))
        if now_s + utterance.duration_s + pause_s > duration_s:
            break
        parts += [utterance, pause_s]
        now_s += utterance.duration_s + pause_s
    return [*parts, duration_s - now_s] if now_s < duration_s else parts


def text_of(parts: Iterable[Utterance | float]) -> str:
    """All that is said."""
    return " ".join(part.text for part in parts if isinstance(part, Utterance))


def write_recording(path: Path, parts: Iterable[Utterance | float], seed: int = 0) -> None:
    """Joins the parts to one FLAC file, mono, 16 kHz; what is held does not grow with it."""
    random = np.random.default_rng(seed)
    with sf.SoundFile(path, "w", samplerate=SAMPLE_RATE_HZ, channels=1, format="FLAC") as file:
        for part in parts:
            if isinstance(part, Utterance):
                file.write(_read(part.path))
                continue
            for start_s in np.arange(0.0, part, _CHUNK_S):
                num_samples = round(min(_CHUNK_S, part - start_s) * SAMPLE_RATE_HZ)
                file.write((_NOISE * random.standard_normal(num_samples)).astype(np.float32))


def _read(path: Path) -> NDArray[np.float32]:
    samples, rate_hz = sf.read(path, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
        raise ValueError(f"{path} has {rate_hz} Hz and shape {samples.shape}; needed is mono at {SAMPLE_RATE_HZ} Hz")
    return np.asarray(samples, np.float32)
