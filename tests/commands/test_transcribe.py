"""`mtsk transcribe` on files that can be used."""

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mtsk
from mtsk.inference.engine import Engine
from mtsk.inference.recording import Written
from mtsk.inference.subtitles import SubtitleOptions
from mtsk.inference.writers import render
from mtsk.media import MediaError
from mtsk.scale import Scale
from mtsk.types import FaceModels, Segment, Transcript, Word
from tests.commands.conftest import GRID, MP4, Run, write_face, write_sound
from tests.media.clips import Kind, write_clip

ROW = re.compile(r"(?P<scale>\S+) +(?P<num_tokens>\d+) tokens +\d+ ms  (?P<text>.*)")
VIDEO_KINDS = [
    MP4,
    Kind("mp4", "libx264", "aac", fps=30),
    Kind("mov", "mpeg4", "pcm_s16le", fps=50),
    Kind("mpg", "mpeg1video", "mp2", rate_hz=44_100),
    Kind("mkv", "libx264", "flac", fps=30),
    Kind("webm", "libvpx", "libopus"),
]
SOUND_KINDS = [
    Kind("wav", None, "pcm_s16le"),
    Kind("mp3", None, "libmp3lame", rate_hz=44_100),
    Kind("flac", None, "flac"),
]
name_of = "{0.suffix} {0.video} {0.fps}".format


def rows(lines: list[str]) -> list[tuple[str, int, str]]:
    """Scale, number of tokens and text of printed lines."""
    matches = [ROW.fullmatch(line.strip(" ")) for line in lines]
    return [(match["scale"], int(match["num_tokens"]), match["text"]) for match in matches if match is not None]


def expected(engine: Engine, path: Path, *scales: str) -> list[tuple[str, int, str]]:
    """What the Python API says."""
    return [(str(t.scale), t.num_tokens, t.text) for t in engine.transcribe_scales(path, scales)]


# Scales.


@pytest.mark.parametrize(
    ("scales", "used"),
    [
        ([], ["a4v2"]),
        (["best"], ["a4v2"]),
        (["4,2", "a16"], ["a4v2", "a16"]),
        (["v5"], ["v5"]),
        (["all"], [str(scale) for scale in GRID]),
    ],
)
def test_scales(
    transcribe: Run, engine: Engine, tmp_path: Path, face_models: FaceModels, face_frames: Any, scales: list[str],
    used: list[str],
) -> None:  # fmt: skip
    clip = write_face(tmp_path / "clip.mp4", face_frames)
    result = transcribe(clip, *(["--scale", *scales] if scales else []))
    assert (result.code, result.err) == (0, "")
    found = rows(result.lines)
    assert len(found) == len(result.lines)
    assert [scale for scale, _, _ in found] == used
    assert found == expected(engine, clip, *used)


def test_files_may_follow_the_scales(transcribe: Run, engine: Engine, sound: Path) -> None:
    result = transcribe("--scale", "a16", "a4", sound)
    assert (result.code, result.err) == (0, "")
    assert rows(result.lines) == expected(engine, sound, "a16", "a4")


def test_all_that_a_short_file_allows(transcribe: Run, engine: Engine, tmp_path: Path) -> None:
    short = write_sound(tmp_path / "short.wav", 0.3)  # 15 features: none of the tokens at rate 16 is full
    result = transcribe(short, "--scale", "all")
    assert (result.code, result.err) == (0, "")
    assert rows(result.lines) == expected(engine, short, "a4")


# Several files.


def test_files_and_folders(transcribe: Run, engine: Engine, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    in_folder = [write_sound(tmp_path / "b.flac"), write_sound(tmp_path / "deep" / "a.wav", 1.3)]
    (tmp_path / "notes.txt").write_text("no media")
    result = transcribe(sound, tmp_path)
    assert (result.code, result.err) == (0, "")
    files = [sound, *in_folder]
    assert [line for line in result.lines if not line.startswith(" ")] == [str(path) for path in files]
    assert rows(result.lines) == [row for path in files for row in expected(engine, path, "a4")]


# Formats.


def check_record(record: dict[str, Any], path: Path, scales: list[str], engine: Engine, duration_s: float) -> None:
    """The whole of what JSON says of a file."""
    assert set(record) == {"file", "transcripts"}
    assert record["file"] == str(path)
    found = record["transcripts"]
    assert [(each["scale"], each["num_tokens"], each["text"]) for each in found] == expected(engine, path, *scales)
    for each in found:
        assert set(each) == {"text", "scale", "num_tokens", "duration_s", "seconds", "warnings", "segments"}
        assert set(each["seconds"]) == {"media", "encode", "decode"}
        assert all(0 < value < 60 for value in each["seconds"].values())
        assert each["duration_s"] == duration_s
        assert each["warnings"] == []


def test_json_is_printed_as_one_line_per_file(transcribe: Run, engine: Engine, sound: Path, tmp_path: Path) -> None:
    other = write_sound(tmp_path / "other.wav", 1.5)
    result = transcribe(sound, other, "-f", "json", "--scale", "a4", "a16")
    assert (result.code, result.err, len(result.lines)) == (0, "", 2)
    for line, path, duration_s in zip(result.lines, (sound, other), (1.0, 1.5), strict=True):
        check_record(json.loads(line), path, ["a4", "a16"], engine, duration_s)


def test_txt_is_printed_as_text_alone(transcribe: Run, engine: Engine, sound: Path) -> None:
    result = transcribe(sound, "-f", "txt", "--scale", "all")
    assert (result.code, result.err) == (0, "")
    assert result.out.split("\n") == [f"{scale}\t{text}" for scale, _, text in expected(engine, sound, "all")] + [""]


@pytest.mark.parametrize("formats", ["", "txt", "json", "txt,json"])
def test_formats_in_a_folder(transcribe: Run, engine: Engine, sound: Path, tmp_path: Path, formats: str) -> None:
    out = tmp_path / "new" / "out"
    result = transcribe(sound, "--scale", "a4", "a16", "-o", out, *(["-f", formats] if formats else []))
    assert (result.code, result.err) == (0, "")
    assert rows(result.lines) == expected(engine, sound, "a4", "a16")  # printed as well
    wanted = formats.split(",") if formats else ["txt"]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"good.wav.{name}" for name in wanted)
    if "txt" in wanted:
        written = (out / "good.wav.txt").read_text(encoding="utf-8")
        assert written.split("\n") == [
            f"{scale}\t{text}" for scale, _, text in expected(engine, sound, "a4", "a16")
        ] + [""]
    if "json" in wanted:
        written = (out / "good.wav.json").read_text(encoding="utf-8")
        check_record(json.loads(written), sound, ["a4", "a16"], engine, 1.0)


@pytest.mark.parametrize("name", ["srt", "vtt", "tsv"])
def test_a_document_is_printed(transcribe: Run, engine: Engine, sound: Path, name: str) -> None:
    result = transcribe(sound, "-f", name, "--scale", "a4")
    assert (result.code, result.err) == (0, "")
    assert result.out == render(name, str(sound), engine.transcribe_scales(sound, ["a4"]))


@pytest.mark.parametrize("further", [["--scale", "a4", "a16"], ["--scale", "all"], ["-f", "txt,srt"], ["other.wav"]])
def test_a_document_is_printed_alone(transcribe: Run, sound: Path, tmp_path: Path, further: list[str]) -> None:
    other = write_sound(tmp_path / "other.wav")
    arguments = [sound, other, "-f", "srt"] if further == [other.name] else [sound, "-f", "srt", *further]
    result = transcribe(*arguments)
    assert (result.code, result.out) == (1, "")
    (told,) = result.errors
    assert told.startswith("mtsk: error: srt is printed alone, of one file at one scale; for more, write files: -f ")
    assert transcribe(*arguments, "-o", tmp_path / "out").code == 0


def test_subtitles_of_each_scale(transcribe: Run, engine: Engine, sound: Path, tmp_path: Path) -> None:
    result = transcribe(sound, "--scale", "a4", "a16", "-f", "all", "-o", tmp_path)
    assert (result.code, result.err) == (0, "")
    names = ["txt", "json", *(f"{scale}.{name}" for scale in ("a4", "a16") for name in ("srt", "vtt", "tsv"))]
    assert {path.name for path in tmp_path.iterdir()} == {f"good.wav.{name}" for name in names}
    for transcript in engine.transcribe_scales(sound, ["a4", "a16"]):
        written = (tmp_path / f"good.wav.{transcript.scale}.srt").read_text(encoding="utf-8")
        assert written == render("srt", str(sound), [transcript])


def test_the_layout_of_subtitles(transcribe: Run, engine: Engine, sound: Path, tmp_path: Path) -> None:
    options = SubtitleOptions(max_line_width=5, max_line_count=2, highlight_words=True)
    arguments = ["--max-line-width", "5", "--max_line_count", "2", "--highlight-words", "--scale", "a4"]
    result = transcribe(sound, "-f", "vtt", *arguments)
    assert result.code == 0
    (told,) = result.errors
    assert told.endswith("this model has no character heads, so words have no times")
    assert result.out == render("vtt", str(sound), engine.transcribe_scales(sound, ["a4"]), options)
    assert transcribe(sound, "-f", "vtt,txt", *arguments, "-o", tmp_path).code == 0
    assert (tmp_path / "good.wav.vtt").read_text(encoding="utf-8") == result.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-f", "vtt", "--max-line-count", "2"], "max_line_count 2 needs max_line_width, which says what a line holds"),
        (["-f", "vtt", "--max-line-width", "0"], "max_line_width 0: 1 is the least"),
        (
            ["--highlight-words"],
            "the layout of subtitles (lines, words, highlights) is for srt and vtt; add -f srt or -f vtt",
        ),
        (["-f", "srt", "--word-timestamps"], "--word-timestamps is for json; add -f json"),
        (["--beams", "2", "--num-best", "2"], "--num-best is for json; add -f json"),
        (["-f", "doc"], "no format doc; there are: txt, srt, vtt, tsv, json, all"),
    ],
)
def test_outputs_that_there_are_not(transcribe: Run, sound: Path, arguments: list[str], told: str) -> None:
    result = transcribe(sound, *arguments)
    assert (result.code, result.out, result.errors) == (1, "", [f"mtsk: error: {told}"])


class Finished:
    """A file that is read already."""

    declared_s = None

    def __init__(self, transcripts: list[Transcript]) -> None:
        self._transcripts = transcripts
        self.names = tuple(str(transcript.scale) for transcript in transcripts)

    def read(self, *, growing: bool = False) -> Generator[Written, None, None]:
        yield Written(1.0, tuple(transcript.segments for transcript in self._transcripts))

    def transcripts(self) -> list[Transcript]:
        return self._transcripts

    def close(self) -> None:
        """There is nothing to close."""


class Failing(Finished):
    """A file that can be read for a while."""

    def read(self, *, growing: bool = False) -> Generator[Written, None, None]:
        yield from super().read()
        raise MediaError("good.wav: no more of it can be read")


def test_words_are_in_json_when_asked_for(
    transcribe: Run, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(0.0, 1.0, "bin blue", Scale(4), 12, (Word("bin", 0.0, 0.5, 0.75), Word("blue", 0.5, 1.0)))
    transcripts = [Transcript("bin blue", Scale(4), 12, 1.0, {"encode": 0.0, "decode": 0.0}, segments=(segment,))]
    monkeypatch.setattr(Engine, "open", lambda *_, **__: Finished(transcripts))
    plain = json.loads(transcribe(sound, "-f", "json").out)
    assert plain["transcripts"] == [transcripts[0].to_dict()]
    timed = json.loads(transcribe(sound, "-f", "json", "--word-timestamps").out)
    assert timed["transcripts"] == [transcripts[0].to_dict(words=True)]
    assert transcribe(sound, "-f", "json", "--word-timestamps", "-o", tmp_path).code == 0
    assert json.loads((tmp_path / "good.wav.json").read_text(encoding="utf-8")) == timed
    highlighted = transcribe(sound, "-f", "srt", "--highlight-words")
    assert "00:00:00,000 --> 00:00:00,500\n<u>bin</u> blue\n" in highlighted.out


@pytest.mark.parametrize(
    ("read", "is_told"),
    [
        ([("a4", 0.0, 1.0), ("a4", 0.004, 2.0)], True),
        ([("a4", 0.0, 1.0), ("a4", 0.3, 2.0)], False),
        ([("a4", 0.0, 9.0), ("a4", 0.3, 2.0)], True),
        ([("v2", 0.0, 9.0)], False),
        ([("a4v2", 0.0, 2.0), ("v2", 0.3, 9.0)], True),
        ([("a4", None, 1.0)], False),
        ([], False),
    ],
)
def test_the_default_model_says_when_it_is_the_wrong_one(
    run: Run,
    checkpoint: Path,
    engine: Engine,
    sound: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: list[tuple[str, float | None, float]],
    is_told: bool,
) -> None:
    segments = tuple(
        Segment(0.0, end_s, "bin blue", Scale.parse(scale), 12, confidence=confidence)
        for scale, confidence, end_s in read
    )
    transcripts = [Transcript("bin blue", Scale(4), 12, 1.0, {"encode": 0.0, "decode": 0.0}, segments=segments)]
    monkeypatch.setattr(Engine, "open", lambda *_, **__: Finished(transcripts))
    assert not run("transcribe", sound, "--model", checkpoint).err, "another model may know anything"
    monkeypatch.setattr(mtsk, "load", lambda *_, **__: engine)
    result = run("transcribe", sound)
    assert result.code == 0
    assert result.err.startswith(f"mtsk: warning: {sound}: the text does not fit what is heard") == is_told
    assert ("--model english" in result.err) == is_told


def test_a_file_that_fails_in_the_middle(
    transcribe: Run, engine: Engine, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gave before stays, and the others go on."""
    segment = Segment(0.0, 1.0, "bin blue", Scale(4), 12)

    def open_file(self: Engine, source: Path, *scales: Any, **options: Any) -> Any:
        if source == sound:
            return Failing([Transcript("", Scale(4), 12, 1.0, {}, segments=(segment,))])
        return open_really(self, source, *scales, **options)

    open_really = Engine.open
    monkeypatch.setattr(Engine, "open", open_file)
    other = write_sound(tmp_path / "other.wav", 1.5)
    result = transcribe(sound, other, "-f", "srt,json", "-o", tmp_path / "out", "--scale", "a4")
    assert (result.code, result.errors) == (1, ["mtsk: error: good.wav: no more of it can be read"])
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"good.wav.srt", "other.wav.srt", "other.wav.json"}
    assert written["good.wav.srt"] == "1\n00:00:00,000 --> 00:00:01,000\nbin blue\n\n"
    assert written["other.wav.srt"] == render("srt", "", engine.transcribe_scales(other, ["a4"]))


def test_a_stream_is_printed_as_it_comes(transcribe: Run, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment(0.0, 1.0, "bin blue", Scale(4), 12)

    transcripts = [Transcript("", Scale(4), 12, 1.0, {}, segments=(segment,))]
    monkeypatch.setattr(Engine, "open", lambda *_, **__: Failing(transcripts))
    result = transcribe(sound, "-f", "vtt", "--scale", "a4")
    assert (result.code, len(result.errors)) == (1, 1)
    assert result.out == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nbin blue\n\n"


def test_files_of_one_name_do_not_replace_each_other(transcribe: Run, engine: Engine, tmp_path: Path) -> None:
    files = []
    for index, talker in enumerate(("s1", "s2")):
        (tmp_path / talker).mkdir()
        files.append(write_sound(tmp_path / talker / "bbaf2n.wav", 1.0 + index / 4))
    assert transcribe(*files, "-o", tmp_path / "out").code == 0
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["s1_bbaf2n.wav.txt", "s2_bbaf2n.wav.txt"]
    texts = [path.read_text(encoding="utf-8") for path in written]
    assert texts == [f"{expected(engine, path, 'a4')[0][2]}\n" for path in files]


def test_a_file_name_that_is_no_text(transcribe: Run, sound: Path, tmp_path: Path) -> None:
    odd = tmp_path / "caf\udce9.wav"  # Latin-1
    try:
        odd.write_bytes(sound.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    result = transcribe(odd, sound, "-f", "json", "-o", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert json.loads((tmp_path / "out" / "caf\udce9.wav.json").read_text(encoding="utf-8"))["file"] == str(odd)
    printed = transcribe(odd, sound, "-f", "json")
    assert [json.loads(line)["file"] for line in printed.lines] == [str(odd), str(sound)]


# Containers and codecs.


@pytest.mark.parametrize(("kind", "rotation"), [(MP4, 90), *((kind, 0) for kind in VIDEO_KINDS)])
def test_videos_of_a_face(
    transcribe: Run, tmp_path: Path, face_models: FaceModels, face_frames: Any, kind: Kind, rotation: int
) -> None:
    result = transcribe(write_face(tmp_path / f"clip.{kind.suffix}", face_frames, kind, rotation))
    assert (result.code, result.err) == (0, "")
    ((scale, num_tokens, _),) = rows(result.lines)
    assert scale == "a4v2"
    assert 38 <= num_tokens <= 42  # 1.6 s at 25 tokens a second


@pytest.mark.parametrize("kind", [*VIDEO_KINDS, *SOUND_KINDS], ids=name_of)
def test_sound_of_any_file(transcribe: Run, tmp_path: Path, kind: Kind) -> None:
    result = transcribe(write_clip(tmp_path / f"clip.{kind.suffix}", kind), "--scale", "a4")
    assert (result.code, result.err) == (0, "")
    ((scale, num_tokens, _),) = rows(result.lines)
    assert scale == "a4"
    assert 24 <= num_tokens <= 26  # 2 s at 12.5 tokens a second


@pytest.mark.parametrize("kind", SOUND_KINDS, ids=name_of)
def test_the_best_of_sound_alone(transcribe: Run, tmp_path: Path, kind: Kind, face_models: FaceModels) -> None:
    result = transcribe(write_clip(tmp_path / f"clip.{kind.suffix}", kind))
    assert (result.code, result.err) == (0, "")
    assert [scale for scale, _, _ in rows(result.lines)] == ["a4"]


# What a file lacks.


def flat(grey: int) -> Any:
    """A picture of one colour."""
    picture: NDArray[np.uint8] = np.full((96, 128, 3), grey, np.uint8)
    return lambda _: picture


def test_a_video_without_sound(transcribe: Run, tmp_path: Path, face_models: FaceModels, face_frames: Any) -> None:
    clip = write_face(tmp_path / "mute.mp4", face_frames, Kind("mp4", "libx264", None))
    seen = transcribe(clip, "--scale", "v2")
    assert (seen.code, seen.err) == (0, "")
    assert [scale for scale, _, _ in rows(seen.lines)] == ["v2"]
    both = transcribe(clip, "--scale", "4,2")
    assert both.code == 0
    assert rows(both.lines) == rows(seen.lines)
    assert both.errors == [f"mtsk: warning: {clip}: no sound for scale a4v2; v2 is used"]


def test_sound_without_a_video(transcribe: Run, sound: Path, face_models: FaceModels) -> None:
    heard = transcribe(sound, "--scale", "a4")
    both = transcribe(sound, "--scale", "4,2")
    assert both.code == 0
    assert rows(both.lines) == rows(heard.lines)
    assert both.errors == [f"mtsk: warning: {sound}: no video for scale a4v2; a4 is used"]
    warned = transcribe(sound, "--scale", "4,2", "-f", "json")
    assert json.loads(warned.out)["transcripts"][0]["warnings"] == ["no video for scale a4v2; a4 is used"]


def test_a_black_video_with_sound(transcribe: Run, tmp_path: Path, face_models: FaceModels) -> None:
    clip = write_clip(tmp_path / "black.mp4", MP4, picture=flat(0))
    both = transcribe(clip, "--scale", "4,2")
    assert both.code == 0
    assert [scale for scale, _, _ in rows(both.lines)] == ["a4"]
    assert f"mtsk: warning: {clip}: no face for scale a4v2; a4 is used" in both.errors
    assert all(line.startswith(f"mtsk: warning: {clip}: ") for line in both.errors)
    assert [scale for scale, _, _ in rows(transcribe(clip, "--scale", "all").lines)] == ["a4", "a16"]
