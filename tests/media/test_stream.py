"""Piece by piece, a file gives what it gives at once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from mtsk.media import Media, MediaError, MouthTracker, load_media
from mtsk.media.container import open_media
from mtsk.media.mouth import Sighting
from mtsk.media.stream import MediaPiece, MediaStopped, _Joiner, stream_media
from tests.media.clips import Kind, clap_picture, write_clip

Picture = NDArray[np.uint8]
KIND = Kind("mp4", "libx264", "aac", fps=30, rate_hz=44_100)


class CornerFollower:
    """Stands in for the networks: a face is where the picture is bright, and nowhere in a dark one."""

    def __init__(self) -> None:
        self.scene = 0
        self.num_faces = 0

    def find(self, image: Picture) -> NDArray[np.float64] | None:
        if image.mean() < 128:
            return None
        self.num_faces = 1
        shift = float(image[0, 0, 0]) / 100
        return np.array([[10.0 + shift, 10.0], [30.0 + shift, 12.0], [20.0 + shift, 30.0]])


class CornerTracker(MouthTracker):
    """Follows `CornerFollower`."""

    def __init__(self) -> None:
        self.face = 0

    def _follower(self) -> CornerFollower:
        return CornerFollower()


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crop is placed by hand: the stand-in knows three points, not those of a face."""
    monkeypatch.setattr(
        "mtsk.media.mouth.crop_placement",
        lambda points, middle: np.array([[0.5, 0.0, middle[0] - 24], [0.0, 0.5, middle[1] - 24]]),
    )


def assert_same(pieces: Iterable[MediaPiece], media: Media, warnings: tuple[str, ...] = ()) -> None:
    """Joined, the pieces are what was read at once."""
    pieces = list(pieces)
    sound = np.concatenate([piece.waveform for piece in pieces])
    np.testing.assert_array_equal(sound, np.zeros(0) if media.waveform is None else media.waveform)
    crops = [crop for piece in pieces for crop in piece.crops]
    assert len(crops) == (0 if media.mouth is None else media.mouth.num_frames)
    if media.mouth is not None:
        np.testing.assert_array_equal(np.stack([crop for crop, _ in crops]), media.mouth.crops_THW)
        counts = [sum(sighting is one for _, sighting in crops) for one in Sighting]
        assert counts == [media.mouth.num_detected, media.mouth.num_interpolated, media.mouth.num_missing]
        assert pieces[-1].num_faces == media.mouth.num_faces
    assert pieces[-1].start_s + pieces[-1].duration_s == pytest.approx(media.duration_s, abs=1e-9)


def flicker(time_s: float) -> Picture:
    """Bright, with dark spells: short ones that are bridged, and a long one."""
    dark = 0.5 < time_s < 0.8 or 1.5 < time_s < 2.9 or time_s > 3.7
    return np.full((48, 64, 3), 20 if dark else 180 + int(20 * time_s), np.uint8)


@pytest.mark.parametrize("window_s", [0.04, 0.6, 1.0, 16.0])
@pytest.mark.parametrize("late", ["none", "audio", "video"])
def test_pieces_join_to_the_whole(tmp_path: Path, window_s: float, late: str) -> None:
    path = write_clip(
        tmp_path / "clip.mp4", KIND, duration_s=4.0, picture=flicker,
        audio_start_s=1.3 * (late == "audio"), video_start_s=0.4 * (late == "video"),
    )  # fmt: skip
    media = load_media(path, tracker=CornerTracker())
    assert media.mouth is not None
    assert min(media.mouth.num_detected, media.mouth.num_interpolated, media.mouth.num_missing) > 5
    stream = stream_media(path, tracker=CornerTracker(), window_s=window_s)
    assert (stream.has_sound, stream.has_lips, stream.has_video_stream) == (True, True, True)
    assert stream.declared_s == pytest.approx(4.0, abs=0.1)
    pieces = list(stream)
    assert_same(pieces, media)
    assert stream.warnings == media.warnings
    for index, piece in enumerate(pieces):
        assert piece.start_s == pytest.approx(index * window_s)
        if index < len(pieces) - 2:
            assert len(piece.waveform) == round(window_s * 16_000)
            assert len(piece.crops) == round(window_s * 25)


def test_a_talker(talking_clip: Path, tracker: MouthTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true placement
    assert_same(stream_media(talking_clip, tracker=tracker), load_media(talking_clip, tracker=tracker))


@pytest.mark.parametrize("kind", [Kind("wav", None, "pcm_s16le", rate_hz=44_100), Kind("mp3", None, "libmp3lame")])
def test_sound_alone(tmp_path: Path, kind: Kind) -> None:
    path = write_clip(tmp_path / f"clip.{kind.suffix}", kind, duration_s=3.3)
    stream = stream_media(io.BytesIO(path.read_bytes()), tracker=CornerTracker(), window_s=0.2)
    assert (stream.has_sound, stream.has_lips) == (True, False)
    assert_same(stream, load_media(path, tracker=None))


def test_video_alone_and_what_is_not_asked_for(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", Kind("mp4", "libx264", "aac"), picture=flicker)
    silent = write_clip(tmp_path / "silent.mp4", Kind("mp4", "libx264", None), picture=flicker)
    for file, audio in ((silent, True), (path, False)):
        stream = stream_media(file, tracker=CornerTracker(), audio=audio)
        assert not stream.has_sound
        assert_same(stream, load_media(file, tracker=CornerTracker(), audio=audio))
    stream = stream_media(path, tracker=None)
    assert (stream.has_lips, stream.has_video_stream) == (False, True)
    assert_same(stream, load_media(path, tracker=None))
    assert list(stream_media(path, tracker=None, audio=False)) == []


def test_sound_and_video_that_end_apart(tmp_path: Path) -> None:
    for suffix, sound_s, video_s in (("long_sound", 5.0, 2.0), ("long_video", 2.0, 5.0)):
        path = tmp_path / f"{suffix}.mkv"
        _write_apart(path, sound_s, video_s)
        media = load_media(path, tracker=CornerTracker())
        assert media.duration_s == pytest.approx(5.0, abs=0.05)
        assert_same(stream_media(path, tracker=CornerTracker()), media)


def _write_apart(path: Path, sound_s: float, video_s: float) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for index in range(round(video_s * 25)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(flicker(index / 25), format="rgb24")))
        container.mux(video.encode(None))
        for index in range(round(sound_s * 10)):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 100 * index, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, index * 1600
            container.mux(audio.encode(frame))


class _FakeSource:
    """Gives sound or crops when a test says so."""

    def __init__(self) -> None:
        self.sound = np.zeros(0, np.float32)
        self.crops: list[tuple[Picture, Sighting]] = []
        self.num_faces = 1

    def take(self) -> NDArray[np.float32] | list[tuple[Picture, Sighting]]:
        raise NotImplementedError


class _Sound(_FakeSource):
    def take(self) -> NDArray[np.float32]:
        sound, self.sound = self.sound, np.zeros(0, np.float32)
        return sound

    finish = take


class _Lips(_FakeSource):
    def take(self) -> list[tuple[Picture, Sighting]]:
        crops, self.crops = self.crops, []
        return crops


@pytest.mark.parametrize("behind", ["sound", "video"])
def test_what_lags_too_far_behind_is_left_out(tmp_path: Path, behind: str) -> None:
    """A file that gives an hour of one stream before the other must not be held whole."""
    path = write_clip(tmp_path / "clip.mp4", Kind("mp4", "libx264", "aac"), duration_s=0.2)
    sound, lips = _Sound(), _Lips()
    with open_media(path) as file:
        joiner = _Joiner(file, sound, lips, 25)  # type: ignore[arg-type]
        pieces: list[MediaPiece] = []
        for second in range(120):
            _second(second, sound if behind == "video" else lips)
            pieces += joiner.ready()
            assert joiner._num_samples <= 61 * 16_000
            assert len(joiner._sound) <= 61  # what holds no sound counts too
            assert len(joiner._crops) <= 61 * 25
        assert len(pieces) == 60
        assert not file.warnings
        for second in range(120):
            _second(second, sound if behind == "sound" else lips)
            pieces += joiner.ready()
        pieces += joiner.finish()
        assert [piece.start_s for piece in pieces] == list(range(120))
        assert file.warnings == [f"{behind} that lies more than 60 s behind in the file is left out"]
        for second, piece in enumerate(pieces):
            whole = second >= 60
            assert len(piece.waveform) == (16_000 if whole or behind == "video" else 0)
            assert len(piece.crops) == (25 if whole or behind == "sound" else 0)
            assert (piece.waveform == second + 1).all()
            assert all(crop[0, 0] == second + 1 for crop, _ in piece.crops)


def _second(second: int, source: _FakeSource) -> None:
    if isinstance(source, _Sound):
        source.sound = np.full(16_000, second + 1, np.float32)
    else:
        source.crops = [(np.full((96, 96), second + 1, np.uint8), Sighting.DETECTED)] * 25


def test_a_long_file_is_not_held(tmp_path: Path) -> None:
    """Ten minutes; what is held is counted, not weighed."""
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(600 * 8_000, np.int16), 8_000)
    most = total = 0
    for piece in stream_media(path, tracker=None):
        total += len(piece.waveform)
        most = max(most, len(piece.waveform))
    assert (total, most) == (600 * 16_000, 16_000)


def test_it_is_closed_at_the_end_and_when_it_is_left(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", KIND, picture=clap_picture)
    with stream_media(path, tracker=None) as stream:
        next(iter(stream))
    owned = stream._file._owned
    assert owned is not None
    assert owned.closed
    stream = stream_media(path, tracker=None)
    list(stream)
    owned = stream._file._owned
    assert owned is not None
    assert owned.closed
    stream.close()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rubbish(path: Path) -> None:
    path.write_bytes(b"nothing" * 1000)


@pytest.mark.parametrize("damage", [_truncated, _rubbish])
def test_damage_is_told_as_at_once(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_clip(tmp_path / "clip.flac", Kind("flac", None, "flac"))
    damage(path)
    try:
        expected: str | tuple[str, ...] = load_media(path, tracker=None).warnings
    except MediaError as error:
        expected = str(error)
    assert expected
    if isinstance(expected, str):
        with pytest.raises(MediaError) as caught:
            list(stream_media(path, tracker=None))
        assert str(caught.value) == expected
    else:
        stream = stream_media(path, tracker=None)
        list(stream)
        assert stream.warnings == expected


@pytest.mark.parametrize("window_s", [0.0, 0.03, 0.05, 61.0])
def test_pieces_are_whole_frames(tmp_path: Path, window_s: float) -> None:
    with pytest.raises(ValueError, match="whole frames"):
        stream_media(tmp_path / "none.wav", tracker=None, window_s=window_s)


def test_a_stream_that_is_stopped_reads_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a hole of the video, where one frame stands for many pictures."""
    path = write_clip(tmp_path / "clip.mp4", KIND, duration_s=4.0, picture=flicker, video_start_s=2.5)
    pictures: list[Picture] = []

    class Counting(CornerFollower):
        def find(self, image: Picture) -> NDArray[np.float64] | None:
            pictures.append(image)
            return super().find(image)

    tracker = CornerTracker()
    monkeypatch.setattr(tracker, "_follower", Counting)
    stream = stream_media(path, tracker=tracker, window_s=0.2)
    pieces = iter(stream)
    next(pieces)
    num_pictures = len(pictures)
    assert 0 < num_pictures < 60, "the hole goes on"
    stream.stop()
    with pytest.raises(MediaStopped, match=r"clip\.mp4"):
        list(pieces)
    assert len(pictures) <= num_pictures + 1, "pieces that are complete may still come"
    assert stream._file._owned is not None
    assert stream._file._owned.closed
