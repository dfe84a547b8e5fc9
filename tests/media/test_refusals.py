"""What is no media file is refused with one clear line; what is damaged gives what there is, with a warning."""

import io
import random

import av
import numpy as np
import pytest
from PIL import Image

from mtsk.media import MediaError, load_media
from mtsk.media.container import open_media
from tests.media.clips import FrameCollector, Kind, sound_of, write_clip

MP4 = Kind("mp4", "libx264", "aac")


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", MP4)


def refusal(source, **options) -> str:
    with pytest.raises(MediaError) as caught:
        load_media(source, tracker=FrameCollector(), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_such_file(tmp_path):
    assert refusal(tmp_path / "absent.mp4") == f"{tmp_path / 'absent.mp4'}: no such file"


def test_directory(tmp_path):
    assert "is a directory; allowed are media files such as mp4" in refusal(str(tmp_path))


def test_empty(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert "empty.mp4: is empty" in refusal(path)
    assert "allowed are" in refusal(io.BytesIO(b""))


def test_text(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("I am a letter, not a film.\n" * 100)
    message = refusal(path)
    assert message.startswith(f"{path}: cannot be read as sound or video")
    assert "allowed are" in message


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list"])
def test_hls_playlist_is_refused_under_any_name(tmp_path, clip, name):
    path = tmp_path / name
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n")
    assert "cannot be read as sound or video" in refusal(path)


def test_the_playlist_would_be_followed_without_our_options(tmp_path, clip):
    """Guards the test above: the list is one that PyAV does play when it is opened by path."""
    path = tmp_path / "list.m3u8"
    segment = write_clip(tmp_path / "segment.ts", Kind("ts", "libx264", "aac"))
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment.name}\n#EXT-X-ENDLIST\n")
    with av.open(str(path)) as container:
        assert next(container.decode(audio=0)).samples
    assert "cannot be read as sound or video" in refusal(path)


@pytest.mark.parametrize("name", ["list.ffconcat", "list.mp4"])
def test_concat_list_is_refused(tmp_path, clip, name):
    path = tmp_path / name
    path.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    assert "cannot be read as sound or video" in refusal(path)


def test_index_missing(tmp_path, clip):
    """An mp4 has its index at the end, unless it was moved: half a file cannot be read."""
    path = tmp_path / "half.mp4"
    path.write_bytes(clip.read_bytes()[:-4000])
    assert "half.mp4: cannot be read" in refusal(path)


def test_data_cut_off(tmp_path):
    whole = write_clip(tmp_path / "whole.mov", Kind("mov", "mjpeg", "pcm_s16le"))
    moved = tmp_path / "moved.mov"
    with av.open(str(whole)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = moved.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    collector = FrameCollector()
    media = load_media(io.BytesIO(data[: int(len(data) * 0.6)]), tracker=collector)
    assert 10 < len(collector.frames) < 40
    assert 0.4 < len(sound_of(media)) / 16_000 < 1.6
    assert any(warning.startswith("cut off: the video should last 2.00 s") for warning in media.warnings)


def test_cover_art_is_not_video(tmp_path):
    path = tmp_path / "song.m4a"
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    plain = write_clip(tmp_path / "song.flac", Kind("flac", None, "flac"))
    cover = picture.getvalue()
    # A FLAC picture block (type 6): front cover, image/png, no description, 32 x 32 x 24.
    fields = (3, 9), b"image/png", (0, 32, 32, 24, 0, len(cover))
    body = b"".join(
        part if isinstance(part, bytes) else b"".join(n.to_bytes(4, "big") for n in part) for part in fields
    )
    block = body + cover
    data = plain.read_bytes()
    first = 4 + 4 + 34  # the marker and the stream information, which must come first
    block = bytes([6]) + len(block).to_bytes(3, "big") + block
    path.write_bytes(data[:first] + block + data[first:])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1  # FFmpeg shows the cover as a stream
    collector = FrameCollector()
    media = load_media(path, tracker=collector)
    assert not media.has_video_stream
    assert media.mouth is None
    assert not collector.frames
    assert len(sound_of(media)) == 32_000


def box(kind: bytes, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + kind + body


def test_neither_sound_nor_video(tmp_path):
    path = tmp_path / "empty.mp4"
    header = bytes(12) + (1000).to_bytes(4, "big") + bytes(84)  # a movie header without any track
    path.write_bytes(box(b"ftyp", b"isom" + bytes(4) + b"isom") + box(b"moov", box(b"mvhd", header)))
    assert "has neither sound nor video; allowed are" in refusal(path)


def test_too_long(tmp_path, clip):
    assert refusal(clip, max_duration_s=1.5).endswith("lasts 2 s; allowed are 2 s")
    raw = write_clip(tmp_path / "raw.aac", Kind("adts", None, "aac"))
    assert "allowed" in refusal(raw, max_duration_s=0.5)


def test_too_large(tmp_path):
    wide = np.zeros((32, 4200, 3), np.uint8)
    path = write_clip(tmp_path / "wide.mp4", MP4, picture=lambda _: wide, duration_s=0.08)
    assert "pictures of 4200 x 32 pixels; allowed are 4096 x 4096" in refusal(path)


def test_streams_and_names(clip):
    named = load_media(clip, tracker=None)
    with clip.open("rb") as stream:
        opened = load_media(stream, tracker=None)
        assert not stream.closed  # whoever opened it closes it
    memory = load_media(io.BytesIO(clip.read_bytes()), tracker=None)
    assert (named.name, opened.name, memory.name) == (str(clip), str(clip), "<stream>")
    np.testing.assert_array_equal(named.waveform, memory.waveform)


def test_stream_without_seeking(tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self._data.readinto(buffer)

    path = write_clip(tmp_path / "clip.webm", Kind("webm", "libvpx", "libopus"))
    media = load_media(io.BufferedReader(Pipe(path.read_bytes())), tracker=None)
    np.testing.assert_array_equal(media.waveform, load_media(path, tracker=None).waveform)


def test_files_are_closed(clip):
    with open_media(clip) as file:
        stream = file._owned
        assert stream is not None
        assert not stream.closed
    assert stream.closed


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mpg"])
def test_mutated_files_give_media_or_a_media_error(tmp_path, suffix):
    kind = {"mp4": MP4, "mkv": Kind("mkv", "libx264", "flac"), "mpg": Kind("mpg", "mpeg1video", "mp2", rate_hz=44_100)}
    data = write_clip(tmp_path / f"clip.{suffix}", kind[suffix]).read_bytes()
    generator = random.Random(0)
    outcomes = set()
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(generator.choice([1, 10, 300])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            load_media(io.BytesIO(bytes(damaged)), tracker=FrameCollector(), max_duration_s=60)
            outcomes.add("media")
        except MediaError:
            outcomes.add("refused")
    assert "media" in outcomes
