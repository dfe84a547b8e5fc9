"""Adapters of the lip encoder, trained with those of the LLM: one backward through the encoder for all scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from mtsk.config import AvHubertConfig, JointStageConfig, OptimConfig, TrainConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avhubert import AvHubertEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.scale import Scale
from mtsk.training.joint_stage import JointStage
from mtsk.training.objective import backward_scales
from tests.tiny import TEXTS, randomize_adapters, tiny_batch, tiny_config, tiny_llm, tiny_whisper
from tests.tiny_avhubert import TINY

SCALES = tuple(map(Scale.parse, ("a4", "v2", "v5", "a4v2")))
CONFIG = replace(tiny_config(scales=SCALES), video=AvHubertConfig("tiny-lips", lora_rank=4, lora_alpha=8.0))


@pytest.fixture(scope="module")
def model() -> AvsrModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lips = AvHubertEncoder(TINY)
        lips.add_adapters(4, 8.0)
        made = AvsrModel(CONFIG, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), lips)
        randomize_adapters(made)
        for name, weight in lips.trained_parameters().items():
            torch.nn.init.normal_(weight.data, std=0.1 if "up" in name else 0.3)
    return made


def _gradients(model: AvsrModel) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def test_gradients_are_those_of_the_summed_loss(model: AvsrModel, accelerator: Accelerator) -> None:
    batch, texts = tiny_batch(), TEXTS[:3]
    encoded = model.encode(batch, model.grid)
    losses = []
    for scale in SCALES:
        prediction = model(encoded, [scale] * 3, texts)
        losses.append(functional.cross_entropy(prediction.logits_BLV.flatten(0, 1), prediction.labels_BL.flatten()))
    torch.autograd.backward(torch.stack(losses).mean())
    expected = _gradients(model)
    calls: list[None] = []
    assert isinstance(model.video_encoder, AvHubertEncoder)
    hook = model.video_encoder.register_full_backward_hook(lambda *_: calls.append(None))
    backward_scales(model, model.encode(batch, model.grid), texts, dict.fromkeys(SCALES, 1.0), accelerator)
    hook.remove()
    found = _gradients(model)
    lips = {f"video_encoder.{name}" for name in model.video_encoder.trained_parameters()}
    assert len(lips) == 8
    assert lips <= found.keys() == expected.keys()
    assert not any(name.startswith("audio_encoder.") for name in found)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name
        assert gradient.any(), name


def test_scales_without_lips_leave_them_alone(model: AvsrModel, accelerator: Accelerator) -> None:
    encoded = model.encode(tiny_batch(), model.grid)
    backward_scales(model, encoded, TEXTS[:3], {Scale(audio=4): 1.0}, accelerator)
    assert not any(name.startswith("video_encoder.") for name in _gradients(model))


def test_features_carry_gradients_only_where_they_are_wanted(model: AvsrModel) -> None:
    encoded = model.encode(tiny_batch(), model.grid)
    assert encoded.video is not None
    assert encoded.audio is not None
    assert encoded.video.values_BTD.requires_grad
    assert not encoded.audio.values_BTD.requires_grad
    with torch.no_grad():
        without = model.encode(tiny_batch(), model.grid).video
    assert without is not None
    assert not without.values_BTD.requires_grad


def test_the_joint_stage_trains_them(model: AvsrModel) -> None:
    nothing: Any = None
    stage = JointStage(
        JointStageConfig(OptimConfig(2, 1e-3)),
        model, source=nothing, encoder=nothing, seed=0, validator=nothing,
    )  # fmt: skip
    assert isinstance(model.video_encoder, AvHubertEncoder)
    trained = {name for group in stage.groups() for name in group.parameters}
    assert {name for name in trained if name.startswith("video_encoder.")} == {
        f"video_encoder.{name}" for name in model.video_encoder.trained_parameters()
    }
    assert trained == model.trained_parameters().keys()


def test_their_features_are_not_cached() -> None:
    joint = JointStageConfig(OptimConfig(2, 1e-3))
    with pytest.raises(ValueError, match="cache_views is 2; allowed is 0 where the lip encoder is trained"):
        TrainConfig(CONFIG, joint, cache_views=2)
    frozen = replace(CONFIG, video=AvHubertConfig("tiny-lips"))
    assert TrainConfig(frozen, joint, cache_views=2).cache_views == 2
