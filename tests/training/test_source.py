"""Batches are a pure function of the step; cached features are those of the encoders, and are made once."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mtsk.config import AugmentConfig, JointStageConfig, OptimConfig, WarmStartStageConfig
from mtsk.data.dataset import UtteranceDataset
from mtsk.data.sampling import num_steps_per_epoch
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.training.joint_stage import JointStage
from mtsk.training.labels import Units
from mtsk.training.run import TrainingData
from mtsk.training.source import BatchSource, Encoder, FeatureCache
from mtsk.training.warm_start import WarmStartStage
from mtsk.types import Batch
from tests.tiny import tiny_batch, tiny_model

BATCH_S = 3.0


def _source(data: TrainingData, accelerator: Accelerator, *, cache_views: int = 0, num_workers: int = 0) -> BatchSource:
    dataset = UtteranceDataset(data.train, seed=7, changes=AugmentConfig(), babble=data.babble)
    return BatchSource(data.train, dataset, BATCH_S, 7, cache_views, num_workers, accelerator)


def _assert_same(one: Batch, other: Batch) -> None:
    assert (one.ids, one.views, one.texts, one.words) == (other.ids, other.views, other.texts, other.words)
    for name in ("waveform_BN", "num_samples_B", "mouth_BTHW", "num_frames_B"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_batches_do_not_depend_on_workers_or_where_one_starts(data: TrainingData, accelerator: Accelerator) -> None:
    whole = list(islice(_source(data, accelerator).from_step(0), 6))
    assert len({batch.ids for batch in whole}) > 1
    assert any(batch.words[0] for batch in whole)
    torch.manual_seed(99)
    for num_workers in (0, 1):
        later = list(islice(_source(data, accelerator, num_workers=num_workers).from_step(2), 4))
        for one, other in zip(whole[2:], later, strict=True):
            _assert_same(one, other)


class _Counting(Encoder):
    """Counts rows that the encoders see."""

    def __init__(self, model: AvsrModel, folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(model, None if folder is None else FeatureCache(folder))
        self.num_encoded = 0
        encode = model.encode

        def counted(batch: Batch, scales: object) -> Encoded:
            self.num_encoded += len(batch)
            return encode(batch, scales)  # type: ignore[arg-type]

        monkeypatch.setattr(model, "encode", counted)


def test_each_view_is_encoded_once(
    data: TrainingData, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _Counting(tiny_model(), tmp_path / "features", monkeypatch)
    source = _source(data, accelerator, cache_views=2)
    num_steps = num_steps_per_epoch(data.train, batch_s=BATCH_S)
    counts, features = [], []
    for step, batch in zip(range(5 * num_steps), source.from_step(0), strict=False):
        features.append((batch, encoder(batch)))
        if (step + 1) % num_steps == 0:
            counts.append(encoder.num_encoded)
    num_cuts = len(data.train)
    assert counts == [num_cuts, 2 * num_cuts, 2 * num_cuts, 2 * num_cuts, 2 * num_cuts]
    assert len(list((tmp_path / "features").iterdir())) == 2 * num_cuts
    for batch, encoded in features[-num_steps:]:  # the fifth epoch shows the first view
        exact = tiny_model().encode(batch, tiny_model().grid)
        for found, expected in ((encoded.audio, exact.audio), (encoded.video, exact.video)):
            assert found is not None
            assert expected is not None
            assert torch.equal(found.lengths_B, expected.lengths_B)
            torch.testing.assert_close(found.values_BTD, expected.values_BTD, rtol=2**-8, atol=1e-5)


def test_rows_without_a_modality_are_cached_too(tmp_path: Path) -> None:
    model = tiny_model()
    batch = tiny_batch(durations_s=(1.31, None, 2.0), num_frames=(30, 19, None))
    encoder = Encoder(model, FeatureCache(tmp_path))
    encoded, exact = encoder(batch), model.encode(batch, model.grid)
    assert encoded.audio is not None
    assert exact.audio is not None
    assert encoded.video is not None
    assert exact.video is not None
    assert encoded.audio.lengths_B.tolist() == exact.audio.lengths_B.tolist() == [65, 0, 100]
    assert encoded.video.lengths_B.tolist() == exact.video.lengths_B.tolist() == [30, 19, 0]
    lips_only = replace(batch, ids=tuple(f"other{i}" for i in range(3)), num_samples_B=torch.zeros(3, dtype=torch.long))
    assert encoder(lips_only).audio is not None


@pytest.mark.parametrize("stage_name", ["warm_start", "joint"])
def test_losses_on_cached_features(
    stage_name: str, data: TrainingData, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for folder in (None, tmp_path, tmp_path):
        model = tiny_model()
        encoder = _Counting(model, folder, monkeypatch)
        source = _source(data, accelerator, cache_views=2)
        optim = OptimConfig(1, 1e-3, batch_s=BATCH_S)
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
        batch = next(stage.batches(0))
        torch.manual_seed(zlib.crc32(b"dropout"))
        losses.append(stage.backward(batch, 0))
        last = encoder.num_encoded
    exact, written, read = losses
    assert len(exact) > 4
    assert written == pytest.approx(exact, rel=0.02)
    assert written != exact  # else nothing was cached in half precision
    assert read == written
    assert last == 0
