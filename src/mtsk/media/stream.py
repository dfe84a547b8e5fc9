"""One file in, sound and mouth out piece by piece while it is decoded: for recordings of any length."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import av
import numpy as np
from numpy.typing import NDArray

from mtsk.media.audio import WaveformBuilder
from mtsk.media.container import MediaFile, open_media
from mtsk.media.load import note_ends, note_faces
from mtsk.media.mouth import Crop, MouthTracker, Sighting
from mtsk.media.video import PictureGrid, PictureReader
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS

MAX_STREAM_S = 24 * 3600.0
_MAX_SKEW_S = 60.0  # what is held of one stream while the file gives nothing of the other: 14 MB of crops

Items = TypeVar("Items", list[Crop], NDArray[np.float32])


class MediaStopped(Exception):  # noqa: N818  (nothing is wrong: it was asked for)
    """The iteration over a stream was ended by `MediaStream.stop`."""


@dataclass(frozen=True)
class MediaPiece:
    """A stretch of a file. Pieces follow each other without gaps; all but the last are equally long.

    Attributes:
        start_s: of the first sample and the first crop, on the clock of the file.
        duration_s: the longer of sound and pictures.
        waveform: float32 (N,), mono, 16 kHz, in [-1, 1]; shorter than the piece, or empty, where there is no sound.
        crops: (96, 96) each, 25 a second, and how their places are known; fewer, or none, where there are no pictures.
        num_faces: faces in the pictures so far, see `MouthTrack`.
    """

    start_s: float
    duration_s: float
    waveform: NDArray[np.float32]
    crops: tuple[Crop, ...] = ()
    num_faces: int = 0


class MediaStream:
    """An open file, to be iterated over once; see `stream_media`. A context manager; the end of the iteration closes it
    too.

    Attributes:
        name: the path, or what the stream is called.
        has_sound: whether there is sound, and it was asked for.
        has_lips: whether there are pictures, and a tracker to follow a face in them.
        has_video_stream: whether there are pictures, asked for or not.
        declared_s: how long the file says that it is; None if it does not say. The pieces tell the truth.
    """

    def __init__(self, file: MediaFile, tracker: MouthTracker | None, audio: bool, window_s: float) -> None:
        self._file = file
        self._tracker = tracker
        self._window_frames = round(window_s * VIDEO_FPS)
        self.name = file.name
        self.has_sound = audio and file.audio is not None
        self.has_lips = tracker is not None and file.video is not None
        self.has_video_stream = file.video is not None
        duration = file.container.duration
        self.declared_s = duration / av.time_base if duration else None
        self._is_stopped = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one line each; complete after the last piece."""
        return tuple(self._file.warnings)

    def stop(self) -> None:
        """Lets an iteration in another thread end before its next picture or frame of sound, by `MediaStopped`."""
        self._is_stopped = True

    def close(self) -> None:
        """Closes the file; may be called again, but not while another thread iterates."""
        self._file.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[MediaPiece]:
        """The pieces.

        Raises:
            MediaError: if nothing can be decoded, or the file is larger than allowed.
            MediaStopped: after `stop`.
        """
        with self._file as file:
            if not (self.has_sound or self.has_lips):
                return
            builder = WaveformBuilder(file) if self.has_sound else None
            lips = _Lips(file, self._tracker) if self._tracker is not None and self.has_lips else None
            joiner = _Joiner(file, builder, lips, self._window_frames)
            for frame in file.decode(audio=self.has_sound, video=self.has_lips):
                self._check_stopped()
                if isinstance(frame, av.VideoFrame):
                    assert lips is not None
                    for _ in lips.read(frame):
                        self._check_stopped()
                        yield from joiner.ready()
                else:
                    assert builder is not None
                    builder.add(frame)
                    yield from joiner.ready()
            for _ in [] if lips is None else lips.finish():
                yield from joiner.ready()
            yield from joiner.finish()
            if lips is not None and lips.sightings.total():
                note_faces(file, lips.sightings, lips.num_faces, lips.face)
            note_ends(
                file,
                audio_s=None if builder is None else builder.num_samples / SAMPLE_RATE_HZ,
                video_s=None if lips is None else lips.sightings.total() / VIDEO_FPS,
            )

    def _check_stopped(self) -> None:
        if self._is_stopped:
            raise MediaStopped(self.name)


def stream_media(
    source: str | Path | BinaryIO,
    *,
    tracker: MouthTracker | None,
    audio: bool = True,
    window_s: float = 1.0,
    max_duration_s: float = MAX_STREAM_S,
) -> MediaStream:
    """Opens a media file to be decoded in one pass, piece by piece. Joined, they are what `load_media` gives.

    What is held in memory does not grow with the file. If it gives nothing of one of its two streams for more than a
    minute of the other, the pieces go on without, and what comes later for their time is left out, with a warning.

    Args:
        source: a path, or a binary stream.
        tracker: finds the mouth; None leaves the pictures undecoded.
        audio: False leaves the sound undecoded.
        window_s: length of a piece, whole frames of 0.04 s.
        max_duration_s: longest duration allowed.

    Raises:
        MediaError: if the file cannot be used, has neither sound nor video, or is larger than allowed.
        ValueError: if a piece would not be some whole frames long.
    """
    if not 1 <= window_s * VIDEO_FPS <= _MAX_SKEW_S * VIDEO_FPS or abs(window_s * VIDEO_FPS % 1 - 0.5) < 0.49:
        raise ValueError(f"pieces of {window_s} s; needed are whole frames of {1 / VIDEO_FPS} s, up to {_MAX_SKEW_S} s")
    return MediaStream(open_media(source, max_duration_s=max_duration_s), tracker, audio, window_s)


class _Lips:
    """Frames of one file to crops."""

    def __init__(self, file: MediaFile, tracker: MouthTracker) -> None:
        self._reader = PictureReader(file)
        self._grid = PictureGrid[NDArray[np.uint8]](frame_s=self._reader.frame_s)
        self._stream = tracker.stream()
        self._crops: list[Crop] = []
        self.face = tracker.face
        self.sightings = Counter[Sighting]()

    @property
    def num_faces(self) -> int:
        return self._stream.num_faces

    def read(self, frame: av.VideoFrame) -> Iterator[None]:
        """Takes the next frame; pauses after each picture, as a hole in the video makes many of one frame."""
        for picture in self._grid.push(*self._reader.read(frame)):
            self._add(self._stream.push(picture))
            yield

    def finish(self) -> Iterator[None]:
        """To be called, and read to its end, after the last frame."""
        for picture in self._grid.finish():
            self._add(self._stream.push(picture))
            yield
        self._add(self._stream.finish())

    def take(self) -> list[Crop]:
        """Hands over the crops so far."""
        crops, self._crops = self._crops, []
        return crops

    def _add(self, crops: list[Crop]) -> None:
        self._crops += crops
        self.sightings.update(sighting for _, sighting in crops)


class _Joiner:
    """Cuts sound and crops into pieces of the same times."""

    def __init__(
        self, file: MediaFile, builder: WaveformBuilder | None, lips: _Lips | None, window_frames: int
    ) -> None:
        self._builder = builder
        self._lips = lips
        self._window_frames = window_frames
        self._window_samples = window_frames * SAMPLE_RATE_HZ // VIDEO_FPS
        self._max_skew = round(_MAX_SKEW_S * VIDEO_FPS / window_frames)  # windows
        self._sound = deque[NDArray[np.float32]]()
        self._num_samples = 0  # in `_sound`
        self._crops = deque[Crop]()
        # What pieces went on without, and what is left out if it comes later.
        self._late_samples = _Late(file, "sound")
        self._late_crops = _Late(file, "video")
        self._num_pieces = 0

    def ready(self) -> Iterator[MediaPiece]:
        """The pieces that are complete."""
        self._collect()
        lengths = []
        if self._builder is not None:
            lengths.append((self._num_samples - self._late_samples.num) // self._window_samples)
        if self._lips is not None:
            lengths.append((len(self._crops) - self._late_crops.num) // self._window_frames)
        for _ in range(max(min(lengths), max(lengths) - self._max_skew)):
            yield self._piece()

    def finish(self) -> Iterator[MediaPiece]:
        """The pieces that are left."""
        if self._builder is not None:
            self._hold(self._builder.finish())
        self._collect()
        while self._num_samples or self._crops:
            yield self._piece()

    def _collect(self) -> None:
        if self._builder is not None:
            self._hold(self._builder.take())
        if self._lips is not None:
            self._crops.extend(self._late_crops.drop(self._lips.take()))

    def _hold(self, samples: NDArray[np.float32]) -> None:
        samples = self._late_samples.drop(samples)
        if len(samples):  # where the sound has ended, each picture would leave an empty array behind
            self._sound.append(samples)
            self._num_samples += len(samples)

    def _piece(self) -> MediaPiece:
        waveform = self._take_sound()
        num_crops = min(len(self._crops), self._window_frames)
        crops = tuple(self._crops.popleft() for _ in range(num_crops))
        self._late_samples.num += self._window_samples - len(waveform)
        self._late_crops.num += self._window_frames - num_crops
        self._num_pieces += 1
        return MediaPiece(
            start_s=(self._num_pieces - 1) * self._window_frames / VIDEO_FPS,
            duration_s=max(len(waveform) / SAMPLE_RATE_HZ, num_crops / VIDEO_FPS),
            waveform=waveform,
            crops=crops,
            num_faces=0 if self._lips is None else self._lips.num_faces,
        )

    def _take_sound(self) -> NDArray[np.float32]:
        parts, missing = [np.zeros(0, np.float32)], min(self._num_samples, self._window_samples)
        self._num_samples -= missing
        while missing:
            part = self._sound.popleft()
            if len(part) > missing:
                self._sound.appendleft(part[missing:])
            parts.append(part[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)


class _Late:
    """What arrives after the pieces that it belongs to."""

    def __init__(self, file: MediaFile, kind: str) -> None:
        self._file = file
        self._kind = kind
        self.num = 0  # samples or crops that pieces went on without

    def drop(self, items: Items) -> Items:
        """Leaves out what is late."""
        num_dropped = min(self.num, len(items))
        self.num -= num_dropped
        dropped = items[:num_dropped]
        if len(dropped) and (isinstance(dropped, list) or dropped.any()):  # not for a hole, filled with silence
            self._file.warn(f"{self._kind} that lies more than {_MAX_SKEW_S:.0f} s behind in the file is left out")
        return items[num_dropped:]
