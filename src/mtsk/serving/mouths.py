"""What the model sees of a video: its mouth crops, on one picture."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtsk.media import contact_sheet
from mtsk.media.container import MediaError, open_media
from mtsk.media.stream import MediaStopped, MediaStream
from mtsk.serving.errors import ApiError, overloaded
from mtsk.serving.reading import Trackers, without_path
from mtsk.serving.tickets import Mailbox, Upload, as_api_error
from mtsk.types import MOUTH_SIZE_PX, VIDEO_FPS

_COLUMNS = VIDEO_FPS  # a line is a second
_MAX_S = 30.0
_MAX_WAITING = 8


class Mouths:
    """Makes sheets of mouth crops, one at a time, beside the transcriptions.

    Args:
        trackers: lends face trackers.
    """

    def __init__(self, trackers: Trackers) -> None:
        self._trackers = trackers
        self._pool = ThreadPoolExecutor(1, "mtsk-mouth")
        self._num_waiting = 0

    def stop(self) -> None:
        """Waits for what is being made."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def sheet(self, upload: Upload, box: Mailbox) -> dict[str, Any]:
        """The sheet of a video, as plain values.

        Raises:
            ApiError: if there is no face, too much of it, or too much to do; or the client is gone.
        """
        if not upload.found.has_video:
            raise ApiError(400, "file: no video; a mouth needs one", param="file", code="no_video")
        if upload.found.duration_s > _MAX_S:
            message = f"file: {upload.found.duration_s:.1f} s; at most {_MAX_S:g} s are shown"
            raise ApiError(400, message, param="file", code="too_long")
        if self._num_waiting >= _MAX_WAITING:
            raise overloaded(1.0 * self._num_waiting)
        self._num_waiting += 1
        is_over = threading.Event()
        try:
            job = self._pool.submit(self._make, upload, is_over)
            making = asyncio.wrap_future(job)
            gone = asyncio.ensure_future(box.next())
            await asyncio.wait((making, gone), return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                is_over.set()
                job.cancel()  # unless it has begun
                await asyncio.gather(making, return_exceptions=True)
                gone.result()  # says why it was given up
            gone.cancel()
            return making.result()
        except (ValueError, ApiError) as error:  # as media errors are
            raise as_api_error(error) from None
        finally:
            is_over.set()
            self._num_waiting -= 1

    def _make(self, upload: Upload, is_over: threading.Event) -> dict[str, Any]:
        tracker = self._trackers.take()
        crops: list[NDArray[np.uint8]] = []
        num_faces = 0
        try:
            file = open_media(upload.path, max_duration_s=_MAX_S + 1.0)
            for piece in MediaStream(file, tracker, False, 1.0):
                crops += [crop for crop, _ in piece.crops]
                num_faces = piece.num_faces
                if is_over.is_set():
                    raise MediaStopped(file.name)
        except MediaError as error:
            raise without_path(error, upload.path) from None
        finally:
            self._trackers.give(tracker)
        if not crops or not num_faces:
            raise MediaError("file: no face was found in the video")
        picture = io.BytesIO()
        contact_sheet(np.stack(crops), picture, num_columns=_COLUMNS)  # type: ignore[arg-type]
        return {
            "fps": VIDEO_FPS,
            "num_frames": len(crops),
            "columns": min(_COLUMNS, len(crops)),
            "size": MOUTH_SIZE_PX,
            "image": f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}",
        }
