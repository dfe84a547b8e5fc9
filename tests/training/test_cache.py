"""Cached features: a function of the example's key alone, shared between runs, and never of another configuration."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from lhotse import CutSet
from lhotse.utils import fastcopy
from torch import Tensor

from mtsk.config import AugmentConfig, JointStageConfig, OptimConfig, TrainConfig, WarmStartStageConfig
from mtsk.data.collate import collate
from mtsk.data.dataset import UtteranceDataset
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.training import run as run_module
from mtsk.training import source as source_module
from mtsk.training.joint_stage import JointStage
from mtsk.training.labels import Units
from mtsk.training.run import TrainingData, train
from mtsk.training.source import BatchSource, CachedExamples, Encoder, FeatureCache
from mtsk.training.trainer import Run
from mtsk.training.warm_start import WarmStartStage
from mtsk.types import Batch, Features
from tests.tiny import tiny_batch, tiny_config, tiny_model
from tests.training.prepared import EvenAligner, tiny_train_config, write_data

CHANGES = AugmentConfig(speed=0.2, shift_s=0.3)


def _examples(data: TrainingData, changes: AugmentConfig | None = CHANGES) -> UtteranceDataset:
    return UtteranceDataset(data.train, seed=7, changes=changes, babble=data.babble)


def _row(features: Features | None, row: int) -> Tensor:
    assert features is not None
    return features.values_BTD[row, : int(features.lengths_B[row])]


def test_features_are_a_function_of_the_key_alone(data: TrainingData, tmp_path: Path) -> None:
    """To the bit, whatever batch an example is in when it is first seen, and whatever was seen before."""
    model, examples = tiny_model(), _examples(data)
    ids = examples.ids
    orders: dict[str, list[Sequence[str]]] = {
        "a": [ids[:3], ids[3:]],
        "b": [[ids[6], ids[0]], ids[1:6]],
        "c": [[id] for id in reversed(ids)],
    }
    for name, batches in orders.items():
        encoder = Encoder(model, FeatureCache(tmp_path / name))
        for view in (1, 0):
            for batch in batches:
                encoder(collate([examples[id, view] for id in batch]))
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in orders}
    assert files["a"] == files["b"] == files["c"]
    assert len(files["a"]) == 2 * len(ids)
    for id in ids:
        assert files["a"][f"{id}.0.safetensors"] != files["a"][f"{id}.1.safetensors"]


@torch.no_grad()
def test_a_miss_and_a_hit_give_the_same_features(data: TrainingData, tmp_path: Path) -> None:
    model, examples = tiny_model(), _examples(data)
    encoder = Encoder(model, FeatureCache(tmp_path))
    batch = collate([examples[id, 0] for id in examples.ids[:4]])
    missed, hit = encoder(batch), encoder(batch)
    alone = [model.encode(batch.row(row), model.grid) for row in range(4)]
    for row in range(4):
        for name in ("audio", "video"):
            one, other, exact = (_row(getattr(e, name), r) for e, r in ((missed, row), (hit, row), (alone[row], 0)))
            assert torch.equal(one, other)
            assert torch.equal(one, exact.to(torch.bfloat16).float())


def test_hits_read_no_media(tmp_path: Path) -> None:
    """The recordings may be gone: text, word times and features are all there."""
    data = TrainingData.load(write_data(tmp_path / "data"))
    model, cache = tiny_model(), FeatureCache(tmp_path / "features")
    examples = CachedExamples(_examples(data), cache)
    keys = [(id, view) for id in data.train.ids for view in (0, 1)]
    misses = [examples[key] for key in keys]
    assert all(example.waveform is not None and example.mouth is not None for example in misses)
    first = Encoder(model, cache)(collate(misses))
    for folder in ("audio", "mouth", "noise"):
        shutil.rmtree(tmp_path / "data" / folder)
    with pytest.raises((ValueError, OSError)):
        _examples(data)[keys[0]]
    hits = [examples[key] for key in keys]
    assert all(example.waveform is None and example.mouth is None for example in hits)
    for miss, hit in zip(misses, hits, strict=True):
        assert hit == replace(miss, waveform=None, mouth=None)  # id, text, word times and view
    again = Encoder(model, cache)(collate(hits))
    for one, other in ((first.audio, again.audio), (first.video, again.video)):
        assert one is not None
        assert other is not None
        assert torch.equal(one.values_BTD, other.values_BTD)
        assert torch.equal(one.lengths_B, other.lengths_B)


def test_words_follow_the_augmentation(data: TrainingData, tmp_path: Path) -> None:
    """On a hit they are those of the changed example, not those of the recording."""
    cache, moved = FeatureCache(tmp_path), 0
    examples, plain = CachedExamples(_examples(data), cache), _examples(data, None)
    for id in data.train.ids:
        miss = examples[id, 0]
        Encoder(tiny_model(), cache)(collate([miss]))
        hit = examples[id, 0]
        assert hit.words == miss.words
        assert [word.text for word in hit.words] == [word.text for word in plain[id, 0].words]
        moved += hit.words != plain[id, 0].words
    assert moved > len(data.train) // 2


def test_an_utterance_without_words_is_cached(data: TrainingData, tmp_path: Path) -> None:
    bare = CutSet([fastcopy(cut, supervisions=[fastcopy(cut.supervisions[0], alignment=None)]) for cut in data.train])
    examples = CachedExamples(_examples(replace(data, train=bare)), FeatureCache(tmp_path))
    id = data.train[0].id
    Encoder(tiny_model(), FeatureCache(tmp_path))(collate([examples[id, 0]]))
    assert examples[id, 0].words == ()


@pytest.mark.parametrize("stage_name", ["warm_start", "joint"])
def test_losses_are_equal_on_hits_and_misses(
    stage_name: str, data: TrainingData, accelerator: Accelerator, tmp_path: Path
) -> None:
    losses: list[list[dict[str, float]]] = []
    for _ in range(2):
        model, cache = tiny_model(), FeatureCache(tmp_path)
        dataset = CachedExamples(_examples(data), cache)
        source = BatchSource(data.train, dataset, 3.0, 7, 1, 0, accelerator)
        optim, encoder = OptimConfig(1, 1e-3), Encoder(model, cache)
        stage: WarmStartStage | JointStage
        if stage_name == "warm_start":
            units = Units.of_texts((cut.supervisions[0].text for cut in data.train), model.prompts)
            stage = WarmStartStage(
                WarmStartStageConfig(optim), model, units, source=source, encoder=encoder, dev=data.dev_batches
            )
        else:
            stage = JointStage(
                JointStageConfig(optim), model, source=source, encoder=encoder, seed=1, validator=lambda _: {}
            )
        losses.append([])
        for step, batch in enumerate(islice(stage.batches(0), 4)):
            torch.manual_seed(zlib.crc32(f"dropout {step}".encode()))
            losses[-1].append(stage.backward(batch, step))
    assert losses[0] == losses[1]
    assert len(losses[0][0]) > 4


# Which runs share.


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The utterances that any model encodes for training, one after the other."""
    seen: list[str] = []
    encode = AvsrModel.encode

    def recorded(model: AvsrModel, batch: Batch, scales: object) -> Encoded:
        seen.extend(id for id in batch.ids if id.startswith("train"))
        return encode(model, batch, scales)  # type: ignore[arg-type]

    monkeypatch.setattr(AvsrModel, "encode", recorded)
    monkeypatch.setattr(run_module, "WhisperAligner", EvenAligner)
    return seen


def _train(config: TrainConfig, data: TrainingData, folder: Path, accelerator: Accelerator, seed: int = 0) -> None:
    model = tiny_model(config.model.lora.strategy, scales=config.model.scales, seed=seed)
    folder.mkdir()
    run = Run(folder, accelerator, config.seed, 100, features_dir=folder.parent / "features")
    assert train(config, model, data, run, lambda _: {})


def _config(strategy: str = "ms", scales: tuple[str, ...] = ("a4", "v2", "a4v2")) -> TrainConfig:
    config = tiny_train_config(tiny_config(strategy, scales=scales), num_steps=3, cache_views=1)
    return replace(config, video_encoder=None, lips_from="a model")


def _folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "features").iterdir() if path.is_dir()}


def test_runs_share_features(data: TrainingData, accelerator: Accelerator, tmp_path: Path, encoded: list[str]) -> None:
    """Another strategy, other rates and another length of training change nothing of the features."""
    _train(_config(), data, tmp_path / "one", accelerator)
    assert sorted(encoded) == sorted(data.train.ids)
    encoded.clear()
    _train(_config("mss"), data, tmp_path / "two", accelerator)
    _train(_config(scales=("a8", "a16v5")), data, tmp_path / "three", accelerator)
    config = _config()
    longer = replace(config, joint=replace(config.joint, optim=replace(config.joint.optim, num_steps=5)))
    _train(longer, data, tmp_path / "four", accelerator)
    assert encoded == []
    assert len(_folders(tmp_path)) == 1
    assert not (tmp_path / "one" / "features").exists()


def test_what_the_features_depend_on_has_another_folder(
    data: TrainingData, accelerator: Accelerator, tmp_path: Path, encoded: list[str]
) -> None:
    config = _config()
    _train(config, data, tmp_path / "base", accelerator)
    louder = AugmentConfig(gain_db=1.0)
    assert config.warm_start is not None
    others = {
        "augmentation": replace(
            config,
            joint=replace(config.joint, augment=louder),
            warm_start=replace(config.warm_start, augment=louder),
        ),
        "seed": replace(config, seed=4),
        "modalities": _config(scales=("a4",)),
        "no words": replace(config, warm_start=None),
    }
    for number, (name, other) in enumerate(others.items(), start=2):
        encoded.clear()
        _train(other, data, tmp_path / name, accelerator)
        assert encoded, name
        assert len(encoded) == len(set(encoded)), name
        assert len(_folders(tmp_path)) == number, name
    encoded.clear()
    _train(config, data, tmp_path / "other lips", accelerator, seed=1)
    _train(config, replace(data, digest="other"), tmp_path / "other data", accelerator)
    assert sorted(encoded) == sorted(2 * list(data.train.ids))
    assert len(_folders(tmp_path)) == len(others) + 3


def test_runs_with_and_without_alignment_do_not_share(
    accelerator: Accelerator, tmp_path: Path, encoded: list[str]
) -> None:
    """Of a corpus without word times: a joint stage alone needs none, and caches examples that have none."""
    data = TrainingData.load(write_data(tmp_path / "data", gaps=True))
    _train(replace(_config(), warm_start=None), data, tmp_path / "bare", accelerator)
    _train(_config(), data, tmp_path / "aligned", accelerator)
    _train(replace(_config(), warm_start=None), data, tmp_path / "bare again", accelerator)
    assert len(_folders(tmp_path)) == 2


def test_runs_share_word_times_of_the_same_data(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "WhisperAligner", EvenAligner)
    monkeypatch.setattr(EvenAligner, "num_aligned", 0)
    monkeypatch.setattr(run_module, "_stages", lambda *_: iter(()))
    data = TrainingData.load(write_data(tmp_path / "data", gaps=True))
    for folder, digest, num_aligned in (("one", "a", 1), ("two", "a", 1), ("other data", "b", 2)):
        _train(_config(), replace(data, digest=digest), tmp_path / folder, accelerator)
        assert EvenAligner.num_aligned == num_aligned
    names = {path.name for path in (tmp_path / "features").iterdir()}
    assert names == {"word_times_a.jsonl", "word_times_b.jsonl"}


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, batch = FeatureCache(tmp_path), tiny_batch().row(0)
    encoder = Encoder(tiny_model(), cache)

    def broken(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(source_module, "save_file", broken)
        with pytest.raises(KeyboardInterrupt):
            encoder(batch)
    assert not cache.path(batch.ids[0], batch.views[0]).exists()
    encoder(batch)
    assert cache.path(batch.ids[0], batch.views[0]).exists()
