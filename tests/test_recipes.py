"""Recipes build, and the models that ship are what their recipes make."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import mtsk
from mtsk.config import CtcStageConfig, ModelConfig, TrainConfig, from_dict, to_dict
from mtsk.recipes import RECIPES, get_recipe


def _plain(config: TrainConfig) -> Any:
    return json.loads(json.dumps(to_dict(config)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    assert from_dict(TrainConfig, _plain(get_recipe(name))) == get_recipe(name)


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="grid-s1"):
        get_recipe("nothing")


def test_the_default_model_is_what_its_recipe_makes() -> None:
    record = json.loads((mtsk.model_folder(mtsk.DEFAULT_MODEL) / "config.json").read_text(encoding="utf-8"))
    training = record["training"]
    heads = training.pop("ctc")  # which it got later
    recipe, its_heads = get_recipe(training.pop("recipe")), get_recipe(heads.pop("recipe"))
    assert from_dict(TrainConfig, training) == recipe
    assert its_heads.ctc is not None
    assert heads.pop("seed") == its_heads.seed
    assert from_dict(CtcStageConfig, heads) == its_heads.ctc
    assert from_dict(ModelConfig, record["model"]) == replace(recipe.model, ctc=its_heads.model.ctc)
