"""Files of transcripts: what each format holds, at once and segment by segment."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtsk.inference.subtitles import SubtitleOptions
from mtsk.inference.writers import FORMATS, Outputs, open_writer, parse_formats, render
from mtsk.scale import Scale
from mtsk.types import Segment, Transcript
from tests.inference.readers import read_srt, read_vtt, scale, timed, untimed

SEGMENTS = (timed("bin blue", 0.25, 0.5, 0.5, 1), untimed("", 1, 2), untimed("set\tred", 2, 3.5))
TALK = Transcript("bin blue set\tred", Scale(4), 30, 3.5, {"decode": 0.5}, segments=SEGMENTS)
WORD_BY_WORD = SubtitleOptions(max_words_per_line=1)
FINE = Transcript("a & b", Scale(4, 2), 70, 2.0, {})


class Pipe(io.StringIO):
    """Remembers each call of `write`."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return super().write(text)


# What the formats hold.


def test_txt_has_a_line_per_segment() -> None:
    assert render("txt", "a.wav", [TALK]) == "bin blue\nset red\n"
    assert render("txt", "a.wav", [FINE]) == "a & b\n"
    assert render("txt", "a.wav", [replace(FINE, text="")]) == "\n"


def test_txt_of_several_scales_has_a_line_each() -> None:
    assert render("txt", "a.wav", [FINE, replace(FINE, scale=Scale(16))]) == "a4v2\ta & b\na16\ta & b\n"


def test_tsv() -> None:
    assert render("tsv", "a.wav", [TALK]) == "start\tend\ttext\n250\t1000\tbin blue\n2000\t3500\tset red\n"


def test_srt() -> None:
    assert render("srt", "a.wav", [TALK]) == (
        "1\n00:00:00,250 --> 00:00:01,000\nbin blue\n\n2\n00:00:02,000 --> 00:00:03,500\nset red\n\n"
    )
    assert render("srt", "a.wav", [replace(FINE, text=" ")]) == ""


def test_vtt() -> None:
    assert render("vtt", "a.wav", [FINE]) == "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\na &amp; b\n\n"
    assert render("vtt", "a.wav", [replace(FINE, text="")]) == "WEBVTT\n\n"


def test_text_that_looks_like_a_part_of_the_format() -> None:
    segments = (untimed("1 --> 2 ---> <b>", 0, 1),)
    odd = replace(FINE, segments=segments)
    assert read_srt(render("srt", "a.wav", [odd]))[0].text == "1 -> 2 -> <b>"
    assert read_vtt(render("vtt", "a.wav", [odd]))[0].text == "1 --&gt; 2 ---&gt; &lt;b&gt;"


def test_long_recordings() -> None:
    late = replace(FINE, segments=(untimed("a", 359_999.5, 360_061.25),))
    assert "\n99:59:59,500 --> 100:01:01,250\n" in render("srt", "a.wav", [late])
    assert "\n99:59:59.500 --> 100:01:01.250\n" in render("vtt", "a.wav", [late])


def test_json_holds_all() -> None:
    record = json.loads(render("json", "a.wav", [TALK, FINE]))
    assert record == {"file": "a.wav", "transcripts": [TALK.to_dict(), FINE.to_dict()]}
    assert "words" not in record["transcripts"][0]["segments"][0]
    record = json.loads(render("json", "a.wav", [TALK], words=True))
    assert record["transcripts"] == [TALK.to_dict(words=True)]
    assert [word["word"] for word in record["transcripts"][0]["segments"][0]["words"]] == ["bin", "blue"]


def test_names_of_formats() -> None:
    assert parse_formats(" srt,txt,,srt") == ("srt", "txt")
    assert parse_formats("all") == FORMATS
    with pytest.raises(ValueError, match=r"no format doc, SRT; there are: txt, srt, vtt, tsv, json, all"):
        parse_formats("doc,txt,SRT")
    with pytest.raises(ValueError, match=r"no format txt,srt; there are"):
        open_writer("txt,srt", io.StringIO())


# Files.


def _written(folder: Path, formats: tuple[str, ...], *transcripts: Transcript) -> list[str]:
    """Names of the files."""
    names = [str(transcript.scale) for transcript in transcripts]
    with Outputs(folder / "a.mp4", "in/a.mp4", formats, names, WORD_BY_WORD, words=True) as outputs:
        outputs.add([transcript.segments for transcript in transcripts])
        outputs.close(transcripts)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_holds_what_is_printed(tmp_path: Path, format_name: str) -> None:
    assert _written(tmp_path / "new", (format_name,), TALK) == [f"a.mp4.{format_name}"]
    content = (tmp_path / "new" / f"a.mp4.{format_name}").read_bytes().decode()
    printed = render(format_name, "in/a.mp4", [TALK], WORD_BY_WORD, words=True)
    if format_name == "json":
        assert json.loads(content) == json.loads(printed)
        assert printed.count("\n") == 1 < content.count("\n")
    else:
        assert content == printed


def test_files_of_several_scales(tmp_path: Path) -> None:
    again = replace(TALK, warnings=("twice asked for",))
    fine = replace(TALK, scale=Scale(4, 2), segments=(replace(untimed("set blue", 0, 3), scale=Scale(4, 2)),))
    single = [f"a.mp4.{name}.{suffix}" for name in ("a4", "a4v2") for suffix in ("srt", "tsv", "vtt")]
    assert _written(tmp_path, FORMATS, TALK, fine, again) == sorted([*single, "a.mp4.json", "a.mp4.txt"])
    assert (tmp_path / "a.mp4.a4v2.srt").read_text() == render("srt", "", [fine])
    assert (tmp_path / "a.mp4.a4.tsv").read_text() == render("tsv", "", [TALK])
    assert (tmp_path / "a.mp4.txt").read_text() == "a4v2\tset blue\na4\tbin blue\na4\tset red\n", "by time"
    assert len(json.loads((tmp_path / "a.mp4.json").read_text())["transcripts"]) == 3


def test_a_name_that_proves_impossible_has_no_file(tmp_path: Path) -> None:
    with Outputs(tmp_path / "a", "a", FORMATS, ["a4v2", "a4"]) as outputs:
        outputs.add([(), SEGMENTS])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.a4.srt", "a.a4.tsv", "a.a4.vtt", "a.txt"]
        outputs.close([None, TALK])
    assert sorted(path.name for path in tmp_path.iterdir())[-2:] == ["a.json", "a.txt"]
    assert len(list(tmp_path.iterdir())) == 5
    assert [each["scale"] for each in json.loads((tmp_path / "a.json").read_text())["transcripts"]] == ["a4"]


def test_what_an_error_leaves_behind(tmp_path: Path) -> None:
    """What was written, with the cue that waited; an older JSON stays as it was."""
    (tmp_path / "a.json").write_text("old")

    def unreadable() -> None:
        with Outputs(tmp_path / "a", "a", ("srt", "json"), ["a4"], SubtitleOptions(40, 2)) as outputs:
            assert not (tmp_path / "a.srt").exists(), "a file that can't be read leaves nothing"
            outputs.add([[SEGMENTS[0], timed("set red", 2, 3, 3, 4)]])
            raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        unreadable()
    assert [cue.text for cue in read_srt((tmp_path / "a.srt").read_text())] == ["bin blue set red"]
    assert (tmp_path / "a.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


# Segment by segment.


@pytest.mark.parametrize("options", [SubtitleOptions(), SubtitleOptions(max_line_width=8, max_line_count=1)])
@pytest.mark.parametrize("format_name", FORMATS)
def test_a_stream_ends_as_what_is_written_at_once(format_name: str, options: SubtitleOptions) -> None:
    stream = io.StringIO()
    writer = open_writer(format_name, stream, options, source="a.wav", words=True)
    for segment in SEGMENTS:
        writer.add(segment)
    writer.close([TALK])
    assert stream.getvalue() == render(format_name, "a.wav", [TALK], options, words=True)


@pytest.mark.parametrize(("format_name", "num_heads"), [("txt", 0), ("srt", 0), ("vtt", 1), ("tsv", 1)])
def test_a_cue_is_written_in_one_call(format_name: str, num_heads: int) -> None:
    pipe = Pipe()
    writer = open_writer(format_name, pipe)
    for num_segments in (1, 2, 3):
        writer.add(untimed("bin blue", num_segments, num_segments + 1))
        assert len(pipe.written) == num_heads + num_segments
    writer.close()
    assert len(pipe.written) == num_heads + 3
    assert not pipe.closed


def test_a_file_that_is_cut_off_is_valid(tmp_path: Path) -> None:
    """Read while the writers are open, as if the process were killed there."""
    options = SubtitleOptions(max_line_width=20, max_line_count=1)
    names = ("txt", "srt", "vtt", "tsv")
    paths = {name: tmp_path / "out" / f"a.{name}" for name in names}
    writers = {name: open_writer(name, path, options) for name, path in paths.items()}
    assert read_vtt(paths["vtt"].read_text()) == []
    for index in range(3):
        for writer in writers.values():
            writer.add(timed(f"seven letters {index}", *(index + each / 6 for each in range(6))))
        assert [cue.text for cue in read_srt(paths["srt"].read_text())] == [f"seven letters {i}" for i in range(index)]
        assert len(read_vtt(paths["vtt"].read_text())) == index  # the newest cue might grow
        assert len(paths["txt"].read_text().splitlines()) == index + 1
        assert len(paths["tsv"].read_text().splitlines()) == index + 2
    for writer in writers.values():
        writer.close()
    assert len(read_srt(paths["srt"].read_text())) == 3


def test_json_appears_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    writer = open_writer("json", path, source="a.wav")
    writer.add(SEGMENTS[0])
    assert path.read_text() == "old"
    writer.add(SEGMENTS[2])
    writer.close()
    (found,) = json.loads(path.read_text())["transcripts"]
    assert (found["text"], found["scale"], found["num_tokens"]) == ("bin blue set\tred", str(scale()), 20)
    assert found["duration_s"] == 3.5
    assert [segment["id"] for segment in found["segments"]] == [0, 1]


def test_json_of_a_recording_without_segments() -> None:
    stream = io.StringIO()
    open_writer("json", stream, source="a.wav").close()
    assert json.loads(stream.getvalue()) == {"file": "a.wav", "transcripts": []}


def test_a_file_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text("old subtitles\n" * 100)
    writer = open_writer("srt", path)
    writer.add(Segment(0, 1, "new", scale(), 1))
    writer.close()
    assert [cue.text for cue in read_srt(path.read_text())] == ["new"]
