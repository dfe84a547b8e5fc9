"""What requests ask for, and the ways that they allow."""

from typing import Any

import pytest

from mtsk.inference.engine import Engine
from mtsk.inference.policy import Auto, Fixed
from mtsk.scale import Scale
from mtsk.serving.errors import ApiError
from mtsk.serving.plans import Found, Planner, Wish, parse_wish
from mtsk.serving.predict import Predictor

BOTH, SOUND, PICTURES = Found(5.0, True, True), Found(5.0, True, False), Found(5.0, False, True)


@pytest.fixture
def planner(engine: Engine) -> Planner:
    return Planner(engine, Predictor(engine))


def wish(engine: Engine, model: str = "mtsk", default: str = "best", **fields: Any) -> Wish:
    given = {"scale": None, "budget_ms": None, "policy": None} | fields
    return parse_wish(engine, default, model, given["scale"], given["budget_ms"], given["policy"])


def test_what_may_be_asked(engine: Engine) -> None:
    assert wish(engine) == Wish("best")
    assert wish(engine, "whisper-1") == Wish("best")
    assert wish(engine, default="a4v2") == Wish(Scale(4, 2))
    assert wish(engine, default="auto") == Wish("auto")
    assert wish(engine, policy="fixed", default="a16") == Wish("best", may_degrade=False)
    assert wish(engine, policy="auto") == wish(engine, "mtsk@auto") == Wish("auto")
    assert wish(engine, "mtsk@a4v2") == wish(engine, scale="4,2") == Wish(Scale(4, 2), may_degrade=False)
    assert wish(engine, scale="a16", policy="elastic") == Wish(Scale(16))
    assert wish(engine, "mtsk@a16", scale="a16") == Wish(Scale(16), may_degrade=False)
    assert wish(engine, budget_ms=50.0) == Wish("best", 50.0)
    assert wish(engine, budget_ms=50.0, policy="fixed") == Wish("best", 50.0, False)


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "gpt-9"}, 404, "model", "'gpt-9' does not exist; there are: mtsk, mtsk@a4,"),
        ({"model": "mtsk@a9"}, 404, "model", "'mtsk@a9' does not exist"),
        ({"model": "mtsk@"}, 404, "model", "'mtsk@' does not exist"),
        ({"model": "whisper-1@a4"}, 404, "model", "does not exist"),
        ({"model": "mtsk@a4", "scale": "a16"}, 400, "scale", "one of them is allowed"),
        ({"scale": "a9"}, 400, "scale", "scale a9 was not trained; this model has: a4 a16"),
        ({"scale": "fine"}, 400, "scale", "'fine' is not a scale"),
        ({"scale": "a4", "budget_ms": 5.0}, 400, "budget_ms", "one of them is allowed"),
        ({"scale": "a4", "policy": "auto"}, 400, "scale", "one of them is allowed"),
        ({"budget_ms": -1.0}, 400, "budget_ms", "more than 0 is needed"),
    ],
)
def test_what_may_not(engine: Engine, fields: dict[str, Any], status: int, param: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as raised:
        wish(engine, **fields)
    assert (raised.value.status, raised.value.body.error.param) == (status, param)


def names(planner: Planner, wish: Wish, found: Found) -> list[str]:
    return [plan.name for plan in planner.plans(wish, found)]


def test_ways_begin_as_asked_and_grow_cheaper(planner: Planner) -> None:
    for start in ("best", "auto", Scale(4, 2), Scale(16), Scale(None, 2)):
        for found in (BOTH, SOUND, PICTURES):
            plans = planner.plans(Wish(start), found)
            seconds = [plan.media.seconds + plan.model.seconds for plan in plans]
            assert seconds == sorted(seconds, reverse=True)
            assert len({plan.name for plan in plans}) == len(plans)
            [alone] = planner.plans(Wish(start, may_degrade=False), found)
            assert alone == plans[0]


def test_the_finest_for_what_a_file_has(planner: Planner) -> None:
    assert names(planner, Wish("best"), BOTH)[0] == "a4v2"
    assert names(planner, Wish("best"), SOUND)[0] == "a4"
    assert names(planner, Wish("best"), PICTURES)[0] == "v2"


def test_lips_are_given_up_but_not_sound(planner: Planner) -> None:
    ways = names(planner, Wish("best"), BOTH)
    assert ways[-1] in ("a4", "a16")
    assert not any(name.startswith("v") for name in ways)
    assert names(planner, Wish("best"), PICTURES)[-1].startswith("v")
    assert all("v" not in name for name in names(planner, Wish("auto"), SOUND))


def test_policies(planner: Planner) -> None:
    first, *others = planner.plans(Wish("auto"), BOTH)
    assert isinstance(first.policy, Auto)
    assert first.media.kind == "sound"  # lips are looked for later, if at all
    assert all(isinstance(plan.policy, Fixed) for plan in others)
    assert planner.plans(Wish("auto"), PICTURES)[0].media.kind == "lips"


def test_budgets(planner: Planner) -> None:
    assert names(planner, Wish("best", 1e9), BOTH)[0] == "a4v2"
    assert names(planner, Wish("best", 1e-9), BOTH) == ["a16"]


def test_long_files_cost_their_length(planner: Planner) -> None:
    [short] = planner.plans(Wish(Scale(4), may_degrade=False), Found(10.0, True, False))
    [long] = planner.plans(Wish(Scale(4), may_degrade=False), Found(100.0, True, False))
    assert 7 < long.model.seconds / short.model.seconds < 13
    assert long.segment.seconds < 2 * short.segment.seconds
