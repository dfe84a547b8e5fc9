"""Uploaded files: what they hold, and their parts, read step by step in whichever thread has time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import av

from mtsk.inference.policy import Looks
from mtsk.inference.recording import Part, Recording
from mtsk.media import MediaError, MouthTracker
from mtsk.media.container import MediaFile, open_media
from mtsk.media.lips import LaterLips
from mtsk.media.stream import MediaStream
from mtsk.media.vad import SpeechDetector
from mtsk.serving.plans import Found

_NAME = "file"  # what messages call an upload: nobody needs to know where it lies


@dataclass(frozen=True)
class FileLimits:
    """Of a recording.

    Attributes:
        duration_s: longest.
        side_px: largest width or height of its pictures.
    """

    duration_s: float
    side_px: int


def look_into(path: Path, limits: FileLimits) -> Found:
    """What a file has. Where it does not declare its duration, its packets are counted.

    Raises:
        MediaError: if it can't be read, or is beyond a limit.
    """
    with _open(path, limits) as file:
        duration_s = (file.container.duration or 0) / av.time_base
        if duration_s <= 0:
            duration_s = _counted_s(file, limits.duration_s)
        return Found(duration_s, file.audio is not None, file.video is not None)


def _open(path: Path, limits: FileLimits) -> MediaFile:
    try:
        file = open_media(path, max_duration_s=limits.duration_s)
    except MediaError as error:
        raise without_path(error, path) from None
    file.name = _NAME
    video = file.video
    size = (0, 0) if video is None else (video.codec_context.width, video.codec_context.height)
    if max(size) > limits.side_px:
        file.__exit__(None, None, None)
        raise MediaError(f"{_NAME}: pictures of {size[0]} x {size[1]} pixels; at most {limits.side_px} are allowed")
    return file


def _counted_s(file: MediaFile, max_s: float) -> float:
    """Up to the last packet; as far as the file can be read."""
    end_s = 0.0
    with contextlib.suppress(Exception):  # damaged files are told when they are decoded
        for packet in file.container.demux():
            if packet.pts is not None and packet.time_base:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base) - file.start_s)
            if end_s > max_s:
                break
    return end_s


def without_path(error: MediaError, path: Path) -> MediaError:
    """The same error, with a name instead of the place of the temporary file."""
    return MediaError(str(error).replace(str(path), _NAME))


class Trackers:
    """Face trackers for lending: one is for one file at a time, and costs time to make."""

    def __init__(self, make: Callable[[], MouthTracker]) -> None:
        self._make = make
        self._free: list[MouthTracker] = []
        self._lock = threading.Lock()

    def take(self) -> MouthTracker:
        """One for the caller alone."""
        with self._lock:
            return self._free.pop() if self._free else self._make()

    def give(self, tracker: MouthTracker) -> None:
        """It may be lent again."""
        with self._lock:
            self._free.append(tracker)


class FileReading:
    """A file on its way into parts. One thread at a time may call `next_part`, and one `look`, not necessarily always
    the same ones.

    Args:
        path: of the upload.
        looks: when lips are wanted.
        trackers: lends one, if lips are wanted.
        limits: of the file.

    Raises:
        MediaError: if it can't be opened.
    """

    def __init__(self, path: Path, looks: Looks, trackers: Trackers, limits: FileLimits) -> None:
        self._path, self._trackers = path, trackers
        self._is_stopped = False
        self._later: LaterLips | None = None
        self._tracker: MouthTracker | None = None
        file = _open(path, limits)
        sees = file.video is not None and (looks == "first" or (looks == "if needed" and file.audio is None))
        self._may_look = file.video is not None and looks == "if needed" and not sees
        if sees:
            self._tracker = trackers.take()
        self._stream = MediaStream(file, self._tracker if sees else None, True, 1.0)
        self.recording = Recording(self._stream, SpeechDetector, speech_only=None, face=0)
        self._parts: Generator[Part, None, None] = self.recording.parts()

    def next_part(self) -> Part | None:
        """The next part; None at the end. Where nobody has looked for lips yet, they are not said to be missing.

        Raises:
            MediaError: if the file can't be decoded.
        """
        part = next(self._parts, None)
        if part is None and not self._may_look:
            self._give_back()  # the file may wait long for the model, and others for a tracker
        if part is None or not self._may_look:
            return part
        kept = {name: why for name, why in part.missing.items() if name != "video" or name in self.recording.missing}
        return replace(part, missing=kept)

    def look(self, part: Part) -> Part:
        """The part with its lips, or why there are none. Parts have to come in the order of time."""
        assert self._may_look
        if self._later is None:
            self._tracker = self._trackers.take()
            self._later = LaterLips(self._path, self._tracker)
            if self._is_stopped:
                self._later.stop()
        return part.with_lips(self._later.between(part.start_s, part.end_s), 0)

    def stop(self) -> None:
        """Lets what another thread is reading end soon."""
        self._is_stopped = True
        self._stream.stop()
        if self._later is not None:
            self._later.stop()

    def close(self) -> None:
        """Closes the file; when no thread reads it any more."""
        self._parts.close()
        self._stream.close()
        if self._later is not None:
            self._later.close()
            self._later = None
        self._give_back()

    def _give_back(self) -> None:
        if self._tracker is not None:
            self._trackers.give(self._tracker)
            self._tracker = None
