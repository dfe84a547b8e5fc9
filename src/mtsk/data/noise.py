"""Babble: several talkers at once, and its mixing at a signal-to-noise ratio.

The talkers of the training noise are never those of the evaluation noise.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from lhotse import Recording, RecordingSet
from numpy.typing import NDArray

from mtsk.data.corpora import stable_percent
from mtsk.data.workers import Died, map_unordered
from mtsk.media import MediaError, load_media
from mtsk.media.files import MEDIA_SUFFIXES
from mtsk.types import SAMPLE_RATE_HZ

NoiseSplit = Literal["train", "test"]

_LIBRISPEECH_NAME = re.compile(r"(\d+)-\d+-\d+")
_MAX_CACHED_S = 3600.0  # 115 MB
_NUM_REASONS_SHOWN = 10
NUM_MIXED = 8  # talkers of babble
_SETTINGS_FILE = "noise.json"


def prepare_noise(src: Path, dst: Path, *, num_workers: int = 1, num_mixed: int = NUM_MIXED) -> dict[str, int]:
    """Takes a folder of speech recordings as noise: DST/noise/*.flac and DST/noise_{train,test}.jsonl.gz.

    Talkers of the two sets are disjoint: of files with LibriSpeech names (`<talker>-<chapter>-<number>`) even talkers
    train and odd ones test; others are divided by a hash of their names. What is there already is not read again.
    A recording that can't be used is left out and named on stderr with the reason.

    Args:
        src: any folder of recordings.
        dst: a prepared folder.
        num_workers: processes.
        num_mixed: recordings that are summed: several talkers make babble, 1 takes recordings of noise as they are.

    Returns:
        The number of recordings of each set.

    Raises:
        ValueError: if one of the sets would be empty.
        OSError: if `dst` can't be written.
    """
    if num_mixed < 1:
        raise ValueError(f"{num_mixed} recordings at a time: at least 1 is needed")
    files = sorted(path for path in src.rglob("*") if path.suffix.lower() in MEDIA_SUFFIXES)
    named = {"_".join(path.relative_to(src).with_suffix("").parts): path for path in files}
    if len(named) < len(files):
        raise ValueError(f"{src} has recordings that differ in the suffix alone; one of a name is allowed")
    splits = {split: [name for name in named if noise_split(named[name].stem) == split] for split in ("train", "test")}
    _check_counts(src, splits)
    (dst / "noise").mkdir(parents=True, exist_ok=True)
    todo = [item for item in named.items() if not (dst / "noise" / f"{item[0]}.flac").exists()]
    refused: dict[str, str] = {}
    for result in map_unordered(partial(_copy, folder=dst / "noise"), todo, num_workers):
        if isinstance(result, Died):
            name, path = result.item
            refused[name] = f"{path}: the process that read it died"
        elif result is not None:
            refused[result[0]] = result[1]
    _print_refused(refused)
    splits = {split: [name for name in names if name not in refused] for split, names in splits.items()}
    _check_counts(src, splits)
    for split, names in splits.items():
        unfinished = dst / f".unfinished_noise_{split}.jsonl.gz"
        RecordingSet(_recording(dst, name) for name in names).to_file(unfinished)
        unfinished.replace(dst / f"noise_{split}.jsonl.gz")
    (dst / _SETTINGS_FILE).write_text(json.dumps({"num_mixed": num_mixed}) + "\n", encoding="utf-8")
    return {split: len(names) for split, names in splits.items()}


def _check_counts(src: Path, splits: dict[str, list[str]]) -> None:
    if not all(splits.values()):
        counts = {split: len(names) for split, names in splits.items()}
        raise ValueError(f"{src} has too few usable recordings, {counts}: training and test noise need some each")


def _print_refused(refused: dict[str, str]) -> None:
    if not refused:
        return
    reasons = [reason for _, reason in sorted(refused.items())]
    more = len(reasons) - _NUM_REASONS_SHOWN
    lines = [f"noise: {len(reasons)} recordings refused", *(f"  {reason}" for reason in reasons[:_NUM_REASONS_SHOWN])]
    lines += [f"  ... and {more} more"] if more > 0 else []
    print("\n".join(lines), file=sys.stderr)


def noise_split(stem: str) -> NoiseSplit:
    """Whether the talker of a file trains or tests."""
    librispeech = _LIBRISPEECH_NAME.fullmatch(stem)
    number = int(librispeech[1]) if librispeech else stable_percent(stem)
    return "train" if number % 2 == 0 else "test"


class Babble:
    """Sums of random recordings. Reads a recording when it is first drawn, and keeps up to an hour of them in memory.

    Args:
        recordings: audio files, mono, 16 kHz.
        num_mixed: recordings in a sum; all of them if there are fewer.

    Raises:
        ValueError: if there are no recordings, or no talkers.
    """

    def __init__(self, recordings: Sequence[Path], num_mixed: int = NUM_MIXED) -> None:
        if not recordings or num_mixed < 1:
            raise ValueError(f"noise needs at least one recording, not {len(recordings)}, {num_mixed} at a time")
        self._recordings = tuple(recordings)
        self._num_mixed = min(num_mixed, len(recordings))
        self._cache: dict[int, NDArray[np.int16]] = {}
        self._cached_s = 0.0

    @classmethod
    def load(cls, data_dir: Path, split: NoiseSplit) -> Babble:
        """The training or evaluation noise of a prepared folder.

        Raises:
            ValueError: if none was prepared there.
        """
        manifest = data_dir / f"noise_{split}.jsonl.gz"
        if not manifest.exists():
            raise ValueError(f"{data_dir} has no {manifest.name}: prepare noise into it first")
        recordings = RecordingSet.from_file(manifest)
        settings = data_dir / _SETTINGS_FILE
        num_mixed = json.loads(settings.read_text(encoding="utf-8"))["num_mixed"] if settings.exists() else NUM_MIXED
        return cls([data_dir / recording.sources[0].source for recording in recordings], num_mixed)

    def draw(self, num_samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Random recordings at equal level, each from a random place on and wrapped round: float32 (num_samples,)."""
        total = np.zeros(num_samples, dtype=np.float32)
        for index in rng.choice(len(self._recordings), self._num_mixed, replace=False):
            samples = self._read(int(index))
            start = int(rng.integers(len(samples)))
            rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float32))))
            total += _wrapped(samples, start, num_samples) * np.float32(0.1 / max(rms, 1.0))
        return total

    def _read(self, index: int) -> NDArray[np.int16]:
        if index in self._cache:
            return self._cache[index]
        samples, rate_hz = soundfile.read(self._recordings[index], dtype="int16")
        if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1 or not len(samples):
            raise ValueError(
                f"{self._recordings[index]} is not a mono recording at {SAMPLE_RATE_HZ} Hz with sound in it"
            )
        duration_s = len(samples) / SAMPLE_RATE_HZ
        if self._cached_s + duration_s <= _MAX_CACHED_S:
            self._cache[index] = samples
            self._cached_s += duration_s
        return np.asarray(samples, dtype=np.int16)


def mix_at_snr(speech: NDArray[np.float32], noise: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """Adds noise so that the powers over the whole of the speech differ by `snr_db`.

    Args:
        speech: (N,).
        noise: (N,).
        snr_db: power of speech over power of noise, in dB.

    Returns:
        float32 (N,); scaled down where its peak would exceed 1. Without power in the speech or the noise there is no
        ratio, and the speech comes back as it is.
    """
    if speech.shape != noise.shape:
        raise ValueError(f"speech and noise must be equally long, not {speech.shape} and {noise.shape}")
    speech_power = float(np.mean(np.square(speech, dtype=np.float64))) if len(speech) else 0.0
    noise_power = float(np.mean(np.square(noise, dtype=np.float64))) if len(noise) else 0.0
    if speech_power == 0.0 or noise_power == 0.0:
        return speech
    factor = np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))
    mixed = speech + np.float32(factor) * noise
    return np.asarray(mixed / max(1.0, float(np.abs(mixed).max())), dtype=np.float32)


def _wrapped(samples: NDArray[np.int16], start: int, num_samples: int) -> NDArray[np.int16]:
    repeats = -(-(start + num_samples) // len(samples))
    return (
        np.tile(samples, repeats)[start : start + num_samples] if repeats > 1 else samples[start : start + num_samples]
    )


def _copy(item: tuple[str, Path], folder: Path) -> tuple[str, str] | None:
    """None, or the name of a recording and why it can't be used."""
    name, path = item
    try:
        media = load_media(path, tracker=None)
    except (MediaError, OSError) as error:
        return name, str(error)
    if media.waveform is None or not media.waveform.any():
        return name, f"{path}: there is no sound in it"
    unfinished = folder / f".unfinished_{name}.flac"
    soundfile.write(unfinished, np.clip(media.waveform, -1.0, 1.0), SAMPLE_RATE_HZ, subtype="PCM_16")
    unfinished.replace(folder / f"{name}.flac")
    return None


def _recording(dst: Path, name: str) -> Recording:
    recording = Recording.from_file(dst / "noise" / f"{name}.flac", recording_id=name)
    recording.sources[0].source = f"noise/{name}.flac"
    return recording
