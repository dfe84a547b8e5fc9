"""`mtsk export`: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mtsk.checkpoints.store import save_model
from tests.commands.conftest import GRID, Run
from tests.tiny import save_tiny_bases, tiny_model


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose scales have adapters of their own."""
    folder = tmp_path_factory.mktemp("separate")
    save_model(tiny_model("ss", scales=GRID, sources=save_tiny_bases(folder)), folder / "checkpoint")
    return folder / "checkpoint"


def test_one_adapter_for_all_scales(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("export", "peft", checkpoint, out)
    assert (result.code, result.err) == (0, "")
    assert [line.split() for line in result.lines[:-1]] == [[str(scale), str(out)] for scale in GRID]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "parts.json",
        "parts.safetensors",
        "README.md",
    }
    assert set(json.loads((out / "parts.json").read_text())["scales"]) == set(map(str, GRID))


def test_a_folder_for_each_chosen_scale(run: Run, separate: Path, tmp_path: Path) -> None:
    result = run("export", "peft", separate, tmp_path / "out", "--scale", "4,2", "v5")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[0] for line in result.lines[:-1]] == ["a4v2", "v5"]
    for scale in ("a4v2", "v5"):
        tensors = load_file(tmp_path / "out" / scale / "adapter_model.safetensors")
        assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 64)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert not (tmp_path / "out" / "a4").exists()


def test_refusals_are_one_line(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for arguments, said in (
        (("peft", checkpoint, tmp_path / "out", "--scale", "a3"), "scale a3 was not trained; this model has: a4 a16"),
        (("peft", checkpoint, tmp_path / "out", "--scale", "x"), "'x' is not a scale"),
        (("peft", tmp_path / "nowhere", tmp_path / "out"), "no model "),
        (("peft", tmp_path, tmp_path / "out"), "is no checkpoint"),
        (("peft", checkpoint, tmp_path), "holds something else than an earlier export"),
        (("peft", checkpoint, tmp_path / "letter.txt"), "is not a folder"),
    ):
        result = run("export", *arguments)
        assert (result.code, result.out, len(result.errors)) == (1, "", 1), result
        assert said in result.err
    assert not (tmp_path / "out").exists()
