"""`mtsk train`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch

from mtsk.checkpoints.store import build_model, save_model
from mtsk.config import TrainConfig, from_dict, to_dict
from mtsk.data.dataset import UtteranceDataset
from mtsk.evaluation.wer import corpus_rate
from mtsk.inference.engine import Engine
from mtsk.model.avsr import AvsrModel
from mtsk.recipes import RECIPES, get_recipe
from mtsk.training.run import TrainingData, make_accelerator, start_run, train
from mtsk.training.trainer import Run

_DEV_BATCH = 10  # utterances


def list_recipes() -> int:
    """Prints name and first line of each recipe."""
    for name, recipe in RECIPES.items():
        print(f"{name:<12} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0


def run(recipe: str, data_dir: Path | None, out_dir: Path | None, resume: bool, seed: int | None) -> int:
    """Trains, and writes `out_dir/model`.

    Raises:
        ValueError: if the recipe, the data or the folder does not fit, before anything is trained.
    """
    if not recipe or data_dir is None or out_dir is None:
        raise ValueError("mtsk train RECIPE --data FOLDER -o FOLDER; mtsk train --list shows the recipes")
    config = _read_config(recipe)
    if seed is not None:
        config = dataclasses.replace(config, seed=seed)
    data = TrainingData.load(data_dir)
    start_run(config, out_dir, resume=resume)
    accelerator = make_accelerator()
    torch.manual_seed(config.seed)  # of the fresh weights
    model = build_model(config.model).to(accelerator.device)
    session = Run(out_dir, accelerator, config.seed, config.save_every)
    if train(config, model, data, session, _validator(data)) and accelerator.is_main_process:
        save_model(model, out_dir / "model", training={"recipe": recipe, **to_dict(config)})
        print(f"wrote {out_dir / 'model'}")
    return 0


def _read_config(recipe: str) -> TrainConfig:
    if not recipe.endswith(".json"):
        return get_recipe(recipe)
    try:
        return from_dict(TrainConfig, json.loads(Path(recipe).read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{recipe} is not valid JSON: {error}") from error


def _validator(data: TrainingData) -> Callable[[AvsrModel], dict[str, float]]:
    """WER of every scale on the development split, clean and in babble at 0 dB if there is noise."""

    def validate(model: AvsrModel) -> dict[str, float]:
        engine = Engine(model, device=model.device, dtype=torch.float32)
        datasets = {"": UtteranceDataset(data.dev)}
        if data.babble is not None:
            datasets["_0dB"] = UtteranceDataset(data.dev, babble=data.babble, snr_db=0.0)
        figures: dict[str, float] = {}
        for suffix, dataset in datasets.items():
            references: list[str] = []
            texts: dict[str, list[str]] = {}
            for start in range(0, len(dataset), _DEV_BATCH):
                examples = [dataset[name, 0] for name in dataset.ids[start : start + _DEV_BATCH]]
                references += [example.text for example in examples]
                encoded = engine.encode(examples)
                for scale in model.grid:
                    texts.setdefault(f"{scale}{suffix}", []).extend(engine.decode(encoded, scale))
            figures |= {name: corpus_rate(references, its).value for name, its in texts.items()}
        return figures

    return validate
