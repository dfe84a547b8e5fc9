"""`Engine.recognize`: batches that mix tasks, scales and lengths give what each example gives alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsk.inference.engine import Engine
from mtsk.scale import Scale
from mtsk.types import Example
from tests.tiny import SCALES, tiny_example, tiny_examples, tiny_model

scales = st.sampled_from([Scale.parse(name) for name in SCALES])
requests = st.lists(st.tuples(scales, st.integers(8, 40)), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=["ms", "mss"])
def engine(request: pytest.FixtureRequest) -> Engine:
    # In double precision: beams have no rule for near ties, which rounding decides one way or the other.
    return Engine(tiny_model(request.param), device="cpu", dtype=torch.float64)


def _example(row: int, num_frames: int) -> Example:
    return tiny_example("", num_frames / 25, num_frames, id=f"row{row}", seed=row)


@settings(max_examples=15, deadline=None)
@given(requests, st.sampled_from([1, 3]))
def test_each_result_is_that_of_the_example_alone(engine: Engine, wanted: list[tuple[Scale, int]], beams: int) -> None:
    examples = [_example(row, num_frames) for row, (_, num_frames) in enumerate(wanted)]
    its_scales = [scale for scale, _ in wanted]
    together = engine.recognize(examples, its_scales, beams=beams, num_best=beams)
    for example, scale, segment in zip(examples, its_scales, together, strict=True):
        [alone] = engine.recognize([example], [scale], beams=beams, num_best=beams)
        same_but_rounding = replace(segment, confidence=alone.confidence, avg_logprob=alone.avg_logprob)
        assert alone == same_but_rounding
        assert alone.avg_logprob == pytest.approx(segment.avg_logprob, abs=1e-4)
        assert alone.confidence == pytest.approx(segment.confidence, abs=1e-4)
        assert segment.scale == scale
        assert (segment.start_s, segment.end_s) == (0.0, len(example.mouth) / 25 if example.mouth is not None else 0.0)


def test_what_a_scale_has_not_is_not_used(engine: Engine) -> None:
    example, other = tiny_examples()[0], tiny_examples(seed=1)[0]
    for name, changed in (("a4", replace(example, mouth=None)), ("v2", replace(example, waveform=other.waveform))):
        scale = Scale.parse(name)
        batch = engine.recognize([example, other, changed], [scale, Scale.parse("a4v2"), scale])
        assert batch[0].text == batch[2].text
        assert batch[0].text


def test_alternatives(engine: Engine) -> None:
    [segment] = engine.recognize(tiny_examples()[:1], [Scale.parse("a4")], beams=4, num_best=3)
    assert 1 <= len(segment.alternatives) <= 2
    assert segment.text not in segment.alternatives
    [single] = engine.recognize(tiny_examples()[:1], [Scale.parse("a4")], beams=4)
    assert single.text == segment.text
    assert single.alternatives == ()


def test_refusals(engine: Engine) -> None:
    examples = [_example(0, 20), tiny_example("", 1.0, None, id="deaf"), _example(2, 4)]
    a4, v5 = Scale.parse("a4"), Scale.parse("v5")
    with pytest.raises(ValueError, match="3 examples, but 2 scales"):
        engine.recognize(examples, [a4, v5])
    with pytest.raises(ValueError, match="deaf: no sound or lips, or too short, for a token at scale v5"):
        engine.recognize(examples[:2], [v5, v5])
    with pytest.raises(ValueError, match=r"row2: .*too short.* v5"):
        engine.recognize(examples, [a4, a4, v5])
    with pytest.raises(ValueError, match="a8 was not trained"):
        engine.recognize(examples, [Scale.parse("a8"), a4, a4])
    with pytest.raises(ValueError, match="the 2 best of 1 beams"):
        engine.recognize(examples[:1], [a4], num_best=2)
    assert engine.recognize([], []) == []
