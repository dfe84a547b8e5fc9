"""Opening and decoding of media files, the one place where PyAV's errors become ours.

Files are read as streams and never by path, and only container formats are allowed: a playlist could name other
files of this machine, and PyAV would follow it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from mtsk.media.files import FORMATS

MAX_FRAME_SIDE_PX = 4096
MAX_DURATION_S = 2 * 3600.0

_ALLOWED = "allowed are media files such as mp4, mov, mkv, webm, avi, mpg, ts, flv, wmv, wav, mp3, m4a, flac, ogg, opus"
_MAX_BAD_PACKETS = 1000
_MAX_PRIMING_S = 1.0
_MAX_STRAY_S = 60.0  # how far a time stamp may lie outside of the duration that the file declares
_MISSING_END_S = 0.5  # what may lack from the end that the file declares before it counts as cut off


class MediaError(ValueError):
    """A file that cannot be used, with its name and what is allowed."""


@dataclass
class MediaFile:
    """An open media file; a context manager. Times count from the start of the container."""

    name: str
    container: InputContainer
    audio: AudioStream | None
    video: VideoStream | None
    start_s: float
    max_duration_s: float
    warnings: list[str] = field(default_factory=list)
    _owned: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):  # closing what is broken may fail, and nothing depends on it
            self.container.close()
        if self._owned is not None:
            self._owned.close()

    def warn(self, message: str) -> None:
        """Notes something that the user should know, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def decode(self, *, audio: bool, video: bool) -> Iterator[av.AudioFrame | av.VideoFrame]:
        """Frames of the chosen streams in the order of the file. What is damaged is left out, with a warning.

        Raises:
            MediaError: if nothing at all can be decoded.
        """
        streams = [stream for stream, wanted in ((self.audio, audio), (self.video, video)) if wanted and stream]
        num_frames = num_bad = 0
        reason = "no packets"
        packets = iter(self.container.demux(*streams)) if streams else iter(())
        while num_bad <= _MAX_BAD_PACKETS:
            try:
                packet = next(packets, None)
            except Exception as error:  # PyAV raises more than av.error on damaged data
                num_bad, reason = num_bad + 1, _reason(error)
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except Exception as error:
                num_bad, reason = num_bad + 1, _reason(error)
                continue
            num_frames += len(frames)
            yield from (frame for frame in frames if isinstance(frame, av.AudioFrame | av.VideoFrame))
        if streams and not num_frames:
            raise MediaError(f"{self.name}: nothing could be decoded ({reason})")
        if num_bad:
            self.warn(f"damaged: parts that could not be decoded are left out ({reason})")

    def seconds(self, pts: int | None, time_base: Fraction | None) -> float | None:
        """A time stamp on the common clock, or None if there is none that makes sense."""
        if pts is None or not time_base:
            return None
        time_s = float(pts * time_base) - self.start_s
        declared_s = (self.container.duration or 0) / av.time_base
        if declared_s and not -_MAX_STRAY_S < time_s < declared_s + _MAX_STRAY_S:
            self.warn(f"damaged: time stamps outside of the {declared_s:.2f} s that the file declares are ignored")
            return None
        return time_s

    def check_end(self, stream: AudioStream | VideoStream, decoded_s: float) -> None:
        """Warns if much less of a stream was decoded than it declares (it need not declare anything)."""
        if stream.duration is None or stream.time_base is None:
            return
        declared_s = float((stream.duration + (stream.start_time or 0)) * stream.time_base) - self.start_s
        if declared_s - decoded_s > max(_MISSING_END_S, 0.01 * declared_s):
            self.warn(f"cut off: the {stream.type} should last {declared_s:.2f} s, {decoded_s:.2f} s could be decoded")


def open_media(source: str | Path | BinaryIO, *, max_duration_s: float = MAX_DURATION_S) -> MediaFile:
    """Opens a media file for decoding.

    Args:
        source: a path, or a binary stream (its `name`, if any, is used in messages).
        max_duration_s: longest duration allowed.

    Raises:
        MediaError: if there is no such file, it is no media file of an allowed format, has neither sound nor
            pictures, or is larger than allowed.
    """
    name = media_name(source)
    stream = _open_stream(source, name) if isinstance(source, str | Path) else source
    owned = stream if isinstance(source, str | Path) else None
    try:
        file = _open_container(stream, name, max_duration_s)
    except BaseException:
        if owned is not None:
            owned.close()
        raise
    file._owned = owned
    return file


def media_name(source: str | Path | BinaryIO) -> str:
    """What messages call the source."""
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "<stream>"))


def _open_stream(path: str | Path, name: str) -> BinaryIO:
    path = Path(path)
    if path.is_dir():
        raise MediaError(f"{name}: is a directory; {_ALLOWED}")
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise MediaError(f"{name}: cannot be read ({_reason(error)})") from None
    if path.is_file() and path.stat().st_size == 0:
        stream.close()
        raise MediaError(f"{name}: is empty; {_ALLOWED}")
    return stream


def _open_container(stream: BinaryIO, name: str, max_duration_s: float) -> MediaFile:
    # The probe decodes pictures already, hence the limit of pixels here.
    options = {
        "format_whitelist": ",".join(FORMATS),
        "protocol_whitelist": "none",
        "max_pixels": str(MAX_FRAME_SIDE_PX**2),
    }
    try:
        container = av.open(_Unnamed(stream), mode="r", options=options, metadata_errors="replace")
        audio = next(iter(container.streams.audio), None)
        if audio is not None:
            audio = container.streams.best("audio") or audio  # type: ignore[assignment]
        video = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
        start_s = (container.start_time or 0) / av.time_base
        if -_MAX_PRIMING_S < start_s < 0:  # what an encoder puts before time 0 is not meant to be heard
            start_s = 0.0
        duration_s = (container.duration or 0) / av.time_base
        size = (0, 0) if video is None else (video.codec_context.width, video.codec_context.height)
    except Exception as error:  # PyAV raises more than av.error on damaged data
        raise MediaError(f"{name}: cannot be read as sound or video ({_reason(error)}); {_ALLOWED}") from None
    file = MediaFile(name, container, audio, video, start_s, max_duration_s)
    problem = None
    if audio is None and video is None:
        problem = f"has neither sound nor video; {_ALLOWED}"
    elif max(size) > MAX_FRAME_SIDE_PX:
        problem = f"pictures of {size[0]} x {size[1]} pixels; allowed are {MAX_FRAME_SIDE_PX} x {MAX_FRAME_SIDE_PX}"
    elif duration_s > max_duration_s:
        problem = f"lasts {duration_s:.0f} s; allowed are {max_duration_s:.0f} s"
    if problem is not None:
        file.__exit__(None, None, None)
        raise MediaError(f"{name}: {problem}")
    return file


class _Unnamed:
    """A stream without its name, which PyAV would take for a hint of the format."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read
        seekable = getattr(stream, "seekable", None)
        if seekable is None or seekable():
            self.seek, self.tell = stream.seek, stream.tell


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
