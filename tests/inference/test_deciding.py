"""Decoding under a policy: the texts are those of the scales alone, each modality is encoded once, lips are looked for
only where they are needed, and what it cost is the sum of what was done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from mtsk.config import CtcConfig
from mtsk.inference.beam import Beams
from mtsk.inference.deciding import Decider
from mtsk.inference.encoded import EncodedExamples
from mtsk.inference.engine import Engine
from mtsk.inference.policy import Attempt, Choice, Fixed, Known, Looks, Policy
from mtsk.inference.recording import Part, duration_s
from mtsk.model.cost import Cost, CostModel
from mtsk.scale import Scale
from mtsk.types import Example, Segment
from tests.tiny import tiny_examples, tiny_model

A4, A16, A4V2, V5 = map(Scale.parse, ("a4", "a16", "a4v2", "v5"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = tiny_model()
    model.add_ctc(CtcConfig(hidden=8, num_layers=1, kernel=3))
    return Engine(model, device="cpu", dtype=torch.float32)


@dataclass(frozen=True)
class Scripted:
    """Goes through a list of scales, as far as they are possible; longer utterances further."""

    scales: tuple[Scale, ...]
    looks: Looks = "if needed"

    def first(self, known: Known) -> Choice | None:
        return next((Choice(scale, "first") for scale in self.scales if known.allows(scale)), None)

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        later = self.scales[self.scales.index(attempts[-1].scale) + 1 :]
        is_long = known.duration_s > len(attempts)
        return next((Choice(scale, "long") for scale in later if is_long and known.allows(scale)), None)


def _parts(examples: Sequence[Example]) -> list[Part]:
    return [Part(10.0, 10.0 + duration_s(example), example, {}) for example in examples]


class Counted:
    """An engine that notes what it encodes and decodes."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.model = engine, engine.model
        self.encoded: list[tuple[str, int]] = []
        self.decoded: list[list[str]] = []

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        self.encoded.append(("audio" if examples[0].mouth is None else "video", len(examples)))
        return self._engine.encode(examples)

    def write(self, encoded: EncodedExamples, scales: Sequence[Scale], beams: Beams) -> list[Segment]:
        self.decoded.append([str(scale) for scale in scales])
        return self._engine.write(encoded, scales, beams)


def _decide(
    reader: Counted, policy: Policy, parts: Sequence[Part], look: Callable[[Part], Part] | None = None
) -> list[Segment]:
    """The segments of parts that all have one."""
    decider = Decider(reader, CostModel.of_model(reader.model), Beams())
    segments = [segment for segment in decider.decide(parts, [policy] * len(parts), look)[1] if segment is not None]
    assert len(segments) == len(parts)
    return segments


def _tried(segments: Sequence[Segment]) -> list[tuple[Scale, ...]]:
    return [segment.decision.tried for segment in segments if segment.decision is not None]


def test_each_part_gets_the_text_of_its_last_scale(engine: Engine) -> None:
    examples = tiny_examples()  # 1.31, 0.76 and 2.0 s
    reader = Counted(engine)
    segments = _decide(reader, Scripted((A16, A4, A4V2)), _parts(examples))
    assert _tried(segments) == [(A16, A4), (A16,), (A16, A4)]
    assert reader.decoded == [["a16"] * 3, ["a4"] * 2]
    assert reader.encoded == [("audio", 3)]
    alone = engine.recognize(examples, [segment.scale for segment in segments])
    for segment, own, example in zip(segments, alone, examples, strict=True):
        assert (segment.text, segment.scale, segment.confidence) == (own.text, own.scale, own.confidence)
        assert (segment.start_s, segment.end_s) == (10.0, 10.0 + duration_s(example))
        assert [w.text for w in segment.words] == [w.text for w in own.words]
        assert [w.start_s - 10.0 for w in segment.words] == pytest.approx([w.start_s for w in own.words])
    assert segments[0].decision is not None
    assert segments[0].decision.why == "first: a16; long: a4"
    assert segments[0].num_tokens == alone[0].num_tokens + engine.recognize(examples[:1], [A16])[0].num_tokens


def test_what_was_encoded_is_paid_once(engine: Engine) -> None:
    [example] = tiny_examples(durations_s=(2.6,), num_frames=(65,), texts=("",))
    costs = CostModel.of_model(engine.model)
    [segment] = _decide(Counted(engine), Scripted((A16, A4V2)), _parts([example]))
    assert segment.decision is not None
    assert segment.decision.tried == (A16, A4V2)
    assert segment.decision.used_lips
    texts = [each.text for each in engine.recognize([example] * 2, [A16, A4V2])]
    num_features = {"a": 130, "v": 65}
    numbers = [len(engine.model.prompts.target(text)) - 1 for text in texts]
    coarse, fine = (costs.cost_of(s, num_features, n) for s, n in zip((A16, A4V2), numbers, strict=True))
    shared = coarse.stages["audio_encoder"].flops + coarse.stages["characters"].flops
    assert shared > 0
    assert segment.decision.flops == coarse.total_flops + fine.total_flops - shared
    assert Cost.of_passes([coarse]).total_flops == coarse.total_flops
    assert Cost.of_passes([fine, fine]).total_flops == 2 * fine.total_flops - fine.encode_flops


def test_lips_are_looked_for_once_and_only_where_they_are_needed(engine: Engine) -> None:
    examples = tiny_examples()
    seen: list[int] = []

    def look(part: Part) -> Part:
        row = next(i for i, each in enumerate(examples) if each.id == part.example.id)
        seen.append(row)
        return replace(part, example=examples[row])

    reader = Counted(engine)
    unseen = _parts([replace(example, mouth=None) for example in examples])
    segments = _decide(reader, Scripted((A16, A4V2)), unseen, look)
    assert seen == [0, 2]
    assert reader.encoded == [("audio", 3), ("video", 2)]
    assert [segment.scale for segment in segments] == [A4V2, A16, A4V2]
    assert [segment.text for segment in segments] == [
        segment.text for segment in engine.recognize(examples, [A4V2, A16, A4V2])
    ]


def test_without_a_face_the_policy_is_asked_anew(engine: Engine) -> None:
    examples = tiny_examples()
    blind = [replace(example, mouth=None) for example in examples]
    reader = Counted(engine)

    def look(part: Part) -> Part:
        return replace(part, missing={"video": "no face"})

    assert _tried(_decide(reader, Scripted((V5, A16)), _parts(blind), look)) == [(A16,)] * 3
    # After a pass it may still say no.
    assert _tried(_decide(reader, Scripted((A16, A4V2)), _parts(blind), look)) == [(A16,)] * 3


def test_a_batch_may_mix_policies_and_parts_without_a_scale(engine: Engine) -> None:
    examples = tiny_examples()
    policies: list[Policy] = [Scripted((A4,)), Scripted((A16,)), Fixed(V5)]
    segments = engine.recognize_by([examples[0], replace(examples[1], waveform=None), examples[2]], policies)
    assert [segment and segment.scale for segment in segments] == [A4, None, V5]
    assert engine.recognize_by([], []) == []
