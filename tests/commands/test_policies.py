"""Policies on the command line: calibrate, transcribe under a policy, report."""

import json
import shutil
from pathlib import Path

import pytest

from mtsk.checkpoints.store import read_record, write_policy
from mtsk.config import AutoConfig, BandConfig, StepConfig
from mtsk.scale import Scale
from tests.commands.conftest import Run, write_sound

AUTO = AutoConfig((BandConfig((StepConfig(Scale(16), 2.0), StepConfig(Scale(4)))),), "made up")


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "own"))


def test_thresholds_are_stored_beside_all_else(own: Path) -> None:
    before = json.loads((own / "config.json").read_text())
    assert read_record(own).policy is None
    write_policy(own, AUTO)
    assert read_record(own).policy == AUTO
    after = json.loads((own / "config.json").read_text())
    assert {key: value for key, value in after.items() if key != "policy"} == before
    with pytest.raises(ValueError, match="a7 was not trained"):
        write_policy(own, AutoConfig((BandConfig((StepConfig(Scale(7)),)),)))
    assert read_record(own).policy == AUTO


def test_auto_is_reported_with_its_reasons(run: Run, own: Path, sound: Path) -> None:
    write_policy(own, AUTO)
    result = run("transcribe", sound, "--policy", "auto", "-f", "json", "--model", own)
    assert (result.code, result.err) == (0, "")
    [transcript] = json.loads(result.out)["transcripts"]
    [segment] = transcript["segments"]
    assert segment["scale"] == "a4"
    assert segment["decision"]["tried"] == ["a16", "a4"]
    assert segment["decision"]["flops"] == transcript["flops"] > 0
    assert "unsure" in segment["decision"]["why"]
    table = run("transcribe", sound, "--policy", "auto", "--model", own)
    assert "TFLOPs" in table.lines[0]


@pytest.mark.parametrize(
    ("options", "scale"),
    [(["--budget-tokens", "12"], "a4"), (["--budget-tokens", "11"], "a16"), (["--budget-tflops", "1"], "a4")],
)
def test_budgets(run: Run, checkpoint: Path, sound: Path, options: list[str], scale: str) -> None:
    result = run("transcribe", sound, *options, "-f", "json", "--model", checkpoint)
    assert (result.code, result.err) == (0, "")
    [segment] = json.loads(result.out)["transcripts"][0]["segments"]
    assert segment["scale"] == scale
    assert segment["decision"]["why"].startswith("budget:")


def test_milliseconds_need_a_measured_machine(
    run: Run, checkpoint: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTSK_CACHE", str(tmp_path))
    result = run("transcribe", sound, "--budget-ms", "100", "--model", checkpoint)
    assert result.code == 1
    assert "mtsk bench --calibrate" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "auto"], "mtsk calibrate"),
        (["--budget-tokens", "0"], "--budget-tokens 0: more than 0"),
        (["--budget-tokens", "5", "--budget-ms", "5"], "--budget-tokens and --budget-ms given"),
        (["--budget-tokens", "5", "--scale", "a4"], "--scale and a policy"),
    ],
)
def test_what_does_not_fit(run: Run, checkpoint: Path, sound: Path, options: list[str], message: str) -> None:
    result = run("transcribe", sound, *options, "--model", checkpoint)
    assert result.code == 1
    assert message in result.err


@pytest.fixture
def prepared(tmp_path: Path, run: Run) -> Path:
    """A folder of sound without lips, with a development and a test set of 12 utterances each."""
    media, data = tmp_path / "media", tmp_path / "data"
    for split in ("dev", "test"):
        for i in range(12):
            (media / split).mkdir(parents=True, exist_ok=True)
            path = write_sound(media / split / f"{split}{i}.wav", 1.0 + i / 20)
            path.with_suffix(".txt").write_text("bin blue at f two now")
        result = run("prepare", "folder", media / split, data, "--split", split, "--workers", "0")
        assert result.code == 0, result.err
    return data


def test_calibrate_and_report(run: Run, own: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("calibrate", own, "--data", prepared, "--snr", "clean", "--noises", "1", "-o", out)
    assert (result.code, result.err) == (0, ""), result.err
    policy = read_record(own).policy
    assert policy is not None
    assert "12 utterances of dev" in policy.data
    assert len(json.loads((out / "trials.json").read_text())) == 12
    result = run("evaluate", "--data", prepared, "-o", out, "--pareto", "--model", own, "--scale", "a4", "a16")
    assert result.code == 0, result.err
    points = json.loads((out / "pareto.json").read_text())
    assert [point["system"] for point in points] == ["a4", "a16", "auto", "oracle"]
    assert all(point["tflops"] > 0 and point["rate"]["utterances"] == 12 for point in points)
    assert [point["lips_share"] for point in points] == [0, 0, 0, 0]
    result = run("calibrate", own, "--data", prepared, "--split", "test", "--snr", "clean")
    assert result.code == 1
    assert "kept for evaluation" in result.err
