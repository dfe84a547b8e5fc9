"""A study file -> what to train and what to measure. No torch here: a wrong file is refused before anything is loaded.

A method says at which scales the model that reads a scale was trained: all of them (MS, SS, MSS), that one alone
(independent models), the finest alone (training-free pooling), or a list.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import cattrs.gen

from mtsk.config import CONVERTER, CompactVideoConfig, TrainConfig, Untrained, from_dict, set_values, to_dict
from mtsk.recipes import get_recipe
from mtsk.scale import Scale, ScaleGrid
from mtsk.studies.yaml_lines import Place, YamlFile

TrainedAt = Literal["all", "each", "finest"] | tuple[Scale, ...]
SnrDb = float | Literal["clean"]

_DECIDED = {"seed": "seeds", "model.scales": "scales", "model.compression": "compression"}
_DECIDED["model.lora.strategy"] = "a method's strategy"


@dataclass(frozen=True)
class Method:
    """A row of a table: how the model that reads a scale was trained."""

    name: str
    strategy: Literal["ms", "ss", "mss"] = "ms"
    trained_at: TrainedAt = "all"
    """`all` scales of the matrix together, `each` alone, the `finest` alone, or a list of scales."""
    untrained: Untrained = "refuse"
    """How a scale is read that was not trained; see `mtsk.config.Untrained`."""
    set: dict[str, Any] = field(default_factory=dict)
    """Changes of the recipe, as in the study."""

    def scales_for(self, scale: Scale, grid: ScaleGrid) -> tuple[Scale, ...]:
        """The scales at which the model that reads `scale` was trained."""
        named = {"all": grid.scales, "each": (scale,), "finest": (max(grid, key=lambda s: s.tokens_per_second),)}
        return named[self.trained_at] if isinstance(self.trained_at, str) else self.trained_at


METHODS = {
    method.name: method
    for method in (
        Method("MS", "ms"),
        Method("SS", "ss"),
        Method("MSS", "mss"),
        Method("independent", trained_at="each"),
        Method("training-free", trained_at="finest", untrained="pool"),
    )
}


@dataclass(frozen=True)
class Matrix:
    """Methods that are compared at the same scales."""

    name: str
    scales: tuple[Scale, ...]
    methods: tuple[Method, ...] = tuple(METHODS.values())
    compression: tuple[Literal["average", "stack"], ...] = ("average",)
    snr_db: tuple[SnrDb, ...] | None = None
    """None: as in the study."""
    seeds: tuple[int, ...] | None = None
    """None: as in the study."""
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A whole comparison: what is common, and its matrices."""

    title: str
    recipe: str
    """Name of a recipe, or a .json file beside the study."""
    matrices: tuple[Matrix, ...]
    data: str = ""
    """A folder from `mtsk prepare`; the command line may name another."""
    split: str = "test"
    snr_db: tuple[SnrDb, ...] = ("clean",)
    seeds: tuple[int, ...] = (1,)
    set: dict[str, Any] = field(default_factory=dict)
    """Changes of the recipe for every run, in the shape of `train.json`."""
    batch: int = 10
    """Utterances at a time in evaluation."""


@dataclass(frozen=True)
class Run:
    """A model to train. Equal runs of different methods are one."""

    config: TrainConfig
    label: str

    @property
    def name(self) -> str:
        """Of its folder: what it is, and a hash of all that it is."""
        return f"{self.label}-{_short_hash(_essence(self.config))}"

    @property
    def start(self) -> str:
        """Hash of what decides the stages before the joint one: runs that share it share those stages."""
        values = _essence(self.config)
        model = {key: value for key, value in values["model"].items() if key != "lora"}
        stages = {key: value for key, value in values.items() if key not in ("joint", "model")}
        return _short_hash({"model": model, **stages})


@dataclass(frozen=True)
class Cell:
    """What is measured of a run for a row of a table: some scales, at some noise levels."""

    matrix: str
    method: str
    compression: str
    seed: int
    run: Run
    scales: tuple[Scale, ...]
    untrained: Untrained
    snrs_db: tuple[float | None, ...]
    place: Place
    """Of its matrix in the file."""

    def key(self, split: str) -> str:
        """Hash of what is measured of the run."""
        return _short_hash([list(map(str, self.scales)), self.untrained, self.snrs_db, split])


@dataclass(frozen=True)
class Plan:
    """A study, ready to run."""

    study: Study
    cells: tuple[Cell, ...]
    file: YamlFile

    @property
    def runs(self) -> tuple[Run, ...]:
        """What is trained, in order, each once."""
        return tuple({cell.run.name: cell.run for cell in self.cells}.values())


def read_plan(path: Path) -> Plan:
    """Reads a study file and works out every run.

    Raises:
        ValueError: naming file and line of what is wrong.
    """
    file = YamlFile.read(path)
    with file.located():
        study = from_dict(Study, file.values)
    with file.located("recipe"):
        recipe = _read_recipe(study.recipe, path.parent)
    return Plan(study, tuple(_cells(study, recipe, file)), file)


def _read_recipe(name: str, folder: Path) -> TrainConfig:
    if not name.endswith(".json"):
        return get_recipe(name)
    try:
        return from_dict(TrainConfig, json.loads((folder / name).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{folder / name}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{folder / name}: {error}") from error


def _cells(study: Study, recipe: TrainConfig, file: YamlFile) -> Iterator[Cell]:
    names = [matrix.name for matrix in study.matrices]
    if not names or len(set(names)) < len(names):
        raise file.error("a study needs matrices of different names", "matrices")
    if study.batch < 1:
        raise file.error(f"batch is {study.batch}; allowed is 1 or more", "batch")
    _require_different(file, (), seeds=study.seeds, snr_db=study.snr_db)
    with file.located("set"):
        common = _changed(recipe, study.set)
    for number, matrix in enumerate(study.matrices):
        place = ("matrices", number)
        methods = [method.name for method in matrix.methods]
        _require_different(file, place, methods=methods, compression=matrix.compression)
        _require_different(file, place, seeds=matrix.seeds, snr_db=matrix.snr_db)
        with file.located(*place, "scales"):
            grid = ScaleGrid(matrix.scales)
            at_scales = _at_scales(common, grid)
        with file.located(*place, "set"):
            of_matrix = _changed(at_scales, matrix.set)
        snrs_db = tuple(None if snr == "clean" else snr for snr in matrix.snr_db or study.snr_db)
        for position, method in enumerate(matrix.methods):
            with file.located(*place, "methods", position, "set"):
                config = _changed(of_matrix, method.set)
            for compression in matrix.compression:
                for seed in matrix.seeds or study.seeds:
                    with file.located(*place, "methods", position):
                        runs = list(_runs(config, method, grid, compression, seed))
                    for run, scales in runs:
                        yield Cell(
                            matrix.name, method.name, compression, seed, run, scales, method.untrained, snrs_db, place
                        )


def _require_different(file: YamlFile, place: Place, **lists: Sequence[object] | None) -> None:
    """Refuses what would be trained or measured twice, or not at all."""
    for name, values in lists.items():
        if values is not None and (not values or len(set(values)) < len(values)):
            given = ", ".join(map(str, values)) or "nothing"
            raise file.error(f"{name}: {given} given; one or more are needed, each once", *place, name)


def _runs(
    config: TrainConfig, method: Method, grid: ScaleGrid, compression: Literal["average", "stack"], seed: int
) -> Iterator[tuple[Run, tuple[Scale, ...]]]:
    """The models of a method, and what each of them reads."""
    read: dict[tuple[Scale, ...], list[Scale]] = {}
    for scale in grid:
        read.setdefault(tuple(sorted(method.scales_for(scale, grid))), []).append(scale)
    for trained, scales in read.items():
        its_grid = ScaleGrid(trained)
        if method.untrained == "between" and compression == "stack":
            raise ValueError("stacked features can't be read between the trained rates; untrained: pool")
        for scale in scales:
            its_grid.require(scale) if method.untrained == "refuse" else its_grid.nearest_finer(scale)
        yield _run(config, method, its_grid, compression, seed), tuple(scales)


def _run(
    config: TrainConfig, method: Method, grid: ScaleGrid, compression: Literal["average", "stack"], seed: int
) -> Run:
    config = _at_scales(config, grid)
    lora = dataclasses.replace(config.model.lora, strategy=method.strategy)
    model = dataclasses.replace(config.model, compression=compression, lora=lora)
    # What the scales do not use would only make equal runs look different.
    model = dataclasses.replace(
        model, audio=model.audio if grid.audio_rates else None, video=model.video if grid.video_rates else None
    )
    lips = isinstance(model.video, CompactVideoConfig)
    stage, source = (config.video_encoder, config.lips_from) if lips else (None, None)
    if lips and stage is None and source is None:
        raise ValueError("the scales need a lip encoder: set video_encoder, the stage that trains one, or lips_from")
    if stage is not None and stage.distill_weight and model.audio is None:
        raise ValueError("video_encoder.distill_weight needs scales with sound; set it to 0")
    full = dataclasses.replace(config, model=model, seed=seed, video_encoder=stage, lips_from=source)
    strategy = method.strategy if len(grid) > 1 else "single"
    span = str(grid.scales[0]) if len(grid) == 1 else f"{grid.scales[0]}-{grid.scales[-1]}"
    return Run(full, f"{strategy}-{compression}-{span}-seed{seed}")


def _at_scales(config: TrainConfig, grid: ScaleGrid) -> TrainConfig:
    """The configuration for other scales, with such weights of the loss as they use."""
    model = dataclasses.replace(config.model, scales=grid.scales)
    names = {name for scale in grid for name in (str(scale), scale.task)}
    weights = {name: weight for name, weight in config.joint.weights.items() if name in names}
    return dataclasses.replace(config, model=model, joint=dataclasses.replace(config.joint, weights=weights))


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A configuration with some values replaced; tables are merged key by key."""
    for name, instead in _DECIDED.items():
        value: Any = changes
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            raise ValueError(f"{name} is for {instead} to say, not for a set @ $.{name}")
    return from_dict(TrainConfig, _merged(to_dict(config), changes))


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key; a base model in place of what has no source, such as AV-HuBERT for our own lips, is put whole."""
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and ("source" not in value or "source" in old):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


def _essence(config: TrainConfig) -> dict[str, Any]:
    """What decides the result of a run, without what was left at its default."""
    return {key: value for key, value in set_values(config).items() if key not in ("save_every", "num_workers")}


def _short_hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _structure_method(value: Any, _: object) -> Method:
    """A method by name, or a table of its own."""
    if isinstance(value, Mapping):
        return _method_of_table(value, Method)
    if value not in METHODS:
        raise ValueError(f"no method {value!r}; there are {', '.join(METHODS)}, or a table with name, trained_at, ...")
    return METHODS[value]


def _structure_trained_at(value: Any, _: object) -> TrainedAt:
    if not isinstance(value, str):
        return CONVERTER.structure(value, tuple[Scale, ...])
    if value not in ("all", "each", "finest"):
        raise ValueError(f"{value!r} given; allowed is all, each, finest or a list of scales")
    return cast(TrainedAt, value)


def _structure_snr(value: Any, _: object) -> SnrDb:
    snr_db: SnrDb = "clean" if value == "clean" else CONVERTER.structure(value, float)
    if snr_db != "clean" and not math.isfinite(snr_db):
        raise ValueError(f"{snr_db} given; allowed is clean, or a finite number of dB")
    return snr_db


CONVERTER.register_structure_hook_func(lambda wanted: wanted == TrainedAt, _structure_trained_at)
CONVERTER.register_structure_hook_func(lambda wanted: wanted == SnrDb, _structure_snr)
_method_of_table = cattrs.gen.make_dict_structure_fn(Method, CONVERTER)
CONVERTER.register_structure_hook(Method, _structure_method)
