"""What the model does with a part at a time: a pass under a policy, or at one of several scales to be compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from mtsk.inference.beam import Beams
from mtsk.inference.deciding import Decider
from mtsk.inference.encoded import EncodedExamples
from mtsk.inference.engine import Engine
from mtsk.inference.policy import Attempt, Choice, Known, Looks, Policy
from mtsk.inference.recording import Part, lacking
from mtsk.scale import Scale
from mtsk.types import Decision, Segment

_GREEDY = Beams()


class OnePass:
    """A policy as far as it gets without a look at lips that nobody has looked for; the look is for another thread.

    Args:
        inner: the policy.
        part: what it is for.
        earlier: what passes before the look gave.
        wanted: what the look was for.
    """

    def __init__(
        self, inner: Policy, part: Part, earlier: Sequence[Attempt] = (), wanted: Choice | None = None
    ) -> None:
        self._inner, self._earlier, self._wanted = inner, tuple(earlier), wanted
        self._is_unseen = part.example.mouth is None and "video" not in part.missing
        self.waits_for: Choice | None = None
        """What needs a look first."""
        self.attempts: tuple[Attempt, ...] = self._earlier

    def first(self, known: Known) -> Choice | None:
        """See `Policy`."""
        if self._wanted is not None and known.allows(self._wanted.scale):
            return self._wanted
        # Without lips after all, the policy is asked anew.
        if self._earlier:
            return self._seen(self._inner.next(known, self._earlier))
        return self._seen(self._inner.first(known))

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        """See `Policy`."""
        self.attempts = (*self._earlier, *attempts)
        return self._seen(self._inner.next(known, self.attempts))

    @property
    def looks(self) -> Looks:
        """See `Policy`."""
        return self._inner.looks

    def _seen(self, choice: Choice | None) -> Choice | None:
        if choice is not None and choice.scale.video is not None and self._is_unseen:
            self.waits_for = choice
            return None
        return choice


def joined(before: Segment | None, after: Segment | None) -> Segment | None:
    """A segment as all its passes made it: what the last one wrote, at the cost of all."""
    if before is None or after is None:
        return after or before
    assert before.decision is not None
    assert after.decision is not None
    return replace(
        after,
        num_tokens=before.num_tokens + after.num_tokens,
        decision=Decision(
            before.decision.tried + after.decision.tried,
            before.decision.flops + after.decision.flops,
            f"{before.decision.why}; {after.decision.why}",
        ),
    )


def decide(
    engine: Engine, parts: Sequence[Part], policies: Sequence[OnePass]
) -> tuple[list[Segment | None], dict[str, float]]:
    """One pass over parts of any requests, in one batch.

    Returns:
        The segment of each part; None where the policy waits for a look, or has no scale. And the seconds that all of
        them took together, by stage: `encode`, `decode`.
    """
    decider = Decider(engine, engine.costs, _GREEDY)
    segments = decider.decide(parts, policies, _never)[1]
    return segments, {stage: decider.seconds[stage] for stage in ("encode", "decode")}


def _never(part: Part) -> NoReturn:
    raise AssertionError(f"{part.example.id}: lips were looked for in the model's thread")


@dataclass(frozen=True)
class Compared:
    """One part at one scale.

    Attributes:
        scale: at which it was read; another than was asked for if sound or lips are missing.
        segment: at its place in the recording.
        seconds: of decoding.
    """

    scale: Scale
    segment: Segment
    seconds: float


class Comparison:
    """One part at several scales, encoded once; a scale at a time."""

    def __init__(self, engine: Engine, part: Part) -> None:
        self._engine, self._part = engine, part
        self._encoded: EncodedExamples | None = None
        self.encode_s = 0.0

    def read(self, scale: Scale) -> Compared | None:
        """At the next scale; None if the part lacks what it needs."""
        if self._encoded is None:
            started_s = time.perf_counter()
            self._encoded = self._engine.encode([self._part.example])
            self.encode_s = time.perf_counter() - started_s
        encoded = self._encoded
        reachable = [s for s in (scale, *scale.parts) if s in self._engine.grid]
        used = next(
            (s for s in reachable if not lacking(s, self._part.missing) and encoded.features.reaches(0, s)), None
        )
        if used is None:
            return None
        started_s = time.perf_counter()
        segment = self._engine.write(encoded, [used], _GREEDY)[0]
        decode_s = time.perf_counter() - started_s
        decision = Decision((used,), self._flops(encoded, used, segment.text), "as asked")
        return Compared(used, self._part.place(replace(segment, decision=decision)), decode_s)

    def _flops(self, encoded: EncodedExamples, scale: Scale, text: str) -> int:
        features, model = encoded.features, self._engine.model
        num = {
            letter: 0 if each is None else int(each.lengths_B[0])
            for letter, each in (("a", features.audio), ("v", features.video))
        }
        num_written = len(model.prompts.target(text)) - 1  # without the end
        projected = model.reading(scale).projected
        return self._engine.costs.cost_of(scale, num, num_written, projected=projected).total_flops
