"""The stage of the character heads: labels, resuming to the bit, and a head for a model that was trained before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mtsk.checkpoints.store import load_model, read_record, save_model
from mtsk.commands import train as command
from mtsk.config import ContextConfig, CtcStageConfig, OptimConfig, TrainConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.ctc import STEP_S, Alphabet
from mtsk.training.ctc_stage import CtcStage, ctc_loss, frame_loss, step_shares
from mtsk.training.optim import build_optimizer
from mtsk.training.run import TrainingData, train
from mtsk.training.trainer import Run
from mtsk.types import Features, Word
from tests.model.test_ctc import HEADS
from tests.tiny import save_tiny_bases, tiny_batch, tiny_llm, tiny_model, tiny_video_encoder, tiny_whisper
from tests.training.prepared import tiny_train_config

ALPHABET = Alphabet(" abc")
CONTEXT = ContextConfig(num_layers=1, num_heads=4, hidden=24, kernel=5)
NUM_STEPS = 5


def _config(num_steps: int = NUM_STEPS, cache_views: int = 0) -> TrainConfig:
    plain = tiny_train_config(num_steps=num_steps, cache_views=cache_views)
    stage = CtcStageConfig(OptimConfig(num_steps=num_steps, lr=5e-3, batch_s=3.0))
    return replace(plain, model=replace(plain.model, ctc=HEADS), ctc=stage)


def _once(config: TrainConfig, data: TrainingData, out_dir: Path, stop_after: int | None) -> tuple[bool, AvsrModel]:
    """One life of a process: everything is made anew, but what is on disk."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(out_dir, Accelerator(cpu=True), config.seed, config.save_every, stop_after)
    torch.manual_seed(config.seed)
    model = tiny_model("mss", adapted=False)
    torch.manual_seed(config.seed)
    model.add_ctc(HEADS)
    return train(config, model, data, run, lambda _: {"wer": 1.0}), model


# Labels.


def test_shares_of_steps() -> None:
    """A word's time is split over its characters, with a blank between equal ones; a pause is a space."""
    words = [Word("ab", 1 * STEP_S, 3 * STEP_S), Word("cc", 5 * STEP_S, 8 * STEP_S), Word("?", 0.9, 1.0)]
    blank, space, a, b, c = range(5)
    expected = np.zeros((10, 5))
    for step, number in enumerate([blank, a, b, space, space, c, blank, c, blank, blank]):
        expected[step, number] = 1.0
    np.testing.assert_allclose(step_shares(words, ALPHABET, 10), expected, atol=1e-6)


def test_a_space_lasts_a_step_and_windows_sum_to_one() -> None:
    words = [Word("a", 0.0, 2.5 * STEP_S), Word("b", 2.5 * STEP_S, 4.25 * STEP_S)]
    shares = step_shares(words, ALPHABET, 6)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(shares[2], [0, 0.5, 0.25, 0.25, 0], atol=1e-6)  # 0.5 of each, over 1 + 1 in all
    np.testing.assert_allclose(shares[4], [0.75, 0, 0, 0.25, 0], atol=1e-6)
    assert step_shares([Word("!", 0.0, 1.0)], ALPHABET, 3)[:, 0].tolist() == [1.0] * 3


def test_losses_of_rows_without_times_text_or_steps() -> None:
    logits = Features(torch.randn(3, 6, 5, requires_grad=True), torch.tensor([6, 2, 0]))
    assert float(frame_loss(logits, [(), (), ()], ALPHABET).detach()) == 0.0
    loss = ctc_loss(logits, ["ab", "aa", "c"], ALPHABET)  # the second needs three steps, the third has none
    alone = Features(logits.values_BTD[:1], logits.lengths_B[:1])
    torch.testing.assert_close(loss * 5, ctc_loss(alone, ["ab"], ALPHABET) * 2)
    loss.backward()  # type: ignore[no-untyped-call]
    empty = Features(torch.zeros(2, 0, 5), torch.tensor([0, 0]))
    assert float(ctc_loss(empty, ["a", ""], ALPHABET)) == 0.0
    assert float(frame_loss(empty, [(Word("a", 0.0, 0.1),), ()], ALPHABET)) == 0.0


# The stage.


@pytest.mark.parametrize("cache_views", [0, 2])
def test_it_resumes_to_the_bit(data: TrainingData, tmp_path: Path, cache_views: int) -> None:
    config = _config(cache_views=cache_views)
    complete, model = _once(config, data, tmp_path / "whole", None)
    assert complete
    for _ in range(16):
        if _once(config, data, tmp_path / "parts", 2)[0]:
            break
    complete, other = _once(config, data, tmp_path / "parts", None)
    assert complete
    state, its_state = model.state_dict(), other.state_dict()
    assert [name for name, value in state.items() if not torch.equal(value, its_state[name])] == []
    fresh = _once(config, data, tmp_path / "new", 1)[1]  # ends within the first stage
    moved = [n for n, p in model.ctc.named_parameters() if not torch.equal(p, fresh.ctc.get_parameter(n))]
    assert set(moved) == {name for name, _ in model.ctc.named_parameters()}


def test_the_other_stages_do_not_know_of_it(data: TrainingData, tmp_path: Path) -> None:
    """What they train is the same without heads, to the bit."""
    config = _config(num_steps=2)
    _, model = _once(config, data, tmp_path / "with", None)
    without = replace(config, model=replace(config.model, ctc=None), ctc=None)
    _, plain = _once(without, data, tmp_path / "without", None)
    state = plain.state_dict()
    others = {name: value for name, value in model.state_dict().items() if not name.startswith("ctc.")}
    assert others
    assert all(torch.equal(value, state[name]) for name, value in others.items())


class _Source:
    """Just the accelerator of a `BatchSource`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator


def test_it_learns_a_batch(accelerator: Accelerator) -> None:
    model, batch = tiny_model(), tiny_batch()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_ctc(replace(HEADS, dropout=0.0))
        config = CtcStageConfig(OptimConfig(num_steps=80, lr=1e-2))
        source, encoded = _Source(accelerator), model.encode(batch, model.grid)
        stage = CtcStage(
            "ctc",
            config,
            HEADS,
            model,
            source=source,  # type: ignore[arg-type]
            encoder=lambda _: encoded,  # type: ignore[arg-type]
            dev=lambda: iter([batch]),
        )
        optimizer = build_optimizer(stage.groups(), stage.optim)
        before, figures = stage.validate(), []
        model.train()  # as a process that does not validate leaves it
        for step in range(80):
            figures.append(stage.backward(batch, step))
            optimizer.step()
            optimizer.zero_grad()
    assert model.ctc.training
    assert not model.projectors.training
    for name in ("audio_frame", "audio_ctc", "video_frame", "video_ctc"):
        assert figures[-1][name] < 0.8 * figures[0][name], name
    assert set(before) == {"audio_cer", "video_cer"}
    assert all(value < before[name] for name, value in stage.validate().items())


def test_spelling_trains_the_layers_of_context_too(data: TrainingData, tmp_path: Path) -> None:
    """And nothing else: projectors and adapters are those of a run that ends before it."""
    plain = _config()
    projector = replace(plain.model.projector, audio_context=CONTEXT)
    config = replace(plain, model=replace(plain.model, projector=projector), spelling=plain.ctc)
    states = [_spelled(config, data, tmp_path / str(steps), steps) for steps in (1, 3)]
    moved = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    trained = {name for name in states[0] if name.startswith(("ctc.", "projectors.audio.context.layers."))}
    assert moved == trained
    assert (tmp_path / "3" / "stages" / "spelling.safetensors").exists()


def _spelled(config: TrainConfig, data: TrainingData, out_dir: Path, num_steps: int) -> dict[str, torch.Tensor]:
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(out_dir, Accelerator(cpu=True), config.seed, config.save_every, num_steps)
    torch.manual_seed(config.seed)
    model = AvsrModel(config.model, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), tiny_video_encoder())
    assert not train(replace(config, video_encoder=None, lips_from="elsewhere"), model, data, run, lambda _: {})
    return model.state_dict()


def test_spelling_needs_layers_of_context() -> None:
    plain = _config()
    with pytest.raises(ValueError, match=r"spelling .* null without model.ctc and model.projector.audio_context"):
        replace(plain, spelling=plain.ctc)


# Onto a trained model.


def test_a_trained_model_gets_heads_and_stays_what_it_was(data_dir: Path, tmp_path: Path) -> None:
    sources = save_tiny_bases(tmp_path)
    trained = tiny_model("ms", sources=sources)
    save_model(trained, tmp_path / "trained", training={"recipe": "tiny"})
    config = _config(num_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "get_recipe", lambda _: config)
        assert command.run("tiny", data_dir, tmp_path / "run", False, None, str(tmp_path / "trained")) == 0
        with pytest.raises(ValueError, match="holds a run already"):
            command.run("tiny", data_dir, tmp_path / "run", False, None, str(tmp_path / "trained"))
        plain = replace(config, model=replace(config.model, ctc=None), ctc=None)
        patch.setattr(command, "get_recipe", lambda _: plain)
        with pytest.raises(ValueError, match="a recipe with the stage `ctc`"):
            command.run("tiny", data_dir, tmp_path / "other", False, None, str(tmp_path / "trained"))
    before, after = load_model(tmp_path / "trained"), load_model(tmp_path / "run" / "model")
    assert after.config == replace(before.config, ctc=HEADS)
    state = after.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    assert set(state) > set(before.state_dict())
    record = read_record(tmp_path / "run" / "model").training
    assert record["recipe"] == "tiny"
    assert record["ctc"]["optim"]["num_steps"] == 2
    assert [path.name for path in (tmp_path / "run" / "stages").iterdir()] == ["ctc.safetensors"]
