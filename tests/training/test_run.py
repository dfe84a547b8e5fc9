"""A whole run as a user starts it: refusals before anything is trained, the model at the end, interruptions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lhotse import CutSet
from lhotse.utils import fastcopy
from safetensors.torch import load_file

import mtsk
from mtsk.checkpoints.store import build_model, save_model, start_from
from mtsk.commands import train as command
from mtsk.config import AugmentConfig, TrainConfig, from_dict, to_dict
from mtsk.data.dataset import load_cuts
from mtsk.scale import Scale
from mtsk.training import run as run_module
from mtsk.training import trainer
from mtsk.training.joint_stage import JointStage
from mtsk.training.run import TrainingData, start_run, train
from mtsk.training.trainer import Run
from tests.tiny import save_tiny_bases, tiny_config, tiny_model
from tests.training.prepared import NUM_DEV, NUM_TRAIN, EvenAligner, tiny_train_config, write_data

NUM_STEPS = 4

# The folder of a run.


def test_a_folder_with_a_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    config = tiny_train_config()
    start_run(config, tmp_path / "made" / "run", resume=False)
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        start_run(config, tmp_path / "made" / "run", resume=False)
    start_run(config, tmp_path / "made" / "run", resume=True)
    start_run(config, tmp_path / "new", resume=True)  # nothing there yet: it begins


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    config = tiny_train_config()
    start_run(config, tmp_path, resume=False)
    written = (tmp_path / "train.json").read_bytes()
    others = [
        replace(config, seed=4),
        replace(config, warm_start=None),
        replace(config, joint=replace(config.joint, projector_lr=2e-4)),
        replace(config, model=tiny_config("ms")),
    ]
    for other in others:
        with pytest.raises(ValueError, match="another configuration"):
            start_run(other, tmp_path, resume=True)
    assert (tmp_path / "train.json").read_bytes() == written


# The data.


def test_only_train_and_dev_are_read(data_dir: Path) -> None:
    """The test split and the evaluation noise of this folder can't be read at all."""
    for split in ("test", "noise_test"):
        with pytest.raises(Exception, match=r"gzip|split"):
            load_cuts(data_dir, split)
    data = TrainingData.load(data_dir)
    assert {cut.id for cut in data.train} == {f"train_{i}" for i in range(NUM_TRAIN)}
    assert {id for batch in data.dev_batches() for id in batch.ids} == {f"dev_{i}" for i in range(NUM_DEV)}
    assert data.babble is not None
    assert data.babble.draw(100, np.random.default_rng(0)).any()


@pytest.mark.parametrize("missing", ["train", "dev"])
def test_missing_splits_are_refused(tmp_path: Path, missing: str) -> None:
    write_data(tmp_path / "data", noise=False)
    assert TrainingData.load(tmp_path / "data").babble is None
    (tmp_path / "data" / f"cuts_{missing}.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=f"no split '{missing}'"):
        TrainingData.load(tmp_path / "data")
    with pytest.raises(ValueError, match="is no prepared folder"):
        TrainingData.load(tmp_path / "nowhere")


# What would fail hours later.


def _train(config: TrainConfig, data: TrainingData, out_dir: Path, accelerator: Accelerator) -> bool:
    model = tiny_model(scales=config.model.scales)
    return train(config, model, data, Run(out_dir, accelerator, 1, 100), lambda _: {})


def test_utterances_too_long_for_the_encoder_are_refused(
    data: TrainingData, accelerator: Accelerator, tmp_path: Path
) -> None:
    config = tiny_train_config()
    augment = AugmentConfig(speed=0.1, shift_s=0.2)
    config = replace(config, warm_start=replace(config.warm_start, augment=augment))  # type: ignore[type-var]
    allowed_s = (30.0 - 0.2) * 0.9
    long = fastcopy(data.train["train_3"], id="long", duration=allowed_s + 0.01)
    longer = replace(data, train=CutSet([*data.train, long]))
    with pytest.raises(ValueError, match=r"1 utterances of the split train are too long, such as long.* 26\.82 s"):
        _train(config, longer, tmp_path, accelerator)
    too_long_dev = replace(data, dev=CutSet([fastcopy(long, duration=30.01)]))
    with pytest.raises(ValueError, match=r"split dev are too long.* 30\.00 s"):
        _train(config, too_long_dev, tmp_path, accelerator)
    assert list(tmp_path.iterdir()) == []
    mute = fastcopy(long, custom={**long.custom, "has_audio": False})  # its silence is not heard
    run_module._check(config, tiny_model(), replace(data, train=CutSet([mute])))


def test_what_the_configuration_lacks_is_refused(data: TrainingData, accelerator: Accelerator, tmp_path: Path) -> None:
    lips_only = tiny_train_config(tiny_config(scales=("v2", "v5")))
    with pytest.raises(ValueError, match=r"distill_weight needs a model with an audio encoder"):
        _train(lips_only, data, tmp_path, accelerator)
    with pytest.raises(ValueError, match=r"there is no lip encoder: video_encoder.*lips_from"):
        _train(replace(tiny_train_config(), video_encoder=None), data, tmp_path, accelerator)
    assert list(tmp_path.iterdir()) == []


# From end to end.


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on tiny base models, as a file."""
    folder = tmp_path_factory.mktemp("recipe")
    config = tiny_train_config(tiny_config("mss", sources=save_tiny_bases(folder)), num_steps=NUM_STEPS)
    (folder / "recipe.json").write_text(json.dumps(to_dict(config)))
    return folder / "recipe.json"


@pytest.fixture(scope="module")
def gaps_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data in which some lack lips, sound or word times, in both splits."""
    return write_data(tmp_path_factory.mktemp("gaps") / "data", gaps=True)


@pytest.fixture(scope="module")
def finished(recipe: Path, gaps_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        AcceleratorState._reset_state(reset_partial_state=True)
        patch.setattr(run_module, "WhisperAligner", EvenAligner)
        out_dir = tmp_path_factory.mktemp("runs") / "whole"
        assert command.run(str(recipe), gaps_dir, out_dir, False, None) == 0
        yield out_dir


def test_the_model_of_a_run_transcribes(finished: Path, data_dir: Path) -> None:
    engine = mtsk.load(finished / "model", device="cpu", dtype=torch.float32)
    transcript = engine.transcribe(data_dir / "audio" / "dev_2.flac", "a4", speech_only=False)  # it is noise
    assert transcript.num_tokens == int(transcript.duration_s * 50) // 4
    record = json.loads((finished / "model" / "config.json").read_text())
    assert record["training"]["joint"]["optim"]["num_steps"] == NUM_STEPS
    expected = json.loads((finished / "train.json").read_text())
    assert {key: record["training"][key] for key in expected} == expected
    assert (finished / "word_times.jsonl").read_text().count("\n") == 1  # of train_0
    tensorboard = {path.name for path in (finished / "tensorboard").iterdir()}
    assert tensorboard == {"video_encoder", "warm_start", "joint"}


def test_an_interrupted_run_ends_with_the_same_model(
    finished: Path, recipe: Path, gaps_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted as by Ctrl-C within each stage, between the steps that save; the last time while it validates."""
    monkeypatch.setattr(run_module, "WhisperAligner", EvenAligner)
    num_aligned = EvenAligner.num_aligned
    _interrupt(monkeypatch, trainer, "set_rates", at=(1, 5, 9, 15))
    _interrupt(monkeypatch, JointStage, "validate", at=(0,))
    num_interruptions = 0
    while True:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(num_interruptions)  # whatever was drawn before in this process
        try:
            command.run(str(recipe), gaps_dir, tmp_path / "run", num_interruptions > 0, None)
            break
        except KeyboardInterrupt:
            num_interruptions += 1
            assert not (tmp_path / "run" / "model").exists()
    assert num_interruptions == 5
    assert EvenAligner.num_aligned == num_aligned + 1
    for name in ("model/model.safetensors", "model/config.json", "word_times.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name


def _interrupt(patch: pytest.MonkeyPatch, home: object, name: str, *, at: tuple[int, ...]) -> None:
    """Lets some calls of a function end as by Ctrl-C, counted over all lives of the run."""
    calls = itertools.count()
    function = getattr(home, name)

    def interrupted(*args: object) -> object:
        if next(calls) in at:
            raise KeyboardInterrupt
        return function(*args)

    patch.setattr(home, name, interrupted)


def test_development_figures_leave_out_what_lacks_a_modality(gaps_dir: Path) -> None:
    """Of three utterances the second has no lips, the third no sound."""
    data = TrainingData.load(gaps_dir)
    model = tiny_model()
    figures = command.dev_figures(data)(model)
    assert set(figures) == {f"{scale}{noise}" for scale in model.grid for noise in ("", "_0dB")}
    few = replace(data, dev=data.dev.filter(lambda cut: cut.id == "dev_0").to_eager())
    assert command.dev_figures(few)(model)["a4v2"] == figures["a4v2"]
    lips = replace(data, dev=data.dev.filter(lambda cut: cut.id == "dev_2").to_eager())
    assert set(command.dev_figures(lips)(model)) == {"v2", "v5", "v2_0dB", "v5_0dB"}


def test_an_incomplete_command_is_refused(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(ValueError, match="mtsk train --list"):
        command.run("grid-s1", None, tmp_path, False, None)
    with pytest.raises(ValueError, match="no recipe 'grid'"):
        command.run("grid", data_dir, tmp_path / "out", False, None)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        command.run(str(tmp_path / "broken.json"), data_dir, tmp_path / "out", False, None)
    assert not (tmp_path / "out").exists()


# Lips that another model brings.


def test_lips_from_another_model_are_used_as_they_are(
    recipe: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lips of the new model are those of the checkpoint to the bit, and are no part of what is trained."""
    monkeypatch.setattr(run_module, "WhisperAligner", EvenAligner)
    config = from_dict(TrainConfig, json.loads(recipe.read_text()))
    sources = config.model.llm, config.model.audio.source  # type: ignore[union-attr]
    save_model(tiny_model("ss", seed=4, sources=sources), tmp_path / "lips")
    own = replace(config, video_encoder=None, lips_from=str(tmp_path / "lips"))
    (tmp_path / "own.json").write_text(json.dumps(to_dict(own)))
    assert command.run(str(tmp_path / "own.json"), data_dir, tmp_path / "run", False, None) == 0
    given, found = (load_file(tmp_path / name / "model.safetensors") for name in ("lips", "run/model"))
    lips = [name for name in found if name.startswith("video_encoder.")]
    assert len(lips) > 10
    assert all(torch.equal(found[name], given[name]) for name in lips)
    assert not torch.equal(found["projectors.video.at_rate.2.up.weight"], given["projectors.video.at_rate.2.up.weight"])
    assert {path.stem for path in (tmp_path / "run" / "stages").iterdir()} == {"warm_start", "joint"}
    for stage in ("warm_start", "joint"):
        stored = load_file(tmp_path / "run" / "stages" / f"{stage}.safetensors")
        assert not any("exp_avg" in name and "video_encoder" in name for name in stored), stage


def test_lips_that_can_not_be_had_are_refused_before_training(recipe: Path, data_dir: Path, tmp_path: Path) -> None:
    config = from_dict(TrainConfig, json.loads(recipe.read_text()))
    sources = config.model.llm, config.model.audio.source  # type: ignore[union-attr]
    save_model(tiny_model(scales=("a4",), sources=sources), tmp_path / "deaf")
    for lips, said in ((tmp_path / "nowhere", "no model '.*nowhere'"), (tmp_path / "deaf", "no lip encoder of this")):
        own = replace(config, video_encoder=None, lips_from=str(lips))
        (tmp_path / "own.json").write_text(json.dumps(to_dict(own)))
        with pytest.raises(ValueError, match=said):
            command.run(str(tmp_path / "own.json"), data_dir, tmp_path / f"run {lips.name}", False, None)
        assert not (tmp_path / f"run {lips.name}" / "stages").exists()


# A model to start from.


def test_a_run_starts_with_what_another_model_has(recipe: Path, data_dir: Path, tmp_path: Path) -> None:
    """At the first step the common parts are the given ones; a rate that is new has a fresh projector."""
    config = from_dict(TrainConfig, json.loads(recipe.read_text()))
    sources = config.model.llm, config.model.audio.source  # type: ignore[union-attr]
    given = tiny_model("ms", seed=4, sources=sources, scales=("a4", "a16"))
    save_model(given, tmp_path / "given")
    scales = tuple(Scale.parse(name) for name in ("a4", "a8"))
    model = replace(given.config, scales=scales)
    joint = replace(
        config.joint, optim=replace(config.joint.optim, num_steps=1, lr=1e-9), projector_lr=1e-9, weights={}
    )
    own = replace(
        config, model=model, joint=replace(joint, coarse_projector_lr=1e-9, scales_per_step=None, draw="uniform"),
        video_encoder=None, warm_start=None, start_from=str(tmp_path / "given"),
    )  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(to_dict(own)))
    assert command.run(str(tmp_path / "own.json"), data_dir, tmp_path / "run", False, None) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("given", "run/model"))
    common = set(before) & set(after)
    assert any("lora" in name or "AOR" in name for name in common)
    for name in common:
        torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=0)
    assert {name.split(".")[3] for name in set(after) - common} == {"8"}


def test_what_can_not_be_started_from_is_refused(tmp_path: Path) -> None:
    sources = save_tiny_bases(tmp_path / "bases")
    save_model(tiny_model("ms", sources=sources, scales=("a4",)), tmp_path / "given")
    config = tiny_config("ms", scales=("a4",), sources=sources)
    start_from(build_model(config), tmp_path / "given")
    wide = replace(config, projector=replace(config.projector, hidden=9))
    with pytest.raises(ValueError, match=r"given can't be started from: projectors\.audio\.at_rate\.4\.\S+ has shape"):
        start_from(build_model(wide), tmp_path / "given")
    record = json.loads((tmp_path / "given" / "config.json").read_text())
    record["base"] = {"another": "1"}
    (tmp_path / "given" / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="it stands on another, and this model on "):
        start_from(build_model(config), tmp_path / "given")
