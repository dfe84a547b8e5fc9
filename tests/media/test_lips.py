"""The second look at a file: the crops are those of the first look, and what lies between is not followed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtsk.media.lips import LaterLips
from mtsk.media.mouth import Crop, Sighting
from mtsk.media.stream import stream_media
from mtsk.types import MOUTH_SIZE_PX
from tests.media.clips import Kind, write_clip


class Corner:
    """Stands in for a tracker: the corner of every picture is the mouth. Counts the pictures."""

    face = 0
    num_faces = 1

    def __init__(self) -> None:
        self.num_pushed = 0

    def stream(self) -> "Corner":
        return self

    def push(self, image: NDArray[np.uint8]) -> list[Crop]:
        self.num_pushed += 1
        return [(image[:MOUTH_SIZE_PX, :MOUTH_SIZE_PX, 0].copy(), Sighting.DETECTED)]

    def finish(self) -> list[Crop]:
        return []


def _tracker() -> Any:
    return Corner()


@pytest.mark.parametrize("fps", [25, 30, 50])
def test_a_second_look_sees_what_the_first_saw(tmp_path: Path, fps: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", Kind("mp4", "libx264", "aac", fps=fps))
    whole = [crop for piece in stream_media(clip, tracker=_tracker()) for crop, _ in piece.crops]
    tracker = _tracker()
    lips = LaterLips(clip, tracker)
    for first, end in ((3, 10), (10, 12), (20, 33)):
        track = lips.between(first / 25, end / 25)
        assert track is not None
        assert np.array_equal(track.crops_THW, np.stack(whole[first:end]))
        assert track.num_detected == end - first
    assert tracker.num_pushed == 7 + 2 + 13
    assert lips.was_opened
    lips.close()
    lips.close()


def test_beyond_the_end_there_are_fewer_or_none(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", Kind("mp4", "libx264", "aac"))
    num = sum(len(piece.crops) for piece in stream_media(clip, tracker=_tracker()))
    lips = LaterLips(clip, _tracker())
    track = lips.between((num - 3) / 25, (num + 5) / 25)
    assert track is not None
    assert track.num_frames == 3
    assert lips.between((num + 5) / 25, (num + 9) / 25) is None
