"""The stage that teaches the LLM to read: what it is shown, that it learns, what it leaves alone, and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mtsk.config import OptimConfig, ReadingStageConfig, TrainConfig
from mtsk.model.avsr import AvsrModel
from mtsk.training.optim import build_optimizer
from mtsk.training.reading_stage import ReadingStage, silence_embedding
from mtsk.training.run import TrainingData, train
from mtsk.training.trainer import Run
from mtsk.types import Batch, Word
from tests.tiny import tiny_batch, tiny_model
from tests.training.prepared import tiny_train_config


class _Source:
    """Just the accelerator of a `BatchSource`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator


def _stage(model: AvsrModel, accelerator: Accelerator, *, noise: float = 0.0, num_steps: int = 60) -> ReadingStage:
    config = ReadingStageConfig(OptimConfig(num_steps=num_steps, lr=2e-2), noise=noise)
    batch = _timed_batch()
    return ReadingStage(config, model, source=_Source(accelerator), seed=1, dev=lambda: iter([batch]))  # type: ignore[arg-type]


def _timed_batch() -> Batch:
    batch = tiny_batch()
    words = []
    for text in batch.texts:
        words.append(tuple(Word(word, 0.2 * i, 0.2 * i + 0.16) for i, word in enumerate(text.split())))
    return replace(batch, words=tuple(words))


def test_windows_hold_what_is_said_in_them(accelerator: Accelerator) -> None:
    model = tiny_model()
    stage = _stage(model, accelerator)
    (token,) = model.prompts.word_ids("bin")[:1]
    num_tokens = len(model.prompts.word_ids("bin"))
    written_KE = stage._written((Word("bin", 0.08, 0.08 + 0.16 * num_tokens),), "audio", 4, 0.0)
    silence_E = silence_embedding(model)
    torch.testing.assert_close(written_KE[0], silence_E)
    torch.testing.assert_close(written_KE[1], model.embedding_VE[token].float())
    torch.testing.assert_close(written_KE[2], model.embedding_VE[token].float())
    torch.testing.assert_close(written_KE[-1], silence_E)
    half_KE = stage._written((Word("bin", 0.0, 0.04 * num_tokens),), "audio", 4, 0.0)
    if num_tokens == 1:
        torch.testing.assert_close(half_KE[0], (silence_E + model.embedding_VE[token].float()) / 2)


def test_it_learns_and_leaves_the_rest_alone(accelerator: Accelerator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_model(adapted=False, scales=("a4", "v2", "a4v2"))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        stage, batch = _stage(model, accelerator), _timed_batch()
        optimizer, first = build_optimizer(stage.groups(), stage.optim), stage.validate()
        for step in range(60):
            figures = stage.backward(batch, step)
            assert len(figures) == 2  # one scale, and tokens
            optimizer.step()
            optimizer.zero_grad()
        last = stage.validate()
    assert set(first) == {"a4", "v2", "a4v2"}
    assert all(last[scale] < 0.7 * first[scale] for scale in first)
    adapters = {id(weight) for weight in model.adapters.parameters()}
    trained = {name for name, weight in model.named_parameters() if id(weight) in adapters} | {"fusion.delimiters_4E"}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= trained


def test_rows_without_word_times_are_left_out(accelerator: Accelerator) -> None:
    model, batch = tiny_model(), _timed_batch()
    stage = _stage(model, accelerator)
    none = replace(batch, words=((),) * len(batch))
    assert stage.backward(none, 0) == {"tokens": 0.0}
    assert all(parameter.grad is None for parameter in model.parameters())


def _once(config: TrainConfig, data: TrainingData, out_dir: Path, stop_after: int | None) -> tuple[bool, AvsrModel]:
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(out_dir, Accelerator(cpu=True), config.seed, config.save_every, stop_after)
    torch.manual_seed(config.seed)
    model = tiny_model("mss", adapted=False)
    return train(config, model, data, run, lambda _: {"wer": 1.0}), model


def test_it_resumes_to_the_bit(data: TrainingData, tmp_path: Path) -> None:
    plain = tiny_train_config(num_steps=4)
    warm = replace(plain.warm_start, classes="vocabulary", embedding_weight=1.0) if plain.warm_start else None
    config = replace(plain, warm_start=warm, reading=ReadingStageConfig(OptimConfig(4, 5e-3, batch_s=3.0)))
    complete, model = _once(config, data, tmp_path / "whole", None)
    assert complete
    assert (tmp_path / "whole" / "stages" / "reading.safetensors").exists()
    for _ in range(16):
        if _once(config, data, tmp_path / "parts", 2)[0]:
            break
    complete, other = _once(config, data, tmp_path / "parts", None)
    assert complete
    state = other.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])] == []


def test_noise_has_limits() -> None:
    with pytest.raises(ValueError, match=r"noise is -0\.1; allowed is 0 or more"):
        ReadingStageConfig(OptimConfig(1, 1e-3), noise=-0.1)
