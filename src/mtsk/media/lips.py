"""A second look at a file: the lips of some stretches of it, after its sound was heard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from mtsk.media.container import MediaFile, open_media
from mtsk.media.mouth import MouthTrack, MouthTracker, track_of
from mtsk.media.stream import MAX_STREAM_S, MediaStopped
from mtsk.media.video import PictureGrid, PictureReader
from mtsk.types import VIDEO_FPS


class LaterLips:
    """The lips of a file, on the clock of `stream_media`. Nothing is opened before they are asked for.

    Pictures that lie between the stretches are decoded, as later ones build on them, but no face is followed there:
    each stretch is a video of its own, and so may differ a little from the same time of a file that is followed whole.

    Args:
        path: of the file.
        tracker: finds the mouth.
    """

    def __init__(self, path: str | Path, tracker: MouthTracker) -> None:
        self._path = path
        self._tracker = tracker
        self._num_passed = 0
        self._is_stopped = False
        self.was_opened = False

    def between(self, start_s: float, end_s: float) -> MouthTrack | None:
        """The crops of a stretch, 25 a second; fewer, or None, where the pictures end earlier.

        Args:
            start_s: not before the end of the stretch that was asked for last.
            end_s: later.

        Raises:
            MediaError: if the pictures can't be decoded.
            MediaStopped: after `stop`.
        """
        first, end = round(start_s * VIDEO_FPS), round(end_s * VIDEO_FPS)
        assert self._num_passed <= first < end, (self._num_passed, first, end)
        stream, crops = self._tracker.stream(), []
        last: tuple[av.VideoFrame, NDArray[np.uint8]] | None = None
        while self._num_passed < end and (frame := next(self._frames, None)) is not None:
            if self._is_stopped:
                raise MediaStopped(str(self._path))
            self._num_passed += 1
            if self._num_passed > first:
                if last is None or last[0] is not frame:  # what repeats is the same array, as `MouthStream` wants it
                    last = frame, self._reader.read(frame)[1]
                crops += stream.push(last[1])
        crops += stream.finish()
        return track_of(crops, stream.num_faces) if crops else None

    def stop(self) -> None:
        """Lets `between` in another thread end before its next picture, by `MediaStopped`."""
        self._is_stopped = True

    def close(self) -> None:
        """Closes the file; may be called again."""
        if self.was_opened:
            self._file.__exit__(None, None, None)

    @cached_property
    def _file(self) -> MediaFile:
        self.was_opened = True
        return open_media(self._path, max_duration_s=MAX_STREAM_S)

    @cached_property
    def _reader(self) -> PictureReader:
        return PictureReader(self._file)

    @cached_property
    def _frames(self) -> Iterator[av.VideoFrame]:
        """25 a second, as decoded."""
        return self._on_grid()

    def _on_grid(self) -> Iterator[av.VideoFrame]:
        grid = PictureGrid[av.VideoFrame](frame_s=self._reader.frame_s)
        for frame in self._file.decode(audio=False, video=True):
            assert isinstance(frame, av.VideoFrame)
            time_s = self._file.seconds(frame.pts if frame.pts is not None else frame.dts, frame.time_base)
            yield from grid.push(time_s, frame)
        yield from grid.finish()
