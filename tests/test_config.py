"""The configuration tree as plain values: it survives JSON, and a wrong value is refused with its place."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from mtsk.config import (
    AudioEncoderConfig,
    CompactVideoConfig,
    JointStageConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ProjectorConfig,
    TrainConfig,
    VideoStageConfig,
    WarmStartStageConfig,
    from_dict,
    to_dict,
)
from mtsk.recipes import grid_s1
from mtsk.scale import Scale, ScaleGrid

SCALES = ScaleGrid.joint((4, 16), (2, 5)).scales
OPTIM = OptimConfig(num_steps=3, lr=1e-3)
MODEL = ModelConfig(
    scales=SCALES,
    llm="somewhere/tiny",
    audio=AudioEncoderConfig(window="30s"),
    video=CompactVideoConfig(channels=(1, 2, 3), dilations=(1, 3)),
    compression="stack",
    projector=ProjectorConfig(hidden=7, output_norm=False),
    lora=LoraConfig(strategy="mss", targets=("q_proj",)),
)
TRAIN = TrainConfig(
    model=MODEL,
    joint=JointStageConfig(OPTIM, scales_per_step=2),
    warm_start=WarmStartStageConfig(replace(OPTIM, betas=(0.5, 0.75))),
    video_encoder=VideoStageConfig(OPTIM),
)


@pytest.mark.parametrize("config", [TRAIN, replace(TRAIN, warm_start=None, video_encoder=None)])
def test_round_trip_through_json(config: TrainConfig) -> None:
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_scales_are_written_as_text() -> None:
    assert list(to_dict(ModelConfig(scales=SCALES))["scales"]) == [str(scale) for scale in SCALES]


def test_sound_alone_needs_no_lips() -> None:
    config = ModelConfig(scales=(Scale.parse("a4"),), video=None)
    assert from_dict(ModelConfig, to_dict(config)) == config


def _changed(path: str, value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(to_dict(TRAIN)))
    *parents, last = path.split(".")
    place = plain
    for name in parents:
        place = place[name]
    place[last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("colour", 1, ["colour", "$"]),
        ("model.lora.ranks", 1, ["ranks", "$.model.lora"]),
        ("model.lora.rank", "many", ["$.model.lora.rank"]),
        ("model.lora.rank", 1.5, ["$.model.lora.rank", "1.5"]),
        ("model.lora", [], ["$.model.lora", "a table of keys"]),
        ("model.lora.rank", True, ["$.model.lora.rank", "True"]),
        ("model.lora.strategy", "msss", ["$.model.lora.strategy", "msss", "'mss'"]),
        ("model.audio.window", "60s", ["$.model.audio.window", "60s"]),
        ("model.projector.input_norm", "false", ["$.model.projector.input_norm", "'false'"]),
        ("model.scales", ["a4", "x4"], ["$.model.scales[1]", "'x4' is not a scale", "a4v2"]),
        ("model.scales", ["a4", 4], ["$.model.scales[1]", "'4' is not a scale"]),
        ("model.video", None, ["$.model", "no video encoder"]),
        ("model.video.dilations", "12", ["$.model.video.dilations"]),
        ("joint.optim.betas", [0.9], ["$.joint.optim.betas"]),
        ("seed", None, ["$.seed"]),
    ],
)
def test_wrong_value_is_refused_with_its_place(path: str, value: Any, said: list[str]) -> None:
    with pytest.raises(ValueError, match="not a valid TrainConfig") as caught:
        from_dict(TrainConfig, _changed(path, value))
    for text in said:
        assert text in str(caught.value)


@pytest.mark.parametrize("plain", [[], None, "text"])
def test_other_than_a_table_is_refused(plain: Any) -> None:
    with pytest.raises(ValueError, match="a table of keys and values is needed"):
        from_dict(TrainConfig, plain)


def test_missing_key_is_refused_with_its_place() -> None:
    plain = _changed("seed", 1)
    del plain["joint"]["optim"]["lr"]
    with pytest.raises(ValueError, match=r"\$\.joint\.optim\.lr"):
        from_dict(TrainConfig, plain)


def test_every_mistake_is_named_at_once() -> None:
    plain = _changed("model.lora.ranks", 1) | {"colour": 1}
    with pytest.raises(ValueError, match=r"ranks.*colour|colour.*ranks"):
        from_dict(TrainConfig, plain)


def test_whole_numbers_do_for_fractions() -> None:
    changed = from_dict(TrainConfig, _changed("joint.optim.lr", 1))
    assert changed.joint.optim.lr == 1.0
    assert isinstance(changed.joint.optim.lr, float)


@pytest.mark.parametrize(("scales", "lacking"), [(["a4"], "audio"), (["v2"], "video"), (["a4v2"], "video")])
def test_a_scale_needs_its_encoder(scales: list[str], lacking: str) -> None:
    with pytest.raises(ValueError, match=f"the model has no {lacking} encoder"):
        ModelConfig(scales=tuple(map(Scale.parse, scales)), **{lacking: None})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("joint", "scales_per_step"), 0, "scales_per_step is 0; allowed is 1 or more"),
        (("joint", "augment", "speed"), 1.5, "speed is 1.5; allowed is from 0 to below 1"),
        (("joint", "optim", "batch_s"), -1.0, "batch_s is -1.0; allowed is above 0"),
        (("model", "lora", "rank"), 0, "lora.rank is 0; allowed is 1 or more"),
        (("seed",), -1, "seed is -1; allowed is 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(place, value, said):
    plain = to_dict(grid_s1())
    *path, last = place
    table = plain
    for key in path:
        table = table[key]
    table[last] = value
    with pytest.raises(ValueError, match=said):
        from_dict(TrainConfig, plain)


# Rates, draws and weights.


def test_ranges_of_scales_are_written_out() -> None:
    config = from_dict(ModelConfig, {"scales": ["a4-6v2", "v3"]})
    assert list(map(str, config.grid)) == ["v3", "a4v2", "a5v2", "a6v2"]


def test_weights_of_a_scale_and_its_task_multiply() -> None:
    config = from_dict(TrainConfig, _changed("joint.weights", {"a4v2": 3, "av": 0.5, "v": 0, "a16": 2}))
    weights = {str(scale): config.joint.weight(scale) for scale in config.model.grid}
    assert weights == {"a4": 1, "a16": 2, "v2": 0, "v5": 0, "a4v2": 1.5, "a4v5": 0.5, "a16v2": 0.5, "a16v5": 0.5}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("joint.weights", {"a4": -1}, "weights.a4 is -1.0; allowed is 0 or more"),
        ("joint.weights", {"a4": float("nan")}, "weights.a4 is nan"),
        ("joint.weights", {"x4": 1}, "'x4' is not a scale"),
        ("joint.weights", {"a9": 1}, "joint.weights is ['a9']; allowed is the scales and tasks of the model"),
        ("joint.weights", {"a04": 1}, "joint.weights is ['a04']"),
        ("joint.weights", {"a4": "much"}, "'much'"),
        ("joint.draw", "some", "some not in literal"),
        ("model.scales", ["a4-"], "'a4-' is not a scale"),
        ("model.scales", ["a9-4"], "empty range of rates"),
        ("model.scales", "a4", "a list of scales such as"),
        ("model.projector.audio_rates", [], "audio_rates is (); allowed is null, or different whole numbers from 1 up"),
        ("model.projector.audio_rates", [0, 4], "audio_rates is (0, 4)"),
        ("model.projector.video_rates", [2, 2], "video_rates is (2, 2)"),
        ("model.projector.video_rates", [2.5], "2.5"),
        ("model.projector.video_rates", [2], "compression 'average': stacks differ in width"),  # MODEL stacks
        ("lips_from", "grid-s1", "lips_from is 'grid-s1'; allowed is null beside video_encoder"),
        ("joint.character_weight", 0.5, "joint.character_weight is 0.5; allowed is 0 without model.ctc"),
        ("warm_start.character_weight", 0.5, "warm_start.character_weight is 0.5; allowed is 0 without model.ctc"),
        ("joint.character_weight", -0.5, "character_weight is -0.5; allowed is 0 or more"),
        ("warm_start.character_weight", -0.5, "character_weight is -0.5; allowed is 0 or more"),
        ("warm_start.context_lr", 0.0, "context_lr is 0.0; allowed is above 0, or null"),
    ],
)
def test_what_does_not_go_together_is_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        from_dict(TrainConfig, _changed(path, value))


@pytest.mark.parametrize(("draw", "least"), [("uniform", 1), ("rates", 1), ("sandwich", 2)])
def test_a_draw_needs_some_scales(draw: Any, least: int) -> None:
    assert JointStageConfig(OPTIM, scales_per_step=least, draw=draw).scales_per_step == least
    assert JointStageConfig(OPTIM, scales_per_step=None, draw=draw).scales_per_step is None
    with pytest.raises(ValueError, match=f"scales_per_step is {least - 1}; allowed is {least} or more, or null"):
        JointStageConfig(OPTIM, scales_per_step=least - 1, draw=draw)


def test_projectors_with_rates_survive_json() -> None:
    projector = ProjectorConfig(audio_rates=(4, 16), video_rates=(2,))
    config = ModelConfig(scales=SCALES, projector=projector)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert projector.rates == {"audio": (4, 16), "video": (2,)}
    assert ProjectorConfig().rates == {}
