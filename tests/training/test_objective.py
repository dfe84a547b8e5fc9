"""The nested objective: one backward per scale has the gradients of the summed loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from mtsk.config import ContextConfig, JointStageConfig, OptimConfig, WarmStartStageConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.ctc import Alphabet
from mtsk.scale import Scale
from mtsk.training.ctc_stage import ctc_loss, frame_loss
from mtsk.training.joint_stage import JointStage
from mtsk.training.labels import Units
from mtsk.training.objective import backward_scales
from mtsk.training.source import Encoder
from mtsk.training.warm_start import WarmStartStage
from tests.model.test_ctc import HEADS
from tests.tiny import (
    TEXTS,
    randomize_adapters,
    tiny_batch,
    tiny_config,
    tiny_llm,
    tiny_model,
    tiny_video_encoder,
    tiny_whisper,
)

ALL = tuple(Scale.parse(text) for text in ("a4", "a16", "v2", "v5", "a4v2", "a16v5"))


def _gradients(model: AvsrModel) -> dict[str, Tensor | None]:
    gradients = {name: p.grad for name, p in model.trained_parameters().items() if not name.startswith("video_encoder")}
    model.zero_grad(set_to_none=True)
    return gradients


def _assert_equal(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        other = found[name]
        if gradient is None:
            assert other is None, name
        else:
            assert other is not None, name
            assert float((other - gradient).norm()) <= tolerance * float(gradient.norm()), name


def _summed_backward(
    model: AvsrModel, texts: Sequence[str], scales: Sequence[Scale], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """The oracle: forward of every scale, then a single backward of the mean of the weighted losses."""
    encoded = model.encode(tiny_batch(texts), model.grid)
    losses = {}
    for scale in scales:
        prediction = model(encoded, [scale] * len(texts), texts)
        losses[str(scale)] = functional.cross_entropy(
            prediction.logits_BLV.float().flatten(0, 1), prediction.labels_BL.flatten(), ignore_index=-100
        )
    weights_S = torch.tensor([1.0] * len(scales) if weights is None else weights)
    torch.autograd.backward((torch.stack(list(losses.values())) * weights_S).mean())
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non-reentrant"])
@pytest.mark.parametrize("weights", [(1.0,) * 6, (1.0, 0.5, 3.0, 0.0, 1.5, 0.1)], ids=["equal", "weighted"])
@pytest.mark.parametrize("strategy", ["ms", "ss", "mss"])
def test_gradients_are_those_of_the_summed_loss(
    strategy: str, checkpointing: str | None, weights: Sequence[float], accelerator: Accelerator
) -> None:
    """With dropout on, drawn the same in both, and in training mode, without which nothing is recomputed."""
    texts = TEXTS[:3]
    model = tiny_model(strategy).train()
    torch.manual_seed(0)
    losses = _summed_backward(model, texts, ALL, weights)
    expected = _gradients(model)
    encoded = model.encode(tiny_batch(texts), model.grid)
    calls: list[None] = []
    next(iter(model.adapters.layers.values())).base.register_forward_hook(lambda *_: calls.append(None))
    if checkpointing is not None:
        options = {"use_reentrant": checkpointing == "reentrant"}
        model.llm.activation_checkpointing_enable(options)
    torch.manual_seed(0)
    figures = backward_scales(model, encoded, texts, dict(zip(ALL, weights, strict=True)), accelerator)
    _assert_equal(_gradients(model), expected)
    assert {name: figures[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    assert len(calls) == len(ALL) * (1 if checkpointing is None else 2), "activations were not recomputed"
    num_media = sum(encoded.num_tokens(row, scale) for row in range(3) for scale in ALL)
    num_text = sum(len(model.prompts.target(text)) for text in texts) * len(ALL)
    assert figures["tokens"] == num_media + num_text


@pytest.mark.parametrize("strategy", ["ss", "mss"])
def test_only_what_the_scales_use_gets_gradients(strategy: str, accelerator: Accelerator) -> None:
    model = tiny_model(strategy)
    active = [Scale.parse("a4"), Scale.parse("a4v2")]
    shared = [] if strategy == "ss" else [0]
    numbers = [list(model.grid).index(scale) + len(shared) for scale in active] + shared
    backward_scales(model, model.encode(tiny_batch(), model.grid), TEXTS[:3], dict.fromkeys(active, 1.0), accelerator)
    for layer in model.adapters.layers.values():
        for weight in (layer.down_ARI, layer.up_AOR):
            assert weight.grad is not None
            used = [i for i, gradient in enumerate(weight.grad) if gradient.any()]
            assert used == sorted(numbers)
    for name, parameter in model.projectors.named_parameters():
        uses = name.startswith(("audio.at_rate.4.", "video.at_rate.2."))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == uses, name
    frozen = [
        p for n, p in model.named_parameters() if n.startswith(("llm.", "audio_encoder.")) and not p.requires_grad
    ]
    assert frozen
    assert all(p.grad is None for p in frozen)
    assert model.video_encoder is not None
    assert all(p.grad is None for p in model.video_encoder.parameters())


@pytest.mark.parametrize("scale", ALL, ids=str)
def test_rows_that_lack_a_modality_do_not_count(scale: Scale, accelerator: Accelerator) -> None:
    """Row 0 has both, row 1 no lips, row 2 no sound; row 3 is too short for a token at coarse rates."""
    model = tiny_model("ss")
    durations_s, num_frames = (1.31, 0.735, None, 0.3), (30, None, 47, 3)
    batch = tiny_batch(TEXTS, durations_s, num_frames)
    figures = backward_scales(model, model.encode(batch, model.grid), TEXTS, {scale: 1.0}, accelerator)
    found = _gradients(model)
    missing = set()
    missing |= {2} if scale.audio else set()
    missing |= {1} if scale.video else set()
    missing |= {3} if scale.audio == 16 or scale.video == 5 else set()
    rows = [row for row in range(4) if row not in missing]
    texts = [TEXTS[row] for row in rows]
    few = tiny_batch(TEXTS, durations_s, num_frames)
    encoded = model.encode(few, model.grid).rows(rows)
    prediction = model(encoded, [scale] * len(rows), texts)
    loss = functional.cross_entropy(prediction.logits_BLV.flatten(0, 1), prediction.labels_BL.flatten())
    torch.autograd.backward(loss)
    _assert_equal(found, _gradients(model))
    assert figures[str(scale)] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_a_scale_that_no_row_reaches_is_left_out(accelerator: Accelerator) -> None:
    """Its share of the mean stays its own: the others weigh as in a batch where it counts."""
    model = tiny_model("ss")
    scales = [Scale.parse("a4"), Scale.parse("v2")]
    encoded = model.encode(tiny_batch(num_frames=(None, None, None)), model.grid)
    figures = backward_scales(model, encoded, TEXTS[:3], dict.fromkeys(scales, 1.0), accelerator)
    assert set(figures) == {"a4", "tokens"}
    both = _gradients(model)
    backward_scales(model, encoded, TEXTS[:3], {scales[0]: 1.0}, accelerator)
    alone = _gradients(model)
    _assert_equal(both, {name: None if g is None else g / 2 for name, g in alone.items()})
    figures = backward_scales(model, encoded, TEXTS[:3], {scales[1]: 1.0}, accelerator)
    assert figures == {"tokens": 0.0}
    assert all(gradient is None for gradient in _gradients(model).values())


def test_the_joint_stage_weighs_by_scale_and_task(accelerator: Accelerator) -> None:
    """The weights of the configuration reach the gradients; the losses that are shown stay unweighted."""
    optim = OptimConfig(1, 1e-3)
    weights = {"a16v5": 4.0, "av": 0.5, "v": 0.25, "v2": 0.0}
    config = JointStageConfig(optim, weights=weights)
    assert [config.weight(scale) for scale in ALL] == [1.0, 1.0, 0.0, 0.25, 0.5, 2.0]
    batch, source = tiny_batch(), _Source(accelerator)
    found, losses = [], []
    for each in (config, JointStageConfig(optim)):
        model = tiny_model("ss")
        stage = JointStage(
            each, model, source=source, encoder=Encoder(model), seed=1, validator=lambda _: {}  # type: ignore[arg-type]
        )  # fmt: skip
        torch.manual_seed(0)
        losses.append(stage.backward(batch, 0))
        found.append(_gradients(model))
    assert losses[0] == losses[1]
    layers = [name for name in found[0] if name.endswith("_AOR")]
    assert layers
    for name in layers:
        weighted_AOR, plain_AOR = found[0][name], found[1][name]
        assert weighted_AOR is not None
        assert plain_AOR is not None
        for scale, own, plain in zip(sorted(ALL), weighted_AOR, plain_AOR, strict=True):
            assert float((own - config.weight(scale) * plain).norm()) <= 1e-6 * float(plain.norm()), (name, scale)


def test_the_joint_stage_goes_on_spelling(accelerator: Accelerator) -> None:
    """The layers of context, read once, get the gradients of all scales and of the character heads together."""
    texts, batch, model = list(TEXTS[:3]), tiny_batch(), _spelling_model()
    stage = JointStage(
        JointStageConfig(OptimConfig(1, 1e-3), character_weight=0.5), model, source=_Source(accelerator),  # type: ignore[arg-type]
        encoder=Encoder(model), seed=1, validator=lambda _: {},
    )  # fmt: skip
    figures = stage.backward(batch, 0)
    assert {"a4", "a16v5", "audio_ctc", "audio_frame", "video_ctc", "video_frame"} < set(figures)
    found = _gradients(model)
    learned = {name for group in stage.groups() for name in group.parameters}
    assert {name for name, gradient in found.items() if gradient is not None} == learned

    _summed_backward(model, texts, list(model.grid))
    for name, logits in model.characters(model.encode(batch, model.grid)).items():
        alphabet = Alphabet(HEADS.alphabet)
        loss = ctc_loss(logits, texts, alphabet) + 0.2 * frame_loss(logits, batch.words, alphabet)
        torch.autograd.backward(0.5 * loss)
        assert figures[f"{name}_ctc"] == pytest.approx(float(ctc_loss(logits, texts, alphabet).detach()), rel=1e-5)
    _assert_equal(found, _gradients(model), tolerance=1e-5)


def test_what_spelled_before_learns_at_its_own_rate_in_the_warm_start(accelerator: Accelerator) -> None:
    model = _spelling_model()
    units = Units.of_texts(TEXTS, model.prompts)
    for context_lr, expected in ((None, 1e-3), (2e-4, 2e-4)):
        config = WarmStartStageConfig(OptimConfig(1, 1e-3), character_weight=0.5, context_lr=context_lr)
        stage = WarmStartStage(
            config, model, units, source=_Source(accelerator), encoder=Encoder(model), dev=lambda: iter(())  # type: ignore[arg-type]
        )  # fmt: skip
        lrs = {name: group.lr for group in stage.groups() for name in group.parameters}
        assert lrs.keys() == dict(stage.modules.named_parameters()).keys()
        spells = {name for name in lrs if name.startswith(("ctc.", "projectors.audio.context."))}
        assert {lrs[name] for name in spells} == {expected}
        assert {lrs[name] for name in lrs.keys() - spells if not name.endswith("logit_scale")} == {1e-3}


def _spelling_model() -> AvsrModel:
    """With layers of context and character heads, and nothing that is drawn in training."""
    plain = tiny_config("ms", scales=("a4", "a16v5"))
    context = ContextConfig(num_layers=1, num_heads=4, hidden=24, kernel=5, dropout=0.0)
    config = replace(
        plain,
        projector=replace(plain.projector, audio_context=context, input_dropout=0.0),
        lora=replace(plain.lora, dropout=0.0),
        ctc=replace(HEADS, dropout=0.0),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AvsrModel(config, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), tiny_video_encoder())
        randomize_adapters(model)
    return model


class _Source:
    """Of a batch source only what the backward needs."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
