"""Small recordings made here, and where the shared ones are."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Example, Word

SHARED = Path(os.environ.get("MTSK_SHARED", Path(__file__).parents[3] / "shared")) / "data"


@pytest.fixture
def grid_dir():
    """The shared part of GRID."""
    if not (SHARED / "grid").is_dir():
        pytest.skip("needs the shared part of GRID")
    return SHARED / "grid"


@pytest.fixture
def librispeech_dir():
    """The shared part of LibriSpeech."""
    if not (SHARED / "librispeech").is_dir():
        pytest.skip("needs the shared part of LibriSpeech")
    return SHARED / "librispeech"


def tone(duration_s: float = 0.5, hz: float = 300.0) -> NDArray[np.float32]:
    time_s = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def write_tones(folder: Path, num: int, duration_s: float = 0.5) -> Path:
    """Sound files `u00.wav`... of different pitch and length, with texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        soundfile.write(folder / f"u{index:02}.wav", tone(duration_s + 0.01 * index, 200 + 20 * index), SAMPLE_RATE_HZ)
        (folder / f"u{index:02}.txt").write_text(f"Utterance  number {index}\n")
    return folder


def write_clip(path: Path, *, num_frames: int = 10, sound: bool = True) -> Path:
    """A video without a face: noise, and a tone if asked for."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=VIDEO_FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono") if sound else None
        for _ in range(num_frames):
            picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(tone(num_frames / VIDEO_FPS)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ), 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def random_example(*, num_samples: int | None = 48_000, num_frames: int | None = 75, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    return Example(
        f"u{seed}",
        None if num_samples is None else (0.1 * rng.standard_normal(num_samples)).astype(np.float32),
        None if num_frames is None else rng.integers(0, 256, (num_frames, 96, 96), dtype=np.uint8),
        "bin blue",
        (Word("bin", 0.4, 0.9), Word("blue", 1.0, 1.5)),
    )
