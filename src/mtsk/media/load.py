"""One file in, sound and mouth out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from mtsk.media.audio import WaveformBuilder
from mtsk.media.container import MAX_DURATION_S, MediaFile, open_media
from mtsk.media.mouth import MouthTrack, MouthTracker, Sighting
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
                counts = (mouth.num_detected, mouth.num_interpolated, mouth.num_missing)
                note_faces(file, Counter(dict(zip(Sighting, counts, strict=True))), mouth.num_faces, tracker.face)
        elif builder is not None:
            for frame in file.decode(audio=True, video=False):
                assert isinstance(frame, av.AudioFrame)
                builder.add(frame)
        waveform = None if builder is None else builder.finish()
        audio_s = None if waveform is None else len(waveform) / SAMPLE_RATE_HZ
        video_s = None if mouth is None else mouth.num_frames / VIDEO_FPS
        note_ends(file, audio_s=audio_s, video_s=video_s)
        return Media(
            name=file.name,
            waveform=waveform if audio_s else None,
            mouth=mouth if video_s else None,
            duration_s=max(audio_s or 0.0, video_s or 0.0),
            has_video_stream=file.video is not None,
            warnings=tuple(file.warnings),
        )


def _timed(
    file: MediaFile, builder: WaveformBuilder | None, reader: PictureReader
) -> Iterator[tuple[float | None, NDArray[np.uint8]]]:
    """Timed pictures; the sound between them goes to the builder."""
    for frame in file.decode(audio=builder is not None, video=True):
        if isinstance(frame, av.VideoFrame):
            yield reader.read(frame)
        elif builder is not None:
            builder.add(frame)


def note_faces(file: MediaFile, sightings: Counter[Sighting], num_faces: int, face: int) -> None:
    """Warns if the face that was to be followed is not on all frames; these are counted by what was seen on them."""
    num_missing = sightings[Sighting.MISSING]
    if num_faces == 0:
        file.warn("no face was found in the video")
    elif not sightings[Sighting.DETECTED]:
        file.warn(f"face {face} (counted from 0, by size) was not found; the video shows {num_faces}")
    elif num_missing:
        file.warn(f"no face on {num_missing} of {sightings.total()} frames; the last place was held")


def note_ends(file: MediaFile, *, audio_s: float | None, video_s: float | None) -> None:
    """Warns if a stream gave nothing, or ended early. None is what was not to be decoded."""
    for stream, decoded_s, what in ((file.video, video_s, "picture"), (file.audio, audio_s, "sound")):
        if stream is not None and decoded_s is not None:
            if decoded_s == 0.0:
                file.warn(f"no {what} could be decoded")
            else:
                file.check_end(stream, decoded_s)
