"""The loop: an interrupted run ends with the bits of an uninterrupted one, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from mtsk.config import OptimConfig, TrainConfig, VideoStageConfig
from mtsk.model.avsr import AvsrModel
from mtsk.training.joint_stage import JointStage
from mtsk.training.labels import Units
from mtsk.training.run import TrainingData, train
from mtsk.training.source import BatchSource
from mtsk.training.trainer import Run
from mtsk.training.video_stage import VideoStage
from tests.tiny import TEXTS, tiny_batch, tiny_config, tiny_model
from tests.training.prepared import tiny_train_config

NUM_STEPS = 5
STAGES = ("video_encoder", "warm_start", "joint")


def _once(
    config: TrainConfig, data: TrainingData, out_dir: Path, stop_after: int | None, precision: str
) -> tuple[bool, AvsrModel]:
    """One life of a process: everything is made anew, but what is on disk."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(out_dir, Accelerator(cpu=True, mixed_precision=precision), config.seed, config.save_every, stop_after)
    torch.manual_seed(config.seed)
    model = tiny_model("mss", adapted=False)
    return train(config, model, data, run, lambda _: {"wer": 1.0}), model


@pytest.mark.parametrize(("cache_views", "precision"), [(0, "no"), (2, "bf16")])
def test_resume_is_exact(data: TrainingData, tmp_path: Path, cache_views: int, precision: str) -> None:
    """Of each stage, with dropout on, stopped on and off the steps at which it is saved anyway."""
    config = tiny_train_config(num_steps=NUM_STEPS, cache_views=cache_views)
    complete, model = _once(config, data, tmp_path / "whole", None, precision)
    assert complete
    num_lives = 1
    while not _once(config, data, tmp_path / "parts", 2 if num_lives % 2 else 1, precision)[0]:
        num_lives += 1
        assert num_lives < 20
    assert num_lives >= 2 * len(STAGES)
    complete, other = _once(config, data, tmp_path / "parts", None, precision)
    assert complete
    state, its_state = model.state_dict(), other.state_dict()
    assert [name for name, value in state.items() if not torch.equal(value, its_state[name])] == []
    for stage in STAGES:
        one, another = (tmp_path / run / "stages" / f"{stage}.safetensors" for run in ("whole", "parts"))
        assert _content(one) == _content(another), stage
    fresh = tiny_model("mss", adapted=False).trained_parameters()
    unmoved = [name for name, value in model.trained_parameters().items() if torch.equal(value, fresh[name])]
    assert unmoved == []


def _content(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


def test_a_complete_stage_is_only_loaded(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_train_config(num_steps=2)
    _, model = _once(config, data, tmp_path, None, "no")
    printed = capsys.readouterr().out
    assert "video_encoder 2/2" in printed
    assert "joint dev  wer 1.000" in printed

    def refused(*_: object) -> None:
        raise AssertionError("a complete stage was trained")

    monkeypatch.setattr(BatchSource, "from_step", refused)
    monkeypatch.setattr(VideoStage, "validate", refused)
    complete, other = _once(config, data, tmp_path, None, "no")
    assert complete
    assert capsys.readouterr().out == ""
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_is_frozen_stays(data: TrainingData, tmp_path: Path) -> None:
    """The base models do not move in any stage, nor the lip encoder after its own."""
    model = tiny_model("mss", adapted=False)
    frozen = {n: p.clone() for n, p in model.named_parameters() if n not in model.trained_parameters()}
    config = tiny_train_config(num_steps=2)
    _, trained = _once(config, data, tmp_path, None, "no")
    state = trained.state_dict()
    assert frozen
    assert all(torch.equal(value, state[name]) for name, value in frozen.items())
    lips = _content(tmp_path / "stages" / "video_encoder.safetensors")
    for name, value in state.items():
        if name.startswith("video_encoder."):
            key = name.removeprefix("video_encoder.")
            saved = lips.get(f"weight.encoder.{key}") or lips.get(f"buffer.encoder.{key}")
            assert saved == value.numpy().tobytes(), name


def test_other_training_texts_are_refused(data: TrainingData, tmp_path: Path) -> None:
    """The classes of the lips' head come from the texts."""
    config = tiny_train_config(num_steps=2)
    _once(config, data, tmp_path, 1, "no")
    fewer = replace(data, train=data.train.filter(lambda cut: cut.id == "train_0").to_eager())
    with pytest.raises(ValueError, match="other parameters"):
        _once(config, fewer, tmp_path, 1, "no")


class _Source:
    """Just the accelerator of a `BatchSource`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    ("durations_s", "num_frames"),
    [((1.31, None, 2.0), (30, 19, None)), ((1.31, 0.735, 2.0), (None,) * 3), ((None,) * 3, (30, 19, 47))],
    ids=["gaps", "no lips", "no sound"],
)
def test_lip_losses_are_finite_whatever_is_missing(
    durations_s: tuple[float | None, ...], num_frames: tuple[int | None, ...], precision: str
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = tiny_model()
    assert model.video_encoder is not None
    config = VideoStageConfig(OptimConfig(1, 1e-3), distill_weight=1.0)
    stage = VideoStage(
        config,
        model.video_encoder,
        model.audio_encoder,
        Units.of_texts(TEXTS, model.prompts),
        model.prompts,
        source=_Source(accelerator),  # type: ignore[arg-type]
        dev=lambda: iter([tiny_batch(durations_s=durations_s, num_frames=num_frames)]),
    )
    parameters = stage.groups()[0].parameters
    figures = stage.backward(tiny_batch(durations_s=durations_s, num_frames=num_frames), 0)
    nothing_to_see = not any(num_frames)
    assert (figures["ctc"] == 0.0) == nothing_to_see
    assert (figures["distill"] == 0.0) == (nothing_to_see or not any(durations_s))
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (not nothing_to_see)
    assert stage.validate()["token_error_rate"] > 0.0


def test_distillation_is_the_cosine_to_whispers_features(accelerator: Accelerator) -> None:
    """Row by row and frame by frame, with the head a plain copy."""
    model = tiny_model()
    assert model.video_encoder is not None
    assert model.audio_encoder is not None
    config = VideoStageConfig(OptimConfig(1, 1e-3), distill_weight=1.0)
    units = Units.of_texts(TEXTS, model.prompts)
    source = _Source(accelerator)
    stage = VideoStage(
        config, model.video_encoder, model.audio_encoder, units, model.prompts, source=source, dev=lambda: iter([])  # type: ignore[arg-type]
    )  # fmt: skip
    batch = tiny_batch()
    torch.manual_seed(0)
    found = stage.backward(batch, 0)["distill"]
    torch.manual_seed(0)
    with torch.no_grad():
        stage.modules.train()
        lips = stage.modules.encoder(batch.mouth_BTHW, batch.num_frames_B)
        sound = model.audio_encoder(batch.waveform_BN, batch.num_samples_B)
        distances = []
        for row in range(len(batch)):
            for frame in range(min(int(lips.lengths_B[row]), int(sound.lengths_B[row]) // 2)):
                target_D = (sound.values_BTD[row, 2 * frame] + sound.values_BTD[row, 2 * frame + 1]) / 2
                guess_D = stage.modules.teacher(lips.values_BTD[row, frame])
                distances.append(1.0 - float(nn.functional.cosine_similarity(guess_D, target_D, dim=0)))
    assert found == pytest.approx(sum(distances) / len(distances), rel=1e-4)


def test_scales_of_a_step(data: TrainingData, accelerator: Accelerator) -> None:
    """Drawn by step, without repeats, each as likely; all of them where not configured."""

    def stage(wanted: int | None) -> JointStage:
        config = replace(tiny_train_config().joint, scales_per_step=wanted)
        source = _Source(accelerator)
        return JointStage(config, tiny_model(), source=source, encoder=None, seed=5, validator=lambda _: {})  # type: ignore[arg-type]

    grid = tiny_config().grid
    some, again = stage(2), stage(2)
    drawn = [some.scales(step, grid) for step in range(300)]
    assert drawn == [again.scales(step, grid) for step in range(300)]
    assert all(len(set(scales)) == 2 and scales == sorted(scales) for scales in drawn)
    counts = [sum(scale in scales for scales in drawn) for scale in grid]
    assert min(counts) > 70  # 100 expected
    assert stage(None).scales(3, grid) == stage(6).scales(3, grid) == stage(9).scales(3, grid) == list(grid)


def test_groups_cover_what_is_trained_once() -> None:
    model = tiny_model("mss")
    config = tiny_train_config().joint
    stage = JointStage(config, model, source=None, encoder=None, seed=5, validator=lambda _: {})  # type: ignore[arg-type]
    rest, fine, coarse = stage.groups()
    names = [name for group in (rest, fine, coarse) for name in group.parameters]
    assert len(names) == len(set(names))
    assert set(names) == {name for name in model.trained_parameters() if not name.startswith("video_encoder.")}
    assert {name.rpartition("at_rate.")[2].split(".")[0] for name in fine.parameters} == {"4", "2"}
    assert {name.rpartition("at_rate.")[2].split(".")[0] for name in coarse.parameters} == {"16", "5"}
    assert (rest.lr, fine.lr, coarse.lr) == (config.optim.lr, config.projector_lr, config.coarse_projector_lr)
