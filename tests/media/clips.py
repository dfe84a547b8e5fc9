"""Makes media files for the tests: a flash and a click at the same instant, or given pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from mtsk.media import Media, MouthTrack, MouthTracker, load_media

CLAP_S = 1.2  # a whole number of frames at 25, 30 and 50 a second
_SIZE = (64, 48)


@dataclass(frozen=True)
class Kind:
    """How a clip is encoded."""

    suffix: str
    video: str | None
    audio: str | None
    fps: int = 25
    rate_hz: int = 48_000
    layout: str = "stereo"


class FrameCollector(MouthTracker):
    """Stands in for the tracker where a test wants to see the frames that it is given."""

    def __init__(self) -> None:
        self.face = 0
        self.frames: list[NDArray[np.uint8]] = []

    def track(self, frames: Iterable[NDArray[np.uint8]]) -> MouthTrack:
        self.frames = list(frames)
        return MouthTrack(np.zeros((len(self.frames), 96, 96), np.uint8), len(self.frames), 0, 0, 1)


def load_frames(source: Path | BinaryIO) -> list[NDArray[np.uint8]]:
    """The frames that a tracker would see."""
    collector = FrameCollector()
    load_media(source, tracker=collector)
    return collector.frames


def sound_of(media: Media) -> NDArray[np.float32]:
    """The waveform, which must be there."""
    assert media.waveform is not None
    return media.waveform


def mouth_of(media: Media) -> MouthTrack:
    """The mouth track, which must be there."""
    assert media.mouth is not None
    return media.mouth


def clap_picture(time_s: float) -> NDArray[np.uint8]:
    """Black; white from the clap on, for 0.2 s."""
    white = CLAP_S - 1e-6 <= time_s < CLAP_S + 0.2 - 1e-6
    return np.full((_SIZE[1], _SIZE[0], 3), 255 if white else 0, np.uint8)


def clap_sound(rate_hz: int, duration_s: float, num_channels: int = 2) -> NDArray[np.float32]:
    """Silence; a tone from the clap on, for 0.2 s. (channels, samples)."""
    time_s = np.arange(round(rate_hz * duration_s)) / rate_hz
    tone = 0.5 * np.sin(2 * np.pi * 500 * time_s) * ((time_s >= CLAP_S) & (time_s < CLAP_S + 0.2))
    return np.tile(tone.astype(np.float32), (num_channels, 1))


def write_clip(
    path: Path,
    kind: Kind,
    *,
    duration_s: float = 2.0,
    picture: Callable[[float], NDArray[np.uint8]] = clap_picture,
    audio_start_s: float = 0.0,
    video_start_s: float = 0.0,
    rotation: int = 0,
) -> Path:
    """Writes a clip. A late start leaves out what would come before; the clap stays where it is."""
    with av.open(str(path), "w") as container:
        video = None if kind.video is None else _video_stream(container, kind, picture(0.0).shape, rotation)
        audio = None
        if kind.audio is not None:
            audio = container.add_stream(kind.audio, rate=kind.rate_hz, layout=kind.layout, options={"strict": "-2"})
        if audio is not None:
            _write_audio(container, audio, kind, duration_s, audio_start_s)
        if video is not None:
            for index in range(round(video_start_s * kind.fps), round(duration_s * kind.fps)):
                frame = av.VideoFrame.from_ndarray(picture(index / kind.fps), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, kind.fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
    return path


def flash_and_click_s(frames: list[NDArray[np.uint8]], media: Media) -> tuple[float, float]:
    """When the flash and the click begin, in seconds."""
    flash = next(index for index, frame in enumerate(frames) if frame.mean() > 128)
    return flash / 25, int(np.argmax(np.abs(sound_of(media)) > 0.2)) / 16_000


def _video_stream(container: Any, kind: Kind, shape: tuple[int, ...], rotation: int) -> Any:
    video = container.add_stream(kind.video, rate=kind.fps)
    video.height, video.width = shape[:2]
    video.pix_fmt = "yuvj420p" if kind.video == "mjpeg" else "yuv420p"
    if kind.video == "libx264":
        video.options = {"preset": "ultrafast", "crf": "18"}
    elif kind.video == "mpeg1video":
        video.bit_rate = 2_000_000
    if rotation:
        video.set_display_rotation(rotation)
    return video


def _write_audio(container: Any, stream: Any, kind: Kind, duration_s: float, start_s: float) -> None:
    sound = clap_sound(kind.rate_hz, duration_s, {"mono": 1, "stereo": 2, "5.1": 6}[kind.layout])
    sound = sound[:, round(start_s * kind.rate_hz) :]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=kind.layout)
    frame.sample_rate, frame.time_base = kind.rate_hz, Fraction(1, kind.rate_hz)
    frame.pts = round(start_s * kind.rate_hz)
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, kind.layout, kind.rate_hz, frame_size=context.frame_size or 1024)
    for piece in resampler.resample(frame) + resampler.resample(None):
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))
