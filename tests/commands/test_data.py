"""`mtsk prepare`, `mtsk evaluate` and `mtsk info` on tiny corpora."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mtsk.data.dataset import load_cuts
from mtsk.evaluation.peers import Decoded
from mtsk.types import Example, FaceModels
from tests.commands.conftest import GRID, Result, Run, write_face, write_sound
from tests.commands.test_bad_input import check

NO_LIPS = ("--no-lips", "--workers", "0")


def write_noise(folder: Path) -> Path:
    """Recordings of four talkers: even ones train, odd ones test."""
    folder.mkdir()
    for talker in (2, 3, 4, 5):
        write_sound(folder / f"{talker}-1-1.wav", 1.0)
    return folder


def write_corpus(folder: Path, num: int = 2, *, with_bad: bool = True) -> Path:
    folder.mkdir()
    for index in range(num):
        write_sound(folder / f"u{index}.wav", 1.0 + index / 4)
        (folder / f"u{index}.txt").write_text("bin blue at f two now\n")
    if with_bad:
        (folder / "letter.mp4").write_text("dear")
        (folder / "letter.txt").write_text("dear")
    return folder


# Preparing.


def test_folder(run: Run, tmp_path: Path) -> None:
    source, target = write_corpus(tmp_path / "source"), tmp_path / "target"
    result = run("prepare", "folder", source, target, "--split", "dev", *NO_LIPS)
    assert result.code == 0
    assert result.lines[0].startswith("dev: 2 utterances")
    assert "3 files read in this run" in result.out
    assert "refused: 1" in result.out
    (refusal,) = (line for line in result.lines if line.startswith("  "))
    assert str(source / "letter.mp4") in refusal
    assert "allowed are media files" in refusal
    summary = json.loads((target / "prepare.json").read_text())
    assert summary["num_utterances"] == {"dev": 2}
    assert list(summary["refused"]) == ["letter"]
    assert (target / "cuts_dev.jsonl.gz").exists()
    again = run("prepare", "folder", source, target, "--split", "dev", *NO_LIPS)
    assert again.code == 0
    assert "0 files read in this run" in again.out
    assert again.lines[0] == result.lines[0]
    write_sound(source / "u2.wav")
    (source / "u2.txt").write_text("bin blue")
    grown = run("prepare", "folder", source, target, "--split", "dev", *NO_LIPS)
    assert grown.lines[0].startswith("dev: 3 utterances")
    assert "1 files read in this run" in grown.out


def test_folder_where_all_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("prepare", "folder", write_corpus(tmp_path / "source", 0), tmp_path / "target", *NO_LIPS)
    assert result.code == 1
    assert "refused: 1" in result.out


def test_grid_with_lips(
    run: Run, tmp_path: Path, face_models: FaceModels, face_frames: list[NDArray[np.uint8]]
) -> None:
    (tmp_path / "source" / "s1").mkdir(parents=True)
    for name in ("bbaf2n", "bbaf3s"):
        write_face(tmp_path / "source" / "s1" / f"{name}.mp4", face_frames)
    (tmp_path / "source" / "s1_splits.json").write_text(json.dumps({"test": ["bbaf2n"], "dev": ["bbaf3s"]}))
    result = run("prepare", "grid", tmp_path / "source", tmp_path / "target", "--sheets", "1", "--workers", "0")
    assert result.code == 0
    assert [line.split(",")[0] for line in result.lines[:2]] == ["dev: 1 utterances", "test: 1 utterances"]
    assert "0 utterances without lips, 0 without sound; of 80 mouth crops" in result.out
    assert np.load(tmp_path / "target" / "mouth" / "s1_bbaf2n.npy").shape == (40, 96, 96)
    assert len(list((tmp_path / "target" / "sheets").glob("*.png"))) == 1


def test_noise(run: Run, tmp_path: Path) -> None:
    result = run("prepare", "noise", write_noise(tmp_path / "noise"), tmp_path / "target", "--workers", "0")
    assert (result.code, result.err) == (0, "")
    assert result.out == "noise: 2 recordings for training, 2 for evaluation, talkers disjoint\n"
    assert {path.name for path in (tmp_path / "target").glob("*.gz")} == {
        "noise_train.jsonl.gz",
        "noise_test.jsonl.gz",
    }


class FakeDecoder:
    """Surer of one text than of the other."""

    def decode(self, examples: Sequence[Example]) -> list[Decoded]:
        assert len(examples) == 1
        if examples[0].id == "labelled_7-1-0000":
            return [Decoded("Mr. Hale came.", (-0.1, -0.1))]
        return [Decoded("Mr. Ale game.", (-0.1, -0.9))]


def test_labelled(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    write_sound(source / "7-1-0000.wav", 1.0)
    write_sound(source / "deep" / "7-1-0001.wav", 1.25)
    monkeypatch.setattr("mtsk.evaluation.labelling.whisper_decoder", FakeDecoder)
    result = run("prepare", "labelled", source, target, "--workers", "0")
    assert result.code == 0
    assert result.lines[0].startswith("train: 1 utterances")
    assert "may be wrong: 1 of 2 recordings have one of confidence 0.8" in result.out
    assert "labelled_7-1-0001: the confidence of its label, 0.607, is below 0.8" in result.out
    (cut,) = load_cuts(target, "train")
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker) == ("mister hale came", "7")
    assert "mouth" not in (cut.custom or {})
    monkeypatch.setattr("mtsk.evaluation.labelling.whisper_decoder", None)  # whoever called it would notice
    lower = run("prepare", "labelled", source, target, "--workers", "0", "--min-confidence", "0.6")
    assert lower.lines[0].startswith("train: 2 utterances")
    assert "1 files read in this run" in lower.out
    higher = run("prepare", "labelled", source, target, "--workers", "0", "--min-confidence", "1")
    assert (higher.code, len((target / "labels.jsonl").read_text().splitlines())) == (1, 2)
    for wrong in ("1.5", "nan"):
        message = f"--min-confidence {wrong}: allowed is 0 to 1"
        check(run("prepare", "labelled", source, target, "--min-confidence", wrong), message)


def test_what_cannot_be_prepared(run: Run, tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "source")
    (tmp_path / "nothing").mkdir()
    for corpus in ("folder", "grid", "noise", "labelled"):
        check(run("prepare", corpus, tmp_path / "absent", tmp_path / "t"), f"{tmp_path / 'absent'}: no such folder")
        check(run("prepare", corpus, source / "u0.wav", tmp_path / "t"), f"{source / 'u0.wav'}: is not a folder")
        check(run("prepare", corpus, tmp_path / "nothing", tmp_path / "t"), str(tmp_path / "nothing"))
    check(run("prepare", "folder", source, tmp_path / "t", "--table", tmp_path / "t.tsv"), str(tmp_path / "t.tsv"))
    for option in ("--workers", "--sheets", "--face"):
        check(run("prepare", "folder", source, tmp_path / "t", option, "-1"), f"{option} -1", "from 0 up")
    assert not (tmp_path / "t").exists()
    (tmp_path / "file").touch()
    check(run("prepare", "folder", source, tmp_path / "file", *NO_LIPS), str(tmp_path / "file"), "not a folder")


# Evaluating.


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, face_models: FaceModels, face_frames: list[NDArray[np.uint8]]
) -> Path:
    """A prepared folder of two utterances with sound and lips, and noise."""
    from mtsk.commands.prepare import run

    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "source").mkdir()
    for index in range(2):
        write_face(folder / "source" / f"u{index}.mp4", face_frames)
        (folder / "source" / f"u{index}.txt").write_text("bin blue at f two now\n")
    options = {"split": "test", "table": None, "workers": 0, "sheets": 0, "face": 0, "lips": True}
    assert run("folder", folder / "source", folder / "data", **options) == 0  # type: ignore[arg-type]
    assert run("noise", write_noise(folder / "noise"), folder / "data", **options) == 0  # type: ignore[arg-type]
    return folder / "data"


def test_evaluate(run: Run, prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results"
    result = run(
        "evaluate", "--data", prepared, "--model", checkpoint, "--scale", "all", "--snr", "clean,-5", "-o", out,
        "--batch", "1",
    )  # fmt: skip
    assert result.code == 0
    written = ["errors.json", "errors.md", "hypotheses.jsonl", "wer.csv", "wer.json", "wer.png"]
    assert sorted(path.name for path in out.iterdir()) == written

    records = json.loads((out / "wer.json").read_text())
    names = [*map(str, GRID), "no-input"]
    assert [(record["scale"], record["snr_db"]) for record in records] == [
        (name, snr_db) for snr_db in (None, -5.0) for name in names
    ]
    for record in records:
        assert list(record)[:7] == ["scale", "snr_db", "wer", "low", "high", "words", "utterances"]
        assert list(record)[7:] == ["seconds", "tflops_per_s", "threads"]
        assert (record["tflops_per_s"] is None) == (record["scale"] == "no-input")
        assert (record["words"], record["utterances"]) == (12, 2)
        assert 0 <= record["low"] <= record["wer"] <= record["high"]
        assert math.isfinite(record["high"])

    with (out / "wer.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["scale"] for row in table] == names * 2
    assert [float(row["wer"]) for row in table] == [record["wer"] for record in records]

    lines = [json.loads(line) for line in (out / "hypotheses.jsonl").read_text().splitlines()]
    assert {(line["utterance"], line["scale"], line["snr_db"]) for line in lines} == {
        (utterance, name, snr_db) for utterance in ("u0", "u1") for name in names for snr_db in (None, -5.0)
    }
    with Image.open(out / "wer.png") as picture:
        assert picture.format == "PNG"

    assert "words not recognised, %, by position" in result.out  # both references have six words

    # Printed: a line for each name with both columns, and where the rest is.
    assert all(any(f" {name} " in line and line.count("(") == 2 for line in result.lines) for name in names)
    assert str(out) in result.out.replace("\n", "")


def test_evaluate_some_scales(run: Run, prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = run("evaluate", "--data", prepared, "--model", checkpoint, "--scale", "v5", "a4", "-o", tmp_path)
    assert result.code == 0
    records = json.loads((tmp_path / "wer.json").read_text())
    assert [(record["scale"], record["snr_db"]) for record in records] == [
        ("v5", None),
        ("a4", None),
        ("no-input", None),
    ]


def test_evaluate_with_beams(run: Run, prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Operations are left out, as those of a search are not counted."""
    options = ("--data", prepared, "--model", checkpoint, "--scale", "a4", "--beams", "3", "-o", tmp_path)
    assert run("evaluate", *options).code == 0
    rows = json.loads((tmp_path / "wer.json").read_text())
    assert [row["tflops_per_s"] for row in rows if row["scale"] == "a4"] == [None]
    check(run("evaluate", *options, "--policy", "auto"), "--beams with --policy or --pareto")


def test_what_cannot_be_evaluated(run: Run, prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    def evaluate(data: Path, *options: str | Path) -> Result:
        return run("evaluate", "--data", data, "--model", checkpoint, "-o", tmp_path / "out", *options)

    check(evaluate(tmp_path / "absent"), f"{tmp_path / 'absent'}: no such folder", "mtsk prepare")
    check(evaluate(tmp_path), str(tmp_path), "prepare")
    check(evaluate(prepared, "--split", "dev"), "'dev'", "it has test")
    check(evaluate(prepared, "--scale", "a3"), "a3", "a4 a16 v2 v5 a4v2 a4v5 a16v2 a16v5")
    check(evaluate(prepared, "--scale"), "--scale")
    for snr in ("loud", "nan", "inf", "", "5;0"):
        check(evaluate(prepared, "--snr", snr), f"--snr {snr}", "clean,10,0,-5")
    check(evaluate(prepared, "--batch", "0"), "--batch 0")
    assert not (tmp_path / "out").exists()

    quiet = tmp_path / "quiet"
    assert run("prepare", "folder", write_corpus(tmp_path / "source"), quiet, "--split", "test", *NO_LIPS).code == 0
    check(evaluate(quiet, "--snr", "0", "--scale", "a4"), str(quiet), "noise_test")
    no_lips = evaluate(quiet, "--scale", "a4v2")
    assert no_lips.code == 1
    assert "utterances can be used at a4v2" in no_lips.errors[-1]
    lost = quiet / "audio" / "u1.flac"
    lost.unlink()
    assert evaluate(quiet, "--scale", "a4").errors[-1].startswith(f"mtsk: error: {lost}: ")


def test_results_cannot_be_written(run: Run, prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check(run("evaluate", "--data", prepared, "--model", checkpoint, "-o", tmp_path / "file"), str(tmp_path / "file"))


# Information.


def test_info(run: Run, checkpoint: Path) -> None:
    result = run("info", checkpoint)
    assert (result.code, result.err) == (0, "")
    assert str(checkpoint) in result.lines[0]
    assert [line.split()[0] for line in result.lines[-len(GRID) :]] == [str(scale) for scale in GRID]
    rates = [float(line.split()[1]) for line in result.lines[-len(GRID) :]]
    assert rates == pytest.approx([scale.tokens_per_second for scale in GRID], abs=0.06)
    assert "tiny-llama" in result.out
    assert "average" in result.out


# Training: what is wrong is told before anything is trained.


def test_what_cannot_be_trained(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run("prepare", "folder", write_corpus(tmp_path / "source"), data, "--split", "test", *NO_LIPS).code == 0
    out = ("-o", tmp_path / "run")
    check(run("train"), "RECIPE and --data and -o missing", "--list")
    check(run("train", "grid-s1", *out), "--data missing")
    check(run("train", "grid-s2", "--data", data, *out), "'grid-s2'", "grid-s1")
    check(run("train", "grid-s1", "--data", data, *out), str(data), "'train'", "it has test")
    check(run("train", tmp_path / "no.json", "--data", data, *out), str(tmp_path / "no.json"))
    for text, part in (("{", "not valid JSON"), ('{"seeds": 1}', "seeds"), ("[]", "table")):
        (tmp_path / "run.json").write_text(text)
        check(run("train", tmp_path / "run.json", "--data", data, *out), str(tmp_path / "run.json"), part)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\xff")
    check(run("train", tmp_path / "run.json", "--data", data, *out), str(tmp_path / "run.json"), "not valid JSON")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid", "--landmarks", "x"], "--landmarks is for lrs2, lrs3, vox2, not for grid"),
        (["vox2", "--no-pretrain"], "--no-pretrain is for lrs2, lrs3, not for vox2"),
        (["spoken", "--table", "x.tsv"], "--table is for folder, vox2, not for spoken"),
        (["labelled", "--hours", "3"], "--hours is for spoken, not for labelled"),
        (["labelled", "--split", "test"], "--split is for folder, not for labelled"),
        (["folder", "--min-confidence", "0.5"], "--min-confidence is for labelled, not for folder"),
        (["lrs3", "--mix", "1"], "--mix is for noise, not for lrs3"),
    ],
)
def test_options_of_other_corpora_are_refused(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    corpus, *options = arguments
    result = run("prepare", corpus, tmp_path, tmp_path / "dst", *options)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"mtsk: error: {message}\n"
    assert not (tmp_path / "dst").exists()
