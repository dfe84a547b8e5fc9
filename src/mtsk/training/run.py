"""A whole training run: the stages of a configuration in order, each resumed from the run's folder."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from lhotse import CutSet
from torch.utils.data import Dataset

from mtsk.config import (
    AugmentConfig,
    CtcStageConfig,
    JointStageConfig,
    TrainConfig,
    VideoStageConfig,
    WarmStartStageConfig,
    from_dict,
    set_values,
    to_dict,
)
from mtsk.data.collate import collate
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.noise import Babble
from mtsk.device import best_device, has_bf16
from mtsk.files import write_whole
from mtsk.model.avsr import AvsrModel
from mtsk.model.video_encoder import CompactVideoEncoder
from mtsk.training.alignment import WhisperAligner
from mtsk.training.ctc_stage import CtcStage
from mtsk.training.joint_stage import JointStage
from mtsk.training.labels import Units
from mtsk.training.reading_stage import ReadingStage
from mtsk.training.source import BatchSource, CachedExamples, Encoder, FeatureCache, WithoutMedia
from mtsk.training.trainer import Run, Stage, run_stage
from mtsk.training.video_stage import VideoStage
from mtsk.training.warm_start import WarmStartStage
from mtsk.training.word_times import has_sound, with_word_times
from mtsk.types import SAMPLE_RATE_HZ, Batch, Example

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
    digest: str = ""
    """Of the lists of training utterances and noise: other data, other digest."""

    @classmethod
    def load(cls, data_dir: Path) -> TrainingData:
        """Reads the splits `train` and `dev` of a prepared folder, and its training noise if there is some."""
        train, dev = (load_cuts(data_dir, split, training=True) for split in ("train", "dev"))
        noise = data_dir / "noise_train.jsonl.gz"
        parts = (data_dir / "cuts_train.jsonl.gz", noise, data_dir / "noise.json")
        lists = [path.read_bytes() for path in parts if path.exists()]
        babble = Babble.load(data_dir, "train") if noise.exists() else None
        return cls(train, dev, babble, _digest(*lists))

    def dev_batches(self) -> Iterator[Batch]:
        """The development split as it is."""
        dataset = UtteranceDataset(self.dev)
        ids = list(dataset.ids)
        for start in range(0, len(ids), _DEV_BATCH):
            yield collate([dataset[id, 0] for id in ids[start : start + _DEV_BATCH]])


def make_accelerator() -> Accelerator:
    """The run's devices; bfloat16 where they compute it. Apple's GPU has no CTC loss: there the processor is used."""
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    device = best_device().type
    on_processor = device in ("mps", "cpu")  # said explicitly, or torchrun's processes there would not know each other
    precision = "bf16" if device != "mps" and has_bf16() else "no"
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
    write_whole(path, json.dumps(to_dict(config), indent=2) + "\n")


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
    if _needs_word_times(config):
        accelerator = run.accelerator
        with accelerator.main_process_first():  # which aligns; the others read what it wrote
            train_cuts = with_word_times(
                data.train,
                lambda: WhisperAligner(device=accelerator.device).align,
                _word_times_file(data, run),
                say=accelerator.print,
            )
        data = replace(data, train=train_cuts)
    units = Units.of_texts((cut.supervisions[0].text for cut in data.train), model.prompts)
    return all(run_stage(stage, run) for stage in _stages(config, model, data, run, units, validator))


def _needs_word_times(config: TrainConfig) -> bool:
    """Whether a stage learns from them."""
    stages = (config.video_encoder, config.spelling, config.warm_start, config.reading, config.ctc)
    return config.joint.character_weight > 0 or any(stage is not None for stage in stages)


def _word_times_file(data: TrainingData, run: Run) -> Path:
    """Where features are shared, word times are too, by the data that they are of."""
    if run.features_dir is None:
        return run.out_dir / "word_times.jsonl"
    return run.features_dir / f"word_times_{data.digest}.jsonl"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _check(config: TrainConfig, model: AvsrModel, data: TrainingData) -> None:
    """Refuses what would fail hours later."""
    if config.video_encoder is not None and not isinstance(model.video_encoder, CompactVideoEncoder | None):
        raise ValueError(
            "video_encoder, the stage that trains a compact lip encoder, does not fit another one; leave it"
        )
    lips_exist = config.video_encoder or config.lips_from or config.onto or config.start_from
    if isinstance(model.video_encoder, CompactVideoEncoder) and not lips_exist:
        raise ValueError(
            "the scales have video rates, but there is no lip encoder: video_encoder, the stage that trains one, is "
            "missing, and so is lips_from, a model to take it from"
        )
    if model.audio_encoder is None:
        if config.video_encoder is not None and config.video_encoder.distill_weight:
            raise ValueError("video_encoder.distill_weight needs a model with an audio encoder, or has to be 0")
        return
    limit_s = model.audio_encoder.max_samples / SAMPLE_RATE_HZ
    stages = (config.video_encoder, config.spelling, config.warm_start, config.joint, config.ctc)
    augments = [stage.augment for stage in stages if stage is not None]
    speed, shift_s = max(each.speed for each in augments), max(each.shift_s for each in augments)
    allowed_s = {"train": (limit_s - shift_s) * (1 - speed), "dev": limit_s}
    for split, cuts in (("train", data.train), ("dev", data.dev)):
        too_long = [cut.id for cut in cuts if has_sound(cut) and cut.duration > allowed_s[split]]
        if too_long:
            raise ValueError(
                f"{len(too_long)} utterances of the split {split} are too long, such as {too_long[0]}; the audio "
                f"encoder allows up to {allowed_s[split]:.2f} s there (augmentation makes some of training longer)"
            )


def _seed_of(config: TrainConfig, name: str) -> int:
    return zlib.crc32(f"{config.seed} {name}".encode())


def _feature_cache(
    config: TrainConfig, model: AvsrModel, data: TrainingData, run: Run, augment: AugmentConfig
) -> FeatureCache | None:
    """Where the features of augmented views are, by all that they depend on; None if they are not kept."""
    if not config.cache_views:
        return None
    lips = [] if model.video_encoder is None else [t.cpu() for t in model.video_encoder.state_dict().values()]
    modalities = "".join(sorted(set("".join(scale.task for scale in model.grid))))
    # Word times bound how far a view may be shifted, and those of an unaligned corpus are none.
    modalities += "" if _needs_word_times(config) else " unaligned"
    what = json.dumps([set_values(config.model.audio), set_values(augment), config.seed, data.digest, modalities])
    key = _digest(what.encode(), *(tensor.contiguous().numpy().tobytes() for tensor in lips))
    return FeatureCache((run.features_dir or run.out_dir / "features") / key)


def _source(
    name: str,
    stage: VideoStageConfig | WarmStartStageConfig | JointStageConfig | CtcStageConfig,
    cache: FeatureCache | None,
    config: TrainConfig,
    data: TrainingData,
    run: Run,
) -> BatchSource:
    """The batches of a stage. The stages that read features share their views, and so what is cached."""
    views_seed = _seed_of(config, "views" if cache else name)
    examples = UtteranceDataset(data.train, seed=views_seed, changes=stage.augment, babble=data.babble)
    dataset: Dataset[Example] = CachedExamples(examples, cache) if cache else examples
    num_views = config.cache_views if cache else 0
    seed = _seed_of(config, name)
    optim, workers = stage.optim, config.num_workers
    return BatchSource(data.train, dataset, optim.batch_s, seed, num_views, workers, run.accelerator, config.repeats)


def _stages(
    config: TrainConfig,
    model: AvsrModel,
    data: TrainingData,
    run: Run,
    units: Units,
    validator: Callable[[AvsrModel], dict[str, float]],
) -> Iterator[Stage]:
    """One after the other: a stage is built when those before it are done."""
    if config.onto is not None:
        yield from _ctc_stage("ctc", config.ctc, config, model, data, run)
        return
    if config.video_encoder is not None and model.video_encoder is not None:
        yield VideoStage(
            config.video_encoder,
            model.video_encoder,
            model.audio_encoder,
            units,
            model.prompts,
            source=_source(VideoStage.name, config.video_encoder, None, config, data, run),
            dev=data.dev_batches,
        )
        model.video_encoder.requires_grad_(False).eval()
    yield from _ctc_stage("spelling", config.spelling, config, model, data, run)
    if config.warm_start is not None:
        cache = _feature_cache(config, model, data, run, config.warm_start.augment)
        yield WarmStartStage(
            config.warm_start,
            model,
            Units.of_vocabulary(model.prompts) if config.warm_start.classes == "vocabulary" else units,
            source=_source(WarmStartStage.name, config.warm_start, cache, config, data, run),
            encoder=Encoder(model, cache),
            dev=data.dev_batches,
        )
    if config.reading is not None:
        optim, seed = config.reading.optim, _seed_of(config, ReadingStage.name)
        texts = WithoutMedia(UtteranceDataset(data.train))
        source = BatchSource(data.train, texts, optim.batch_s, seed, 0, 0, run.accelerator, config.repeats)
        yield ReadingStage(config.reading, model, source=source, seed=seed, dev=data.dev_batches)
    cache = _feature_cache(config, model, data, run, config.joint.augment)
    yield JointStage(
        config.joint,
        model,
        source=_source(JointStage.name, config.joint, cache, config, data, run),
        encoder=Encoder(model, cache),
        seed=config.seed,
        validator=validator,
    )
    # Last, as the stage before may change the lip encoder.
    yield from _ctc_stage("ctc", config.ctc, config, model, data, run)


def _ctc_stage(
    name: Literal["spelling", "ctc"],
    stage: CtcStageConfig | None,
    config: TrainConfig,
    model: AvsrModel,
    data: TrainingData,
    run: Run,
) -> Iterator[CtcStage]:
    """The stage, if it is configured."""
    if stage is None:
        return
    assert config.model.ctc is not None
    cache = _feature_cache(config, model, data, run, stage.augment)
    yield CtcStage(
        name,
        stage,
        config.model.ctc,
        model,
        source=_source(name, stage, cache, config, data, run),
        encoder=Encoder(model, cache),
        dev=data.dev_batches,
    )
