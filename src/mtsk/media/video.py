"""Pictures to RGB frames at exactly 25 a second, upright, on the clock of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Generic, TypeVar

import av
import numpy as np
from numpy.typing import NDArray

from mtsk.media.container import MAX_FRAME_SIDE_PX, MediaError, MediaFile
from mtsk.types import VIDEO_FPS

_MAX_SIDE_PX = 1920  # larger pictures are made smaller: a mouth needs no more
_MAX_STEP_BACK_S = 1.0  # a frame earlier than its predecessor by more starts a new count of time

Picture = TypeVar("Picture")


def resample_to_grid(
    timed: Iterable[tuple[float | None, Picture]], *, frame_s: float, fps: float = VIDEO_FPS
) -> Iterator[Picture]:
    """Chooses, for every point `k / fps` from time 0 on, the picture nearest in time.

    The first picture is repeated from time 0 on, the last one holds for `frame_s`. A picture that is not later than
    the one before it is left out; a large step back in time (a clock that was reset) continues after it.

    Args:
        timed: pairs of start time (seconds; None if unknown: one frame after the last) and picture.
        frame_s: seconds from a picture to the next, where nothing better is known.
        fps: points per second.
    """
    grid = PictureGrid[Picture](frame_s=frame_s, fps=fps)
    for time_s, picture in timed:
        yield from grid.push(time_s, picture)
    yield from grid.finish()


class PictureGrid(Generic[Picture]):
    """`resample_to_grid` for pictures that are handed over one by one."""

    def __init__(self, *, frame_s: float, fps: float = VIDEO_FPS) -> None:
        self._frame_s = frame_s
        self._fps = fps
        self._index = 0
        self._previous: tuple[float, Picture] | None = None
        self._shift_s = 0.0

    def push(self, time_s: float | None, picture: Picture) -> Iterator[Picture]:
        """Takes the next picture; the pictures of the points that are settled by it. To be read to the end."""
        if self._previous is None:
            self._previous = (0.0 if time_s is None else time_s, picture)
            return
        last_s, last = self._previous
        now_s = last_s + self._frame_s if time_s is None else time_s + self._shift_s
        if now_s < last_s - _MAX_STEP_BACK_S:
            self._shift_s += last_s + self._frame_s - now_s
            now_s = last_s + self._frame_s
        if now_s <= last_s:
            return
        self._previous = (now_s, picture)
        # Halfway the later picture takes over; the tiny term keeps equal clocks equal in spite of rounding.
        while self._index / self._fps < (last_s + now_s) / 2 - 1e-6:
            self._index += 1
            yield last

    def finish(self) -> Iterator[Picture]:
        """The pictures of the points that are left."""
        if self._previous is None:
            return
        last_s, last = self._previous
        while self._index == 0 or (self._index + 0.5) / self._fps <= last_s + self._frame_s + 1e-6:
            self._index += 1
            yield last


class PictureReader:
    """Turns decoded frames of one file into timed, upright RGB pictures of one size."""

    def __init__(self, file: MediaFile) -> None:
        assert file.video is not None
        self._file = file
        rate = file.video.average_rate or file.video.guessed_rate or Fraction(VIDEO_FPS)
        self.frame_s = float(1 / rate) if 1 <= rate <= 1000 else 1 / VIDEO_FPS
        self._num_read = 0
        self._size: tuple[int, int] | None = None  # width and height before rotation

    def read(self, frame: av.VideoFrame) -> tuple[float | None, NDArray[np.uint8]]:
        """The start time in seconds (None if unknown) and the picture, (H, W, 3).

        Raises:
            MediaError: if the picture is too large or cannot be converted.
        """
        time_s = self._file.seconds(frame.pts if frame.pts is not None else frame.dts, frame.time_base)
        self._num_read += 1
        if (time_s or self._num_read * self.frame_s) > self._file.max_duration_s:
            raise MediaError(
                f"{self._file.name}: the video is longer than the {self._file.max_duration_s:.0f} s allowed"
            )
        if max(frame.width, frame.height) > MAX_FRAME_SIDE_PX:
            raise MediaError(
                f"{self._file.name}: pictures of {frame.width} x {frame.height} pixels; "
                f"allowed are {MAX_FRAME_SIDE_PX} x {MAX_FRAME_SIDE_PX}"
            )
        if self._size is None:
            self._size = self._square_size(frame)
        width, height = self._size
        try:
            picture = frame.to_ndarray(format="rgb24", width=width, height=height)
            quarter_turns = round(frame.rotation / 90) % 4
        except Exception as error:  # PyAV raises more than av.error on damaged data
            raise MediaError(f"{self._file.name}: a picture cannot be converted ({error})") from None
        return time_s, np.ascontiguousarray(np.rot90(picture, quarter_turns))

    def _square_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height with square pixels, within what is allowed."""
        assert self._file.video is not None
        aspect = self._file.video.sample_aspect_ratio or Fraction(1)
        width = frame.width * float(aspect) if 0.25 <= aspect <= 4 else float(frame.width)
        shrink = min(1.0, _MAX_SIDE_PX / max(width, frame.height))
        return max(1, round(width * shrink)), max(1, round(frame.height * shrink))
