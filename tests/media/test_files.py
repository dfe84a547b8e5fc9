"""The formats that are opened, their suffixes and what the messages say of them agree."""

import av
import pytest

from mtsk.media import container, load_media
from mtsk.media.files import FORMATS, MEDIA_SUFFIXES, expand
from tests.media.clips import Kind, sound_of, write_clip


def test_what_the_message_names_is_found_in_folders():
    named = container._ALLOWED.removeprefix("allowed are media files such as ").split(", ")
    assert len(named) > 5
    assert {f".{name}" for name in named} <= MEDIA_SUFFIXES


def test_allowed_formats_exist():
    known = {name for formats in av.formats_available for name in formats.split(",")}
    unknown = {name for names in FORMATS for name in names.split(",")} - known
    assert unknown <= {"asf_o", "amrnb", "amrwb"}  # which not every build of FFmpeg has
    playlists = {"hls", "concat", "concatf", "dash", "image2", "imf", "sdp", "rtsp"}
    assert not playlists & {name for names in FORMATS for name in names.split(",")}


@pytest.mark.parametrize(
    ("suffix", "video", "audio"),
    [
        ("wmv", "wmv2", "mp2"),
        ("wma", None, "aac"),
        ("asf", "wmv2", "mp2"),
        ("flv", "flv", "aac"),
        ("3gp", "mpeg4", "aac"),
        ("mts", "mpeg2video", "mp2"),
        ("m2ts", "mpeg2video", "mp2"),
        ("vob", "mpeg2video", "mp2"),
        ("mka", None, "flac"),
        ("oga", None, "flac"),
        ("aiff", None, "pcm_s16be"),
        ("aif", None, "pcm_s16be"),
        ("caf", None, "pcm_s16le"),
        ("au", None, "pcm_s16be"),
        ("w64", None, "pcm_s16le"),
        ("mp2", None, "mp2"),
    ],
)
def test_files_of_a_suffix_are_found_and_opened(tmp_path, suffix, video, audio):
    path = write_clip(tmp_path / f"clip.{suffix.upper()}", Kind(suffix, video, audio))
    assert expand([tmp_path]) == [path]
    assert sound_of(load_media(path, tracker=None)).any()
