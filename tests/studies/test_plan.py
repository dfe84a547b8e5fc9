"""Study files: the runs and readings of every method, and refusals with file and line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mtsk.config import AvHubertConfig, ModelConfig, to_dict
from mtsk.recipes import grid_s1
from mtsk.scale import Scale
from mtsk.studies.plan import Cell, Plan, Run, read_plan

HEAD = "title: T\nrecipe: grid-s1\n"
AVSR = """\
matrices:
  - name: AVSR
    scales: [a4v2, a4v5, a16v2, a16v5]
"""
ALL = "a4v2 a4v5 a16v2 a16v5"


def _plan(folder: Path, text: str) -> Plan:
    (folder / "study.yaml").write_text(text)
    return read_plan(folder / "study.yaml")


def _cells(plan: Plan, method: str) -> list[Cell]:
    return [cell for cell in plan.cells if cell.method == method]


def _readings(plan: Plan, method: str) -> list[tuple[str, str, str, str]]:
    """(trained at, strategy, what is read, how) of each model of a method."""
    return [
        (
            str(cell.run.config.model.grid),
            cell.run.config.model.lora.strategy,
            " ".join(map(str, cell.scales)),
            cell.untrained,
        )
        for cell in _cells(plan, method)
    ]


# Methods.


def test_methods_of_the_paper(tmp_path: Path) -> None:
    plan = _plan(tmp_path, HEAD + AVSR)
    for name in ("MS", "SS", "MSS"):
        assert _readings(plan, name) == [(ALL, name.lower(), ALL, "refuse")]
    assert _readings(plan, "independent") == [(scale, "ms", scale, "refuse") for scale in ALL.split()]
    assert _readings(plan, "training-free") == [("a4v2", "ms", ALL, "pool")]
    assert len(plan.cells) == 8
    assert len(plan.runs) == 7, "the training-free model is the finest of the independent ones"
    assert _cells(plan, "training-free")[0].run.name == _cells(plan, "independent")[0].run.name
    assert all(cell.snrs_db == (None,) and cell.seed == 1 and cell.matrix == "AVSR" for cell in plan.cells)


def test_methods_of_ones_own(tmp_path: Path) -> None:
    methods = """\
    methods:
      - {name: some, trained_at: [a4v2, a16v5], untrained: between}
      - {name: pooled, strategy: ss, trained_at: [a4v2-3], untrained: pool}
      - {name: fine, trained_at: finest, untrained: between}
      - {name: DoRA, set: {model: {lora: {variant: dora, rank: 8}}}}
"""
    plan = _plan(tmp_path, HEAD + AVSR + methods)
    assert _readings(plan, "some") == [("a4v2 a16v5", "ms", ALL, "between")]
    assert _readings(plan, "pooled") == [("a4v2 a4v3", "ss", ALL, "pool")]
    assert _readings(plan, "fine") == [("a4v2", "ms", ALL, "between")]
    lora = _cells(plan, "DoRA")[0].run.config.model.lora
    assert (lora.variant, lora.rank, lora.alpha) == ("dora", 8, grid_s1().model.lora.alpha)


def test_matrices_seeds_compression_and_noise(tmp_path: Path) -> None:
    text = """\
title: T
recipe: grid-s1
snr_db: [clean, -5]
seeds: [1, 2]
matrices:
  - {name: A, scales: [a4-6], methods: [MS], compression: [average, stack]}
  - {name: V, scales: [v2], methods: [MS], seeds: [7], snr_db: [clean, 2.5]}
"""
    plan = _plan(tmp_path, text)
    cells = [(c.matrix, c.compression, c.seed, c.snrs_db, str(c.run.config.model.grid)) for c in plan.cells]
    both = (None, -5.0)
    assert cells == [
        *(("A", compression, seed, both, "a4 a5 a6") for compression in ("average", "stack") for seed in (1, 2)),
        ("V", "average", 7, (None, 2.5), "v2"),
    ]
    assert [cell.run.config.seed for cell in plan.cells] == [1, 2, 1, 2, 7]
    assert [cell.run.config.model.compression for cell in plan.cells] == ["average"] * 2 + ["stack"] * 2 + ["average"]
    assert len(plan.runs) == 5


def test_sets_change_the_recipe_from_the_outside_in(tmp_path: Path) -> None:
    text = """\
title: T
recipe: grid-s1
set: {cache_views: 4, joint: {optim: {num_steps: 7, lr: 0.5}}}
matrices:
  - name: A
    scales: [a4, a6]
    set: {joint: {optim: {lr: 0.25}, weights: {a6: 2, a: 3}}}
    methods:
      - MS
      - {name: own, set: {joint: {optim: {lr: 0.125}, projector_lr: 1}}}
      - independent
  - {name: B, scales: [a4], methods: [MS]}
"""
    plan = _plan(tmp_path, text)
    base = grid_s1().joint
    found = {(c.matrix, c.method, str(c.scales[0])): c.run.config for c in plan.cells}
    assert all(config.cache_views == 4 and config.joint.optim.num_steps == 7 for config in found.values())
    optims = {key: (c.joint.optim.lr, c.joint.projector_lr, c.joint.weights) for key, c in found.items()}
    assert optims == {
        ("A", "MS", "a4"): (0.25, base.projector_lr, {"a6": 2.0, "a": 3.0}),
        ("A", "own", "a4"): (0.125, 1.0, {"a6": 2.0, "a": 3.0}),
        ("A", "independent", "a4"): (0.25, base.projector_lr, {"a": 3.0}),
        ("A", "independent", "a6"): (0.25, base.projector_lr, {"a6": 2.0, "a": 3.0}),
        ("B", "MS", "a4"): (0.5, base.projector_lr, {}),
    }
    assert found["B", "MS", "a4"].joint.optim.clip_norm == base.optim.clip_norm


# Runs that are one, and stages that are shared.


def test_what_the_scales_do_not_use_makes_no_run_of_its_own(tmp_path: Path) -> None:
    """Sound alone does not depend on where the lips come from."""
    text = HEAD + (
        "matrices:\n"
        "  - {name: A, scales: [a4, a8], methods: [MS]}\n"
        "  - {name: B, scales: [a8, a4], methods: [MS], set: {video_encoder: null, lips_from: grid-s1}}\n"
        "  - {name: C, scales: [v2], methods: [MS], set: {video_encoder: null, lips_from: grid-s1}}\n"
        "  - {name: D, scales: [v2], methods: [MS]}\n"
    )
    plan = _plan(tmp_path, text)
    names = {cell.matrix: cell.run.name for cell in plan.cells}
    assert names["A"] == names["B"]
    assert names["C"] != names["D"]
    configs = {cell.matrix: cell.run.config for cell in plan.cells}
    assert (configs["A"].model.video, configs["A"].video_encoder, configs["A"].lips_from) == (None, None, None)
    assert configs["C"].model.audio is None
    assert configs["C"].lips_from == "grid-s1"
    assert configs["D"].video_encoder == grid_s1().video_encoder


def test_adapters_do_not_change_where_a_run_starts(tmp_path: Path) -> None:
    methods = """\
    methods: [MS, SS, MSS, {name: wide, set: {model: {lora: {rank: 99}}, joint: {projector_lr: 1}}}, independent]
"""
    plan = _plan(tmp_path, HEAD + AVSR + methods)
    starts = {name: {cell.run.start for cell in _cells(plan, name)} for name in ("MS", "SS", "MSS", "wide")}
    assert len(set.union(*starts.values())) == 1
    independent = {cell.run.start for cell in _cells(plan, "independent")}
    assert len(independent) == 4
    assert not independent & starts["MS"]


@pytest.mark.parametrize(
    "change",
    ["seed: 2", "scales: [a4v2, a16v5]", "compression: [stack]", "set: {warm_start: {optim: {num_steps: 1}}}",
     "set: {model: {projector: {hidden: 9}}}", "set: {video_encoder: null, lips_from: grid-s1}"],
)  # fmt: skip
def test_what_early_stages_depend_on_changes_where_a_run_starts(tmp_path: Path, change: str) -> None:
    change = change.replace("seed: 2", "seeds: [2]")
    base = HEAD + "matrices:\n  - name: AVSR\n    methods: [MS]\n"
    scales = "    scales: [a4v2, a4v5]\n"
    one = _plan(tmp_path, base + scales).runs[0]
    other = _plan(tmp_path, base + ("" if change.startswith("scales") else scales) + f"    {change}\n").runs[0]
    assert one.start != other.start
    assert one.name != other.name


def test_names_say_what_a_run_is_and_are_the_same_everywhere(tmp_path: Path) -> None:
    one, other = (_plan(tmp_path, HEAD + AVSR).runs for _ in range(2))
    assert [run.name for run in one] == [run.name for run in other]
    assert re.fullmatch(r"ms-average-a4v2-a16v5-seed1-[0-9a-f]{8}", one[0].name)
    assert re.fullmatch(r"single-average-a4v2-seed1-[0-9a-f]{8}", one[3].name)
    changed = Run(replace(one[0].config, seed=2), one[0].label)
    assert changed.name != one[0].name
    # How often a run is saved, and how many processes read its data, make no other model of it.
    same = Run(replace(one[0].config, save_every=1, num_workers=2), one[0].label)
    assert (same.name, same.start) == (one[0].name, one[0].start)


def test_what_is_measured_of_a_run_has_a_key_of_its_own(tmp_path: Path) -> None:
    cell = _plan(tmp_path, HEAD + AVSR).cells[0]
    others = [
        replace(cell, scales=cell.scales[:2]),
        replace(cell, untrained="pool"),
        replace(cell, snrs_db=(None, 0.0)),
    ]
    keys = [cell.key("test"), cell.key("dev"), *(other.key("test") for other in others)]
    assert len(set(keys)) == len(keys)
    assert replace(cell, method="another", matrix="X").key("test") == cell.key("test")


def test_a_recipe_beside_the_study(tmp_path: Path) -> None:
    recipe = replace(grid_s1(), save_every=3)
    (tmp_path / "own.json").write_text(json.dumps(to_dict(recipe)))
    plan = _plan(tmp_path, "title: T\nrecipe: own.json\n" + AVSR)
    assert all(run.config.save_every == 3 for run in plan.runs)


def test_a_frozen_lip_encoder_needs_no_stage(tmp_path: Path) -> None:
    model = ModelConfig(scales=(Scale(4, 2),), video=AvHubertConfig("somewhere"))
    recipe = replace(grid_s1(), model=model)
    (tmp_path / "own.json").write_text(json.dumps(to_dict(recipe)))
    config = _plan(tmp_path, "title: T\nrecipe: own.json\n" + AVSR).runs[0].config
    assert (config.video_encoder, config.lips_from) == (None, None)
    assert config.model.video == AvHubertConfig("somewhere")


def test_the_study_of_this_repository(tmp_path: Path) -> None:
    plan = read_plan(Path(__file__).parents[2] / "docs" / "results" / "grid-s1" / "study.yaml")
    assert {cell.matrix for cell in plan.cells} >= {"AVSR", "ASR", "VSR"}
    assert _readings(plan, "MS")[0] == (ALL, "ms", ALL, "refuse")
    assert _readings(plan, "training-free")[0] == ("a4v2", "ms", ALL, "pool")
    assert all(run.config.lips_from == "grid-s1" for run in plan.runs if run.config.model.video is not None)


# Refusals.

METHODS = "    methods: "


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        # Keys that are not there, or missing.
        ("", 1, "a table of keys and values is needed"),
        ("- 1\n", 1, "a table of keys and values is needed"),
        ("title: T\nmatrices: []\n", 1, r"required field missing @ \$\.recipe"),
        (HEAD + "colour: 1\n" + AVSR, 3, r"unknown key \(colour\)"),
        (HEAD + "my-colour: 1\n" + AVSR, 3, r"unknown key \(my-colour\)"),
        (HEAD + AVSR + "    colour: 1\n", 6, r"unknown key \(colour\).* @ \$\.matrices\[0\]"),
        (HEAD + AVSR + METHODS + "[{name: x,\n      colour: 1}]\n", 7, r"unknown key.*colour.*methods\[0\]"),
        (HEAD + "set:\n  colour: 1\n" + AVSR, 4, r"unknown key \(colour\)"),
        (HEAD + "set:\n  joint:\n    optim: {lr: 1.0,\n      lrs: 2.0}\n" + AVSR, 6, r"lrs.*\$\.joint\.optim"),
        (HEAD + AVSR + "    set:\n      joint:\n        draws: rates\n", 8, r"draws.*\$\.joint"),
        (HEAD + AVSR + METHODS + "\n      - MS\n      - name: x\n        set:\n          seeds: 1\n", 10, "seeds"),
        # Values.
        (HEAD + AVSR.replace("a4v5", "a0v5"), 5, "from 1 up, not 0"),
        (HEAD + AVSR.replace("a4v5", "\n      x4"), 6, "'x4' is not a scale"),
        (HEAD + AVSR.replace("a4v5", "a20-4"), 5, "empty range"),
        (HEAD + "matrices:\n  - name: A\n    scales: a4\n", 5, "a list of scales such as"),
        (HEAD + "matrices:\n  - name: A\n    scales: []\n", 5, "at least one scale"),
        (HEAD + AVSR + METHODS + "[MS, MX]\n", 6, "no method 'MX'; there are MS, SS, MSS, independent, training-free"),
        (HEAD + AVSR + METHODS + "[3]\n", 6, "no method 3; there are MS.* or a table"),
        (HEAD + AVSR + METHODS + "MS\n", 6, "no method 'M'"),
        (HEAD + AVSR + METHODS + "[{name: x, strategy: xs}]\n", 6, "xs not in"),
        (HEAD + AVSR + METHODS + "[{name: x, untrained: guess}]\n", 6, "guess not in"),
        (HEAD + AVSR + METHODS + "[{name: x, trained_at: coarsest}]\n", 6, "all, each, finest or a list"),
        (HEAD + AVSR + METHODS + "[{name: x, trained_at: [a0]}]\n", 6, "from 1 up, not 0"),
        (HEAD + AVSR + METHODS + "[{name: x, trained_at: []}]\n", 6, "at least one scale"),
        (HEAD + AVSR + METHODS + "[{name: x, trained_at: null}]\n", 6, "a list of scales"),
        (HEAD + AVSR + "    compression: [middle]\n", 6, "middle not in"),
        (HEAD + AVSR + "    snr_db: [loud]\n", 6, "'loud'"),
        (HEAD + AVSR + "    snr_db: [.nan]\n", 6, "a finite number"),
        (HEAD + AVSR + "    snr_db: [-.inf]\n", 6, "a finite number"),
        (HEAD + "seeds: [one]\n" + AVSR, 3, "'one'"),
        (HEAD + "seeds: [-1]\n" + AVSR + METHODS + "[MS]\n", 7, "seed is -1"),
        (HEAD + "batch: 0\n" + AVSR, 3, "batch is 0; allowed is 1 or more"),
        (HEAD + "set: {joint: {optim: {lr: 1e-3}}}\n" + AVSR, 3, "'1e-3'"),
        (HEAD + "set:\n  joint:\n    optim:\n      lr: -1.0\n" + AVSR, 5, "lr is -1.0; allowed is above 0"),
        # Nothing, or the same twice.
        (HEAD + "matrices: []\n", 3, "matrices of different names"),
        (HEAD + "matrices:\n  - {name: A, scales: [a4]}\n  - {name: A, scales: [a8]}\n", 3, "different names"),
        (HEAD + AVSR + METHODS + "[]\n", 6, "methods: nothing given"),
        (HEAD + AVSR + METHODS + "[MS, {name: MS, strategy: ss}]\n", 6, "methods: MS, MS given"),
        (HEAD + "seeds: []\n" + AVSR, 3, "seeds: nothing given"),
        (HEAD + "seeds: [1, 1]\n" + AVSR, 3, "seeds: 1, 1 given; one or more are needed, each once"),
        (HEAD + AVSR + "    seeds: []\n", 6, "seeds: nothing given"),
        (HEAD + AVSR + "    snr_db: []\n", 6, "snr_db: nothing given"),
        (HEAD + AVSR + "    snr_db: [5, 5.0]\n", 6, "snr_db: 5.0, 5.0 given"),
        (HEAD + AVSR + "    compression: [stack, stack]\n", 6, "compression: stack, stack given"),
        # What does not go together.
        (HEAD + AVSR + METHODS + "[{name: x, trained_at: [a4v2]}]\n", 6, "a4v5 was not trained"),
        (HEAD + AVSR + METHODS + "[MS,\n      {name: x, trained_at: [a8v2], untrained: pool}]\n", 7, "as fine as a4v2"),
        (HEAD + AVSR + METHODS + "[{name: x, trained_at: [a4], untrained: pool}]\n", 6, "as fine as a4v2"),
        (HEAD + AVSR + "    compression: [stack]\n    methods: [{name: x, untrained: between}]\n", 7, "stacked"),
        (HEAD + AVSR + METHODS + "[{name: x, strategy: mss, set: {model: {lora: {variant: dora}}}}]\n", 6, "'dora'"),
        (HEAD + "set: {video_encoder: null}\n" + AVSR + METHODS + "[MS]\n", 7, "need a lip encoder"),
        (HEAD + "set: {lips_from: grid-s1}\n" + AVSR, 3, "null beside video_encoder"),
        (HEAD + "set: {video_encoder: {distill_weight: 1}}\n" + AVSR.replace("a4v5", "v5") + METHODS + "[independent]",
         7, "distill_weight needs scales with sound"),
        (HEAD + "set:\n  model: {video: null}\n" + AVSR, 4, "need lips, but the model has no video encoder"),
        (HEAD + "set:\n  joint: {weights: {a9: 1}}\n" + AVSR, 3, r"joint\.weights is \['a9'\]; allowed is the"),
        # What the study itself says.
        (HEAD + "set:\n  seed: 3\n" + AVSR, 4, "seed is for seeds to say"),
        (HEAD + "set:\n  model:\n    scales: [a4]\n" + AVSR, 5, "scales is for scales to say"),
        (HEAD + AVSR + "    set: {model: {compression: stack}}\n", 6, "compression is for compression to say"),
        (HEAD + AVSR + METHODS + "[{name: x, set: {model: {lora: {strategy: ss}}}}]\n", 6, "a method's strategy"),
        # Recipes.
        ("title: T\nrecipe: grid\n" + AVSR, 2, "no recipe 'grid'; there are grid-s1"),
        ("title: T\nrecipe: none.json\n" + AVSR, 2, r"none\.json: No such file"),
        ("title: T\nrecipe: study.yaml.json\n" + AVSR, 2, r"study\.yaml\.json: Expecting value"),
        ("title: T\nrecipe: empty.json\n" + AVSR, 2, r"empty\.json: not a valid TrainConfig"),
        # YAML.
        (HEAD + "title: again\n" + AVSR, 3, "the key 'title' comes twice"),
        (HEAD + AVSR + METHODS + "[MS\n", 7, "expected ',' or"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_refused_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    (tmp_path / "study.yaml.json").write_text("title")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/study\.yaml:{line}: .*({said})"):
        _plan(tmp_path, text)


def test_the_studies_above_are_wrong_in_one_way_only(tmp_path: Path) -> None:
    assert len(_plan(tmp_path, HEAD + AVSR).runs) == 7
