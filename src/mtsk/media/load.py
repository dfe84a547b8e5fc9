"""One file in, sound and mouth out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from mtsk.media.audio import WaveformBuilder
from mtsk.media.container import MAX_DURATION_S, MediaFile, open_media
from mtsk.media.mouth import MouthTrack, MouthTracker
from mtsk.media.video import PictureReader, resample_to_grid
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS


@dataclass(frozen=True)
class Media:
    """What a file holds, on one clock: sample 0 and crop 0 lie at the start of the file.

    Attributes:
        name: the path, or what the stream is called.
        waveform: float32 (N,), mono, 16 kHz, in [-1, 1]; None without sound.
        mouth: the mouth crops; None without pictures, or if none were asked for. See `MouthTrack.num_faces`.
        duration_s: the longer of sound and pictures.
        has_video_stream: whether there are pictures, asked for or not.
        warnings: what the user should know, one line each.
    """

    name: str
    waveform: NDArray[np.float32] | None
    mouth: MouthTrack | None
    duration_s: float
    has_video_stream: bool
    warnings: tuple[str, ...] = ()


def load_media(
    source: str | Path | BinaryIO,
    *,
    tracker: MouthTracker | None,
    audio: bool = True,
    max_duration_s: float = MAX_DURATION_S,
) -> Media:
    """Decodes a media file in one pass.

    Args:
        source: a path, or a binary stream.
        tracker: finds the mouth; None leaves the pictures undecoded.
        audio: False leaves the sound undecoded.
        max_duration_s: longest duration allowed.

    Raises:
        MediaError: if the file cannot be used, has neither sound nor video, or is larger than allowed.
    """
    with open_media(source, max_duration_s=max_duration_s) as file:
        builder = WaveformBuilder(file) if audio and file.audio is not None else None
        mouth = None
        if tracker is not None and file.video is not None:
            reader = PictureReader(file)
            mouth = tracker.track(resample_to_grid(_timed(file, builder, reader), frame_s=reader.frame_s))
            if mouth.num_frames:
                _note_faces(file, mouth, tracker.face)
            else:
                mouth = None
                file.warn("no picture could be decoded")
        elif builder is not None:
            for frame in file.decode(audio=True, video=False):
                assert isinstance(frame, av.AudioFrame)
                builder.add(frame)
        waveform = None if builder is None else builder.finish()
        if waveform is not None and not len(waveform):
            waveform = None
            file.warn("no sound could be decoded")
        audio_s = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE_HZ
        video_s = 0.0 if mouth is None else mouth.num_frames / VIDEO_FPS
        if file.audio is not None and waveform is not None:
            file.check_end(file.audio, audio_s)
        if file.video is not None and mouth is not None:
            file.check_end(file.video, video_s)
        return Media(file.name, waveform, mouth, max(audio_s, video_s), file.video is not None, tuple(file.warnings))


def _timed(
    file: MediaFile, builder: WaveformBuilder | None, reader: PictureReader
) -> Iterator[tuple[float | None, NDArray[np.uint8]]]:
    """Timed pictures; the sound between them goes to the builder."""
    for frame in file.decode(audio=builder is not None, video=True):
        if isinstance(frame, av.VideoFrame):
            yield reader.read(frame)
        elif builder is not None:
            builder.add(frame)


def _note_faces(file: MediaFile, mouth: MouthTrack, face: int) -> None:
    if mouth.num_faces == 0:
        file.warn("no face was found in the video")
    elif mouth.num_detected == 0:
        file.warn(f"face {face} (counted from 0, by size) was not found; the video shows {mouth.num_faces}")
    elif mouth.num_missing:
        file.warn(f"no face on {mouth.num_missing} of {mouth.num_frames} frames; the last place was held")
