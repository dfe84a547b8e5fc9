"""A prepared folder of noise, in the format of `mtsk prepare`, and configurations that train on it in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, RecordingSet

from mtsk.config import (
    JointStageConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    VideoStageConfig,
    WarmStartStageConfig,
)
from mtsk.data.corpora import Source
from mtsk.data.prepare import _store
from mtsk.types import SAMPLE_RATE_HZ, Word
from tests.tiny import TEXTS, tiny_config, tiny_example

NUM_TRAIN, NUM_DEV = 7, 3


def write_utterance(folder: Path, id: str, *, lips: bool = True, sound: bool = True, words: bool = True) -> MonoCut:
    """Writes the sound and lips of one utterance; the number at the end of its name decides them."""
    number = int(id.rpartition("_")[2])
    text = TEXTS[number % len(TEXTS)]
    duration_s = 0.7 + 0.09 * number
    example = tiny_example(text, duration_s, round(25 * duration_s) - 1, id=id, seed=number)
    source = Source(id, Path(f"{id}.mp4"), text, example.words if words else ())
    return _store(source, example.waveform if sound else None, example.mouth if lips else None, folder)


def write_split(folder: Path, split: str, cuts: Sequence[MonoCut]) -> None:
    CutSet(cuts).to_file(folder / f"cuts_{split}.jsonl.gz")


def write_data(folder: Path, *, noise: bool = True, gaps: bool = False) -> Path:
    """The splits train and dev, and a test split that can't be read.

    Args:
        noise: with training noise, and evaluation noise that can't be read.
        gaps: one utterance of each split has no lips, one no sound, and one no word times.
    """
    for name in ("audio", "mouth", "noise"):
        (folder / name).mkdir(parents=True)
    for split, count in (("train", NUM_TRAIN), ("dev", NUM_DEV)):
        cuts = [
            write_utterance(
                folder, f"{split}_{i}", lips=not (gaps and i == 1), sound=not (gaps and i == 2), words=not gaps or i > 0
            )
            for i in range(count)
        ]
        write_split(folder, split, cuts)
    (folder / "cuts_test.jsonl.gz").write_bytes(b"not for training")
    if noise:
        write_noise(folder)
    return folder


def write_noise(folder: Path) -> None:
    recordings = []
    for number in range(3):
        waveform = tiny_example("noise", 0.8, None, seed=50 + number).waveform
        soundfile.write(folder / "noise" / f"n{number}.flac", waveform, SAMPLE_RATE_HZ, subtype="PCM_16")
        recording = Recording.from_file(folder / "noise" / f"n{number}.flac", recording_id=f"n{number}")
        recording.sources[0].source = f"noise/n{number}.flac"
        recordings.append(recording)
    RecordingSet(recordings).to_file(folder / "noise_train.jsonl.gz")
    (folder / "noise_test.jsonl.gz").write_bytes(b"not for training")


class EvenAligner:
    """Stands for Whisper's aligner, which is not tiny: spreads the words evenly. Counts the utterances."""

    num_aligned = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def align(self, waveform: np.ndarray, text: str) -> tuple[Word, ...]:
        type(self).num_aligned += 1
        words = text.split()
        edges = np.linspace(0.0, len(waveform) / SAMPLE_RATE_HZ, len(words) + 1).tolist()
        return tuple(Word(*word) for word in zip(words, edges[:-1], edges[1:], strict=True))


def tiny_train_config(model: ModelConfig | None = None, *, num_steps: int = 5, cache_views: int = 0) -> TrainConfig:
    """All three stages, with dropout, all losses, and scales drawn at random."""
    optim = OptimConfig(num_steps=num_steps, lr=5e-3, batch_s=3.0)
    return TrainConfig(
        model=model or tiny_config("mss"),
        video_encoder=VideoStageConfig(optim, distill_weight=0.5),
        warm_start=WarmStartStageConfig(optim),
        joint=JointStageConfig(optim, scales_per_step=3),
        seed=3,
        cache_views=cache_views,
        save_every=2,
    )
