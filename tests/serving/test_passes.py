"""One pass at a time: what waits for a look at lips, and goes on after it, ends as a policy that looks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mtsk.inference.beam import Beams
from mtsk.inference.deciding import Decider
from mtsk.inference.encoded import EncodedExamples
from mtsk.inference.engine import Engine
from mtsk.inference.policy import Auto, Choice, Fixed
from mtsk.inference.recording import Part
from mtsk.scale import Scale
from mtsk.serving.passes import Comparison, OnePass, decide, joined
from mtsk.types import Example
from tests.tiny import tiny_example


def example() -> Example:
    return tiny_example("", 1.2, 30)


def unseen(whole: Example) -> Part:
    """Before anybody looked for lips."""
    return Part(2.0, 3.2, replace(whole, mouth=None), {})


def looked(whole: Example, reason: str | None) -> Part:
    """After a look that found lips, or why not."""
    return (
        replace(unseen(whole), example=whole) if reason is None else replace(unseen(whole), missing={"video": reason})
    )


@pytest.mark.parametrize("reason", [None, "no face"])
def test_two_passes_end_as_one_that_looks(engine: Engine, reason: str | None) -> None:
    whole = example()
    after = looked(whole, reason)
    decider = Decider(engine, engine.costs, Beams())
    _, [expected] = decider.decide([unseen(whole)], [engine.auto], lambda _: after)
    first = OnePass(engine.auto, unseen(whole))
    [before], seconds = decide(engine, [unseen(whole)], [first])
    assert before is not None
    assert (before.scale, first.waits_for is not None) == (Scale(16), True)
    assert seconds["decode"] > 0
    second = OnePass(engine.auto, after, first.attempts, first.waits_for)
    [more], _ = decide(engine, [after], [second])
    found = joined(before, more)
    assert found is not None
    assert expected is not None
    assert second.waits_for is None
    assert (found.text, found.scale, found.start_s) == (expected.text, expected.scale, 2.0)
    assert found.num_tokens == expected.num_tokens
    assert found.decision is not None
    assert expected.decision is not None
    assert found.decision.tried == expected.decision.tried
    assert found.decision.flops >= expected.decision.flops


def test_lips_that_are_wanted_first(engine: Engine) -> None:
    whole = example()
    policy = Fixed(Scale(4, 2))
    first = OnePass(policy, unseen(whole))
    assert decide(engine, [unseen(whole)], [first])[0] == [None]
    assert first.waits_for == Choice(Scale(4, 2), "as asked")
    blind = looked(whole, "no face")
    [found], _ = decide(engine, [blind], [OnePass(policy, blind, first.attempts, first.waits_for)])
    assert found is not None
    assert found.scale == Scale(4)


def test_seen_lips_need_no_wait(engine: Engine) -> None:
    whole = example()
    seen = looked(whole, None)
    each = OnePass(Auto(engine.grid, engine.auto.config), seen)
    [found], _ = decide(engine, [seen], [each])
    assert found is not None
    assert found.scale == Scale(4, 2)
    assert each.waits_for is None


def test_a_comparison_encodes_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = example()
    part = replace(unseen(whole), example=whole)
    expected = [engine.recognize([whole], [scale])[0] for scale in engine.grid]
    encode, num_calls = engine.encode, []

    def counted(examples: Sequence[Example]) -> EncodedExamples:
        num_calls.append(len(examples))
        return encode(examples)

    monkeypatch.setattr(engine, "encode", counted)
    comparison = Comparison(engine, part)
    for scale, segment in zip(engine.grid, expected, strict=True):
        found = comparison.read(scale)
        assert found is not None
        assert (found.segment.text, found.scale) == (segment.text, scale)
        assert found.segment.decision is not None
        assert found.segment.decision.flops > 0
    assert num_calls == [1]


def test_a_comparison_without_lips(engine: Engine) -> None:
    part = looked(example(), "no face")
    comparison = Comparison(engine, part)
    assert comparison.read(Scale(None, 2)) is None
    found = comparison.read(Scale(4, 2))
    assert found is not None
    assert found.scale == Scale(4)
