"""A camera and a microphone made of a clip: files that Chromium's fake devices play in a loop."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_FPS = 25
_SAMPLE_RATE_HZ = 48_000
_WIDTH, _HEIGHT = 360, 288


@dataclass(frozen=True)
class FakeDevices:
    """What a fake camera and microphone show and play, in a loop.

    Attributes:
        pictures: a file of raw pictures (y4m).
        sound: a wave file of the same length.
        loop_s: the length.
    """

    pictures: Path
    sound: Path
    loop_s: float

    @property
    def flags(self) -> list[str]:
        """Of Chromium."""
        return [
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",  # nobody is there to allow the camera
            f"--use-file-for-fake-video-capture={self.pictures}",
            f"--use-file-for-fake-audio-capture={self.sound}",
        ]


def fake_devices(clip: Path, folder: Path, *, pause_s: float) -> FakeDevices:
    """Writes the files of a clip's devices.

    Args:
        clip: with pictures at 25 a second, and sound.
        folder: for the files.
        pause_s: before and after the clip: the first and last picture stand still, nobody speaks.
    """
    images, waveform = _pictures(clip), _sound(clip)
    num_still = round(pause_s * _FPS)
    images = [images[0]] * num_still + images + [images[-1]] * num_still
    loop_s = len(images) / _FPS
    samples = _room(waveform, round(loop_s * _SAMPLE_RATE_HZ))
    start = round(pause_s * _SAMPLE_RATE_HZ)
    waveform = waveform[: len(samples) - start]
    samples[start : start + len(waveform)] = waveform
    folder.mkdir(parents=True, exist_ok=True)
    devices = FakeDevices(folder / "camera.y4m", folder / "microphone.wav", loop_s)
    _write_y4m(devices.pictures, images)
    with wave.open(str(devices.sound), "wb") as sink:
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(_SAMPLE_RATE_HZ)
        sink.writeframes(samples.tobytes())
    return devices


def recorded(data: bytes) -> dict[str, float]:
    """What a browser's recording holds: pictures and seconds of sound; a busy machine records fewer pictures."""
    with av.open(io.BytesIO(data), "r") as container:
        pictures = sum(1 for _ in container.decode(video=0))
    with av.open(io.BytesIO(data), "r") as container:
        sound_s = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return {"pictures": pictures, "sound_s": round(sound_s, 2)}


def _pictures(clip: Path) -> list[NDArray[np.uint8]]:
    """As planes of yuv420p: (height * 3 / 2, width)."""
    with av.open(str(clip)) as container:
        frames = container.decode(video=0)
        return [frame.reformat(_WIDTH, _HEIGHT, "yuv420p").to_ndarray().astype(np.uint8) for frame in frames]


def _sound(clip: Path) -> NDArray[np.int16]:
    resampler = av.AudioResampler("s16", "mono", _SAMPLE_RATE_HZ)
    with av.open(str(clip)) as container:
        pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
    pieces += resampler.resample(None)
    return np.concatenate([piece.to_ndarray()[0].astype(np.int16) for piece in pieces])


def _room(waveform: NDArray[np.int16], num_samples: int) -> NDArray[np.int16]:
    """Noise as loud as the clip's quietest stretches: no room is as silent as zeros."""
    window = _SAMPLE_RATE_HZ // 40
    pieces = waveform[: len(waveform) // window * window].reshape(-1, window).astype(np.float64)
    level = np.sqrt(np.percentile((pieces**2).mean(axis=1), 5))
    return np.random.default_rng(0).normal(0.0, level, num_samples).astype(np.int16)


def _write_y4m(path: Path, images: list[NDArray[np.uint8]]) -> None:
    rate = Fraction(_FPS)
    with path.open("wb") as sink:
        sink.write(f"YUV4MPEG2 W{_WIDTH} H{_HEIGHT} F{rate.numerator}:{rate.denominator} Ip A1:1 C420\n".encode())
        for image in images:
            sink.write(b"FRAME\n" + np.ascontiguousarray(image).tobytes())
