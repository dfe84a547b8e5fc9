"""What can't be transcribed: one clear line each, exit code 1, and the good files of the same call go on."""

import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

import mtsk
from mtsk.types import FaceModels
from tests.commands.conftest import MP4, Result, Run, write_face, write_sound
from tests.commands.test_transcribe import flat, rows
from tests.media.clips import Kind, write_clip

Make = Callable[[Path], Path]
MUTE = Kind("mp4", "libx264", None)


def nothing(folder: Path) -> Path:
    return folder / "absent.mp4"


def folder_without_media(folder: Path) -> Path:
    (folder / "letters").mkdir()
    (folder / "letters" / "a.txt").write_text("dear")
    return folder / "letters"


def text(folder: Path) -> Path:
    path = folder / "letter.mp4"
    path.write_text("I am a letter, not a film.\n" * 100)
    return path


def cut_off(folder: Path) -> Path:
    path = write_clip(folder / "half.mp4", MP4)
    path.write_bytes(path.read_bytes()[:-4000])
    return path


def empty(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def playlist(folder: Path, name: str = "list.m3u8") -> Path:
    segment = write_clip(folder / "segment.ts", Kind("ts", "libx264", "aac"))
    path = folder / name
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment}\n#EXT-X-ENDLIST\n")
    return path


def playlist_renamed(folder: Path) -> Path:
    return playlist(folder, "list.mp4")


def concat_list(folder: Path) -> Path:
    clip = write_clip(folder / "segment.mp4", MP4)
    path = folder / "list.ffconcat"
    path.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    return path


def short(folder: Path) -> Path:
    return write_sound(folder / "short.wav", 0.1)


def shorter_than_a_sample_window(folder: Path) -> Path:
    return write_sound(folder / "blip.wav", 0.001)


def silent(folder: Path) -> Path:
    return write_sound(folder / "silent.wav", level=0.0)


def no_face(folder: Path) -> Path:
    return write_clip(folder / "black.mp4", MP4, picture=flat(0))


def no_face_no_sound(folder: Path) -> Path:
    return write_clip(folder / "dark.mp4", MUTE, picture=flat(0))


def sound_alone(folder: Path) -> Path:
    return write_sound(folder / "voice.wav")


def mute(folder: Path) -> Path:
    return write_clip(folder / "mute.mp4", MUTE)


def check(result: Result, *parts: str) -> None:
    """One line on stderr with all of the parts, and nothing of Python's or a library's own."""
    assert result.code == 1
    assert len(result.errors) == 1, result.err
    assert result.err.startswith("mtsk: error: ")
    assert not re.search(r"\w+Error\b|Errno|\bat 0x|range\(|index", result.err), result.err
    for part in parts:
        assert part in result.err


# Files that can't be used at any scale, at the best scale, or at one scale: what the line says besides the name.
BAD_FILES: list[tuple[Make, list[str], str]] = [
    (nothing, [], "no such file"),
    (folder_without_media, [], "without media files ("),
    (text, [], "allowed are media files such as mp4"),
    (cut_off, [], "allowed are media files such as mp4"),
    (empty, [], "allowed are media files such as mp4"),
    (playlist, [], "allowed are media files such as mp4"),
    (playlist_renamed, [], "allowed are media files such as mp4"),
    (concat_list, [], "allowed are media files such as mp4"),
    (short, [], "too short"),
    (short, ["a16"], "too short"),
    (lambda folder: write_sound(folder / "word.wav", 0.3), ["a16"], "too short for a token at scale a16"),
    (shorter_than_a_sample_window, [], "too short"),
    (silent, [], "silent"),
    (silent, ["a4"], "silent"),
    (silent, ["4,2"], "silent"),
    (no_face, ["v2"], "no face"),
    (no_face_no_sound, [], "no sound and no face"),
    (no_face_no_sound, ["all"], "no sound and no face"),
    (no_face_no_sound, ["4,2"], "no sound and no face"),
    (no_face_no_sound, ["v5"], "no face"),
    (sound_alone, ["v2"], "no video"),
    (mute, ["a4"], "no sound"),
]


@pytest.mark.parametrize(("make", "scales", "reason"), BAD_FILES)
def test_bad_file(
    transcribe: Run, tmp_path: Path, face_models: FaceModels, make: Make, scales: list[str], reason: str
) -> None:
    path = make(tmp_path)
    result = transcribe(path, *(["--scale", *scales] if scales else []))
    check(result, f"mtsk: error: {path}: ", reason)
    assert result.out == ""


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    "make", [nothing, folder_without_media, text, cut_off, empty, playlist, short, silent, no_face_no_sound]
)
def test_the_others_go_on(
    transcribe: Run, tmp_path: Path, sound: Path, face_models: FaceModels, make: Make, position: int
) -> None:
    alone = rows(transcribe(sound).lines)
    bad = make(tmp_path)
    files = [sound, sound]
    files.insert(position, bad)
    result = transcribe(*files)
    check(result, str(bad))
    assert rows(result.lines) == alone * 2


def test_several_bad_files_have_a_line_each(transcribe: Run, tmp_path: Path, face_models: FaceModels) -> None:
    bad = [make(tmp_path) for make in (nothing, text, empty, silent)]
    result = transcribe(*bad)
    assert (result.code, result.out, len(result.errors)) == (1, "", len(bad))
    for path, line in zip(bad, result.errors, strict=True):
        assert line.startswith("mtsk: error: ")
        assert str(path) in line


def test_what_a_playlist_names_is_not_opened(transcribe: Run, tmp_path: Path, face_models: FaceModels) -> None:
    """The list names a pipe: whoever waits at its other end is woken if it is opened."""
    listed = playlist(tmp_path)
    renamed = tmp_path / "list.mp4"
    renamed.write_bytes(listed.read_bytes())
    segment = tmp_path / "segment.ts"
    data = segment.read_bytes()
    segment.unlink()
    os.mkfifo(segment)
    opened = threading.Event()

    def wait() -> None:
        with segment.open("wb") as pipe:
            opened.set()
            pipe.write(data)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    for path in (listed, renamed):
        check(transcribe(path), str(path))
    assert not opened.is_set()
    with av.open(str(listed)) as container:  # the trap works: PyAV by itself walks into it
        assert next(container.decode(audio=0)).samples
    assert opened.is_set()
    waiting.join(10)


def test_a_face_that_is_not_there(
    transcribe: Run, tmp_path: Path, face_models: FaceModels, face_frames: list[NDArray[np.uint8]]
) -> None:
    clip = write_face(tmp_path / "clip.mp4", face_frames)
    check(transcribe(clip, "--face", "7", "--scale", "v2"), str(clip), "face 7", "shows 1")
    both = transcribe(clip, "--face", "7", "--scale", "4,2")
    assert both.code == 0
    assert [scale for scale, _, _ in rows(both.lines)] == ["a4"]
    assert any("face 7" in line and "shows 1" in line for line in both.errors)
    check(transcribe(clip, "--face", "-1"), "--face -1", "from 0")


# What is wrong with the call: nothing is transcribed.


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--scale", "a3"], ["a3", "a4 a16 v2 v5 a4v2 a4v5 a16v2 a16v5"]),
        (["--scale", "a4", "4,3"], ["a4v3", "a4 a16 v2 v5 a4v2 a4v5 a16v2 a16v5"]),
        (["--scale", "fine"], ["'fine'", "a4v2, a16, v5 or 4,2"]),
        (["--scale", "a0"], ["from 1 up", "0"]),
        (["--scale"], ["--scale", "a4v2", "best"]),
        (["-f", "docx"], ["docx", "txt, srt"]),
        (["-f", "txt,docx"], ["docx", "txt, srt"]),
    ],
)
def test_bad_options(transcribe: Run, sound: Path, options: list[str], parts: list[str]) -> None:
    result = transcribe(sound, *options)
    check(result, *parts)
    assert result.out == ""


def test_no_files(transcribe: Run) -> None:
    check(transcribe(), "no files", "mtsk transcribe FILE")


def test_unknown_model(run: Run, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(run("transcribe", sound, "--model", "gird-s1"), "'gird-s1'", "a checkpoint folder")
    check(run("info", tmp_path), f"{tmp_path} is no checkpoint", "config.json")
    check(run("transcribe", sound, "--model", tmp_path), f"{tmp_path} is no checkpoint", "config.json")


def test_models_there_are(run: Run, sound: Path) -> None:
    models = Path(__file__).parents[2] / "models"
    names = sorted(path.parent.name for path in models.glob("*/config.json"))
    result = run("info", "no-such-model")
    check(result, "no-such-model", *names)


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_results_cannot_be_written(transcribe: Run, sound: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / below
    result = transcribe(sound, sound, "-o", target)
    check(result, str(target), "not a folder")
    assert result.out == ""  # told before anything is transcribed
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_where_nothing_may_be_written(transcribe: Run, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    check(transcribe(sound, "-o", tmp_path / "closed"), str(tmp_path / "closed"))


def test_warnings_are_lines_for_users(run: Run, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        warnings.warn("results may differ", stacklevel=2)
        raise ValueError("no more than that")

    monkeypatch.setattr(mtsk, "load", load)
    assert run("transcribe", sound).err == "mtsk: warning: results may differ\nmtsk: error: no more than that\n"


def test_a_damaged_checkpoint(run: Run, sound: Path, checkpoint: Path, tmp_path: Path) -> None:
    def copy(name: str, **contents: bytes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_bytes(contents.get(file.split(".")[0], (checkpoint / file).read_bytes()))
        return folder

    weights = copy("weights", model=b"x" * 100)
    check(run("transcribe", sound, "--model", weights), str(weights))
    config = copy("config", config=b"{")
    check(run("transcribe", sound, "--model", config), str(config), "JSON")
    check(run("info", config), str(config), "JSON")
    wrong: Any = copy("wrong", config=b'{"format": 1, "model": {"scales": "a4"}, "base": {}}')
    check(run("info", wrong))
