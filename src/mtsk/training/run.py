"""A whole training run: the stages of a configuration in order, each resumed from the run's folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from lhotse import CutSet

from mtsk.config import AugmentConfig, OptimConfig, TrainConfig, from_dict, to_dict
from mtsk.data.collate import collate
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.noise import Babble
from mtsk.device import best_device, has_bf16
from mtsk.model.avsr import AvsrModel
from mtsk.training.alignment import WhisperAligner
from mtsk.training.joint_stage import JointStage
from mtsk.training.labels import Units
from mtsk.training.source import BatchSource, Encoder
from mtsk.training.trainer import Run, Stage, run_stage
from mtsk.training.video_stage import VideoStage
from mtsk.training.warm_start import WarmStartStage
from mtsk.training.word_times import has_sound, with_word_times
from mtsk.types import SAMPLE_RATE_HZ, Batch

_DEV_BATCH = 25  # utterances
_PATIENCE = timedelta(hours=12)  # of processes that wait for the main one, which aligns and validates alone


@dataclass(frozen=True)
class TrainingData:
    """What a run reads. The noise is optional: without it nothing is mixed in.

    Raises:
        ValueError: if the training or development split is one that is kept for evaluation.
    """

    train: CutSet
    dev: CutSet
    babble: Babble | None

    @classmethod
    def load(cls, data_dir: Path) -> TrainingData:
        """Reads the splits `train` and `dev` of a prepared folder, and its training noise if there is some."""
        train, dev = (load_cuts(data_dir, split, training=True) for split in ("train", "dev"))
        has_noise = (data_dir / "noise_train.jsonl.gz").exists()
        return cls(train, dev, Babble.load(data_dir, "train") if has_noise else None)

    def dev_batches(self) -> Iterator[Batch]:
        """The development split as it is."""
        dataset = UtteranceDataset(self.dev)
        ids = list(dataset.ids)
        for start in range(0, len(ids), _DEV_BATCH):
            yield collate([dataset[id, 0] for id in ids[start : start + _DEV_BATCH]])


def make_accelerator() -> Accelerator:
    """The run's devices; bfloat16 where they compute it. Apple's GPU has no CTC loss: there the processor is used."""
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    on_processor = best_device().type == "mps"
    precision = "bf16" if not on_processor and has_bf16() else "no"
    return Accelerator(cpu=on_processor, mixed_precision=precision, kwargs_handlers=[patience])


def start_run(config: TrainConfig, out_dir: Path, *, resume: bool) -> None:
    """Makes the run's folder, or checks that the folder belongs to this configuration.

    Raises:
        ValueError: if the folder holds a run already and `resume` is false, or a run of another configuration.
    """
    path = out_dir / "train.json"
    if path.exists():
        if not resume:
            raise ValueError(f"{out_dir} holds a run already; continue it with --resume, or choose another folder")
        if from_dict(TrainConfig, json.loads(path.read_text(encoding="utf-8"))) != config:
            raise ValueError(f"{path} is of another configuration; choose another folder")
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def train(
    config: TrainConfig,
    model: AvsrModel,
    data: TrainingData,
    run: Run,
    validator: Callable[[AvsrModel], dict[str, float]],
) -> bool:
    """Runs every stage that the configuration has; returns whether all are complete.

    Args:
        model: fresh, on the run's device; trained in place.
        run: where to write; a stage that is complete there is only loaded.
        validator: figures of the whole model on the development split.

    Raises:
        ValueError: before anything is trained, if an utterance is too long for the audio encoder, or something that
            the configuration asks for is missing.
    """
    _check(config, model, data)
    if model.device.type == "cpu":  # the backward of the fused attention is slower there, at sequences this short
        model.llm.set_attn_implementation("eager")
    if config.video_encoder is not None or config.warm_start is not None:
        accelerator = run.accelerator
        with accelerator.main_process_first():  # which aligns; the others read what it wrote
            train_cuts = with_word_times(
                data.train,
                lambda: WhisperAligner(device=accelerator.device).align,
                run.out_dir / "word_times.jsonl",
                say=accelerator.print,
            )
        data = replace(data, train=train_cuts)
    units = Units.of_texts((cut.supervisions[0].text for cut in data.train), model.prompts)
    return all(run_stage(stage, run) for stage in _stages(config, model, data, run, units, validator))


def _check(config: TrainConfig, model: AvsrModel, data: TrainingData) -> None:
    """Refuses what would fail hours later."""
    if model.grid.video_rates and config.video_encoder is None:
        raise ValueError("the scales have video rates, but no stage trains the lip encoder: video_encoder is missing")
    if model.audio_encoder is None:
        if config.video_encoder is not None and config.video_encoder.distill_weight:
            raise ValueError("video_encoder.distill_weight needs a model with an audio encoder, or has to be 0")
        return
    limit_s = model.audio_encoder.max_samples / SAMPLE_RATE_HZ
    augments = [stage.augment for stage in (config.video_encoder, config.warm_start, config.joint) if stage is not None]
    speed, shift_s = max(each.speed for each in augments), max(each.shift_s for each in augments)
    allowed_s = {"train": (limit_s - shift_s) * (1 - speed), "dev": limit_s}
    for split, cuts in (("train", data.train), ("dev", data.dev)):
        too_long = [cut.id for cut in cuts if has_sound(cut) and cut.duration > allowed_s[split]]
        if too_long:
            raise ValueError(
                f"{len(too_long)} utterances of the split {split} are too long, such as {too_long[0]}; the audio "
                f"encoder allows up to {allowed_s[split]:.2f} s there (augmentation makes some of training longer)"
            )


def _stages(
    config: TrainConfig,
    model: AvsrModel,
    data: TrainingData,
    run: Run,
    units: Units,
    validator: Callable[[AvsrModel], dict[str, float]],
) -> Iterator[Stage]:
    """One after the other: a stage is built when those before it are done."""

    def source(name: str, optim: OptimConfig, augment: AugmentConfig) -> BatchSource:
        seed = zlib.crc32(f"{config.seed} {name}".encode())
        dataset = UtteranceDataset(data.train, seed=seed, changes=augment, babble=data.babble)
        views = config.cache_views if name != VideoStage.name else 0
        return BatchSource(data.train, dataset, optim.batch_s, seed, views, config.num_workers, run.accelerator)

    def encoder(name: str) -> Encoder:
        return Encoder(model, run.out_dir / "features" / name if config.cache_views else None)

    if config.video_encoder is not None and model.video_encoder is not None:
        stage = config.video_encoder
        yield VideoStage(
            stage,
            model.video_encoder,
            model.audio_encoder,
            units,
            model.prompts,
            source=source(VideoStage.name, stage.optim, stage.augment),
            dev=data.dev_batches,
        )
        model.video_encoder.requires_grad_(False).eval()
    if config.warm_start is not None:
        yield WarmStartStage(
            config.warm_start,
            model,
            units,
            source=source(WarmStartStage.name, config.warm_start.optim, config.warm_start.augment),
            encoder=encoder(WarmStartStage.name),
            dev=data.dev_batches,
        )
    yield JointStage(
        config.joint,
        model,
        source=source(JointStage.name, config.joint.optim, config.joint.augment),
        encoder=encoder(JointStage.name),
        seed=config.seed,
        validator=validator,
    )
