"""A recipe of the paper from a corpus to error rates, all by the command: tiny base models, everything else as it is.

Sound goes through Whisper's window of 30 s, lips through an AV-HuBERT that `mtsk convert` read from a fairseq file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from mtsk.checkpoints.sources import source_hash
from mtsk.checkpoints.store import CONFIG_FILE, WEIGHTS_FILE
from mtsk.commands import convert, prepare
from mtsk.config import AvHubertConfig, TrainConfig, to_dict
from mtsk.data.corpora import grid
from mtsk.model.avhubert import AvHubertEncoder
from mtsk.paper_recipes import PAPER_RECIPES
from tests.commands.conftest import Run
from tests.commands.test_transcribe import rows
from tests.data.test_lrs import DEV, add, script
from tests.goldens import golden_file, golden_module
from tests.shared import shared_data
from tests.tiny import save_tiny_bases

# A talker of LRS3, of each split; DEV is held out by the hash of the name.
CLIPS = ("pretrain/t00/00001", "trainval/t00/50001", "trainval/t01/50001", f"trainval/{DEV}/50001", "test/test0/00001")
NUM_STEPS = 2
RECIPES = ["paper_table1_mss", "omni_avsr", "paper_vsr_average_ss"]


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    """accelerate keeps precision and devices for the life of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, face_models: object) -> Path:
    """A folder with `lrs3`, prepared as `data`, and base models in folders: `avhubert-large`, the name in the recipes,
    `tiny-llama`, `tiny-whisper`."""
    home = tmp_path_factory.mktemp("paper")
    sources = [source for source in grid.list_sources(shared_data("grid")).sources if source.words][: len(CLIPS)]
    for name, source in zip(CLIPS, sources, strict=True):
        words = [(word.text.upper(), word.start_s, word.end_s) for word in source.words]
        add(home / "lrs3", name, script(source.text.upper(), words), clip=source.path)
    options: dict[str, Any] = {"split": "train", "table": None, "workers": 0, "sheets": 1, "face": 0, "lips": True}
    assert prepare.run("lrs3", home / "lrs3", home / "data", **options) == 0
    golden_module("fake_fairseq_ckpt").write(home / "published.pt", golden_file("avhubert_small_prenorm.npz"))
    assert convert.run("avhubert", home / "published.pt", home / "avhubert-large") == 0
    save_tiny_bases(home)
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name the folder of AV-HuBERT relative to where one is."""
    monkeypatch.chdir(home)


def write_recipe(name: str) -> TrainConfig:
    """`NAME.json`: the recipe with our base models, a few short steps, and narrow projectors."""
    config = PAPER_RECIPES[name]()
    assert (config.warm_start, config.video_encoder, config.lips_from) == (None, None, None)
    model = replace(config.model, llm="tiny-llama", projector=replace(config.model.projector, hidden=32))
    if model.audio is not None:
        model = replace(model, audio=replace(model.audio, source="tiny-whisper"))
    optim = replace(config.joint.optim, num_steps=NUM_STEPS, batch_s=7.0)
    config = replace(config, model=model, joint=replace(config.joint, optim=optim))
    Path(f"{name}.json").write_text(json.dumps(to_dict(config)))
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_from_corpus_to_error_rates(run: Run, home: Path, name: str) -> None:
    config = write_recipe(name)
    scales = [str(scale) for scale in config.model.grid]
    out = Path("runs", name)

    trained = run("train", f"{name}.json", "--data", "data", "-o", out)
    assert trained.code == 0, trained.err
    assert trained.lines[-1] == f"wrote {out / 'model'}"
    check_checkpoint(out / "model", config)
    check_info(run, out / "model", scales)

    measured = run("evaluate", "--data", "data", "--model", out / "model", "-o", out / "wer")
    assert measured.code == 0, measured.err
    wer = json.loads((out / "wer" / "wer.json").read_text())
    assert [row["scale"] for row in wer] == [*scales, "no-input"]
    assert all((row["utterances"], row["words"]) == (1, 6) for row in wer)
    first_cells = [match[1] for line in measured.lines if (match := re.match(r"[│ ]+(\w+) ", line))]
    assert [cell for cell in dict.fromkeys(first_cells) if cell in scales] == scales

    clip = home / "lrs3" / "test" / "test0" / "00001.mp4"
    written = run("transcribe", clip, "--model", out / "model", "--scale", "all")
    assert (written.code, written.err) == (0, "")
    assert [scale for scale, _, _ in rows(written.lines)] == scales


def test_without_avhubert_one_is_told_how_to_get_it(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written or downloaded."""
    monkeypatch.chdir(tmp_path)
    result = run("train", "paper_table1_ms", "--data", home / "data", "-o", "out")
    assert (result.code, len(result.errors)) == (1, 1), result.err
    assert "mtsk convert avhubert FILE avhubert-large" in result.err
    assert not Path("out").exists()


def check_checkpoint(folder: Path, config: TrainConfig) -> None:
    """Base models are named with their hashes; of the lip encoder only its adapters are stored."""
    record = json.loads((folder / CONFIG_FILE).read_text())
    sources = ["tiny-llama", *(["tiny-whisper"] if config.model.grid.audio_rates else []), "avhubert-large"]
    assert record["base"] == {source: source_hash(source) for source in sources}
    lips = [name for name in load_file(folder / WEIGHTS_FILE) if name.startswith("video_encoder.")]
    assert bool(lips) == config.model.trains_lips
    frozen = AvHubertEncoder.load(AvHubertConfig("-"), Path("avhubert-large"))
    assert not {name.removeprefix("video_encoder.") for name in lips} & set(frozen.state_dict())


def check_info(run: Run, folder: Path, scales: list[str]) -> None:
    """Sizes are those of the weights there are, and every scale has a row of costs."""
    result = run("info", folder, "--duration", "10")
    assert (result.code, result.err) == (0, "")
    num_stored = sum(tensor.numel() for tensor in load_file(folder / WEIGHTS_FILE).values())
    (line,) = (line for line in result.lines if line.startswith("  trained   ") and " M: " in line)
    assert sum(map(int, re.findall(r"(\d+) [a-z]", line.partition(": ")[2]))) == num_stored, line
    names = [match[1] for line in result.lines if (match := re.match(r"[│ ]+(\w+) ", line))]
    assert all(names.count(scale) >= 4 for scale in scales), result.out
