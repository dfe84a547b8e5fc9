"""`mtsk train`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mtsk
from mtsk.checkpoints.store import (
    avhubert_folder,
    build_model,
    load_lips,
    load_model,
    read_record,
    save_model,
    start_from,
)
from mtsk.commands.evaluate import batches_at
from mtsk.config import AvHubertConfig, TrainConfig, from_dict, to_dict
from mtsk.evaluation.grid import measure
from mtsk.inference.engine import Engine
from mtsk.model.avsr import AvsrModel
from mtsk.recipes import get_recipe
from mtsk.training.run import TrainingData, make_accelerator, start_run, train
from mtsk.training.trainer import Run

_DEV_BATCH = 10  # utterances


def run(
    recipe: str,
    data_dir: Path | None,
    out_dir: Path | None,
    resume: bool,
    seed: int | None,
    onto: str | None = None,
    start: str | None = None,
) -> int:
    """Trains, and writes `out_dir/model`.

    Args:
        onto: a trained model that gets the recipe's character heads; nothing else is trained.
        start: a model whose weights the run starts with.

    Raises:
        ValueError: if the recipe, the data or the folder does not fit, before anything is trained.
    """
    if not recipe or data_dir is None or out_dir is None:
        given = {"RECIPE": recipe, "--data": data_dir, "-o": out_dir}
        missing = " and ".join(name for name, value in given.items() if not value)
        raise ValueError(
            f"{missing} missing: mtsk train RECIPE --data FOLDER -o FOLDER; mtsk train --list shows the recipes"
        )
    config = _read_config(recipe)
    if seed is not None:
        config = dataclasses.replace(config, seed=seed)
    if start is not None:
        config = dataclasses.replace(config, start_from=start)
    if onto is not None or config.onto is not None:
        config = _only_heads(config, onto or str(config.onto))
    data = TrainingData.load(data_dir)
    if isinstance(config.model.video, AvHubertConfig) and config.model.grid.video_rates:
        avhubert_folder(config.model.video)  # which users have to get themselves
    accelerator = make_accelerator()
    if accelerator.is_main_process:
        start_run(config, out_dir, resume=resume)
    accelerator.wait_for_everyone()
    run_state = Run(out_dir, accelerator, config.seed, config.save_every)
    train_model(config, recipe, data, run_state, dev_figures(data))
    return 0


def train_model(
    config: TrainConfig,
    recipe: str,
    data: TrainingData,
    run_state: Run,
    validator: Callable[[AvsrModel], dict[str, float]],
) -> AvsrModel:
    """Trains from where the run's folder says, and writes its `model`.

    Raises:
        ValueError: if configuration and data do not fit, before anything is trained.
    """
    accelerator, out_dir = run_state.accelerator, run_state.out_dir
    torch.manual_seed(config.seed)  # of the fresh weights
    record: dict[str, Any] = {"recipe": recipe, **to_dict(config)}
    if config.onto is not None:
        folder = mtsk.model_folder(config.onto)
        assert config.model.ctc is not None
        model = load_model(folder)
        model.add_ctc(config.model.ctc)
        heads = {"recipe": recipe, **to_dict(config)["ctc"], "seed": config.seed}
        record = {**read_record(folder).training, "ctc": heads}
    else:
        model = build_model(config.model)
    if config.start_from is not None:
        start_from(model, mtsk.model_folder(config.start_from))
    if config.lips_from is not None:
        load_lips(model, mtsk.model_folder(config.lips_from))
    model.to(accelerator.device)
    if train(config, model, data, run_state, validator) and accelerator.is_main_process:
        save_model(model, out_dir / "model", training=record)
        print(f"wrote {out_dir / 'model'}")
    return model


def _only_heads(config: TrainConfig, onto: str) -> TrainConfig:
    """The configuration of a run that gives a trained model the character heads of another configuration."""
    if config.ctc is None:
        raise ValueError("a recipe with the stage `ctc`, such as grid-s1-ctc, is needed to train heads onto a model")
    model = dataclasses.replace(read_record(mtsk.model_folder(onto)).model, ctc=config.model.ctc)
    joint = dataclasses.replace(config.joint, weights={}, character_weight=0.0)
    return dataclasses.replace(
        config, model=model, joint=joint, onto=onto,
        video_encoder=None, spelling=None, warm_start=None, reading=None, lips_from=None,
    )  # fmt: skip


def _read_config(recipe: str) -> TrainConfig:
    if not recipe.endswith(".json"):
        return get_recipe(recipe)
    text = Path(recipe).read_bytes()
    try:
        values = json.loads(text)
    except ValueError as error:  # no UTF-8 is one too
        raise ValueError(f"{recipe} is not valid JSON: {error}") from error
    try:
        return from_dict(TrainConfig, values)
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from error


def dev_figures(data: TrainingData) -> Callable[[AvsrModel], dict[str, float]]:
    """WER of every scale on the development split, clean and in babble at 0 dB if there is noise.

    An utterance that lacks a modality of a scale, or is too short for one token of it, does not count for that scale.
    """

    def validate(model: AvsrModel) -> dict[str, float]:
        engine = Engine(model, device=model.device, dtype=torch.float32)
        snrs_db = {"": None} if data.babble is None else {"": None, "_0dB": 0.0}
        figures: dict[str, float] = {}
        for suffix, snr_db in snrs_db.items():
            rates = measure(engine, batches_at(data.dev, data.babble, _DEV_BATCH, snr_db), model.grid)
            figures |= {f"{scale}{suffix}": rate.value for scale, rate in rates.items()}
        return figures

    return validate
