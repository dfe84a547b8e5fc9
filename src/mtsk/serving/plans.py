"""What a request asks for, and the ways to read it, from what was asked to the coarsest that it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtsk.inference.engine import Engine
from mtsk.inference.policy import Budget, Fixed, Known, Policy
from mtsk.inference.segments import MAX_SEGMENT_S
from mtsk.scale import Scale
from mtsk.serving.errors import ApiError
from mtsk.serving.predict import Estimate, Predictor

DEFAULT_ID = "mtsk"
ALIASES = (DEFAULT_ID, "whisper-1")  # the second is what stock clients ask for
POLICIES = ("auto", "elastic", "fixed")
_MIN_SAVING = 0.1  # of the seconds: a step that saves less is left out
_CLEAN_DB = 30.0  # how clean sound is taken to be before it is heard

PolicyName = Literal["auto", "elastic", "fixed"]


@dataclass(frozen=True)
class Found:
    """What a file has, before it is decoded."""

    duration_s: float
    has_sound: bool
    has_video: bool

    @property
    def segment(self) -> Known:
        """Its first segment, pictures counting as lips."""
        length_s = min(self.duration_s, MAX_SEGMENT_S)
        return Known(length_s if self.has_sound else 0.0, length_s if self.has_video else 0.0, _CLEAN_DB)


@dataclass(frozen=True)
class Plan:
    """One way to read a file.

    Attributes:
        name: the scale, or `auto`.
        policy: of each of its segments.
        media: decoding the file.
        model: all its segments.
        segment: the first one.
    """

    name: str
    policy: Policy
    media: Estimate
    model: Estimate
    segment: Estimate


@dataclass(frozen=True)
class Wish:
    """What a client asked for.

    Attributes:
        start: a scale, `best` (the finest for what the file has) or `auto`.
        budget_ms: instead: the finest scale that takes so long for a segment.
        may_degrade: whether it may be read coarser than that.
    """

    start: Scale | Literal["best", "auto"]
    budget_ms: float | None = None
    may_degrade: bool = True


def parse_wish(
    engine: Engine, default: str, model: str, scale: str | None, budget_ms: float | None, policy: PolicyName | None
) -> Wish:
    """Reads the fields of a request; `default` is what `mtsk` stands for.

    Raises:
        ApiError: for an unknown model, scale or policy, or fields that exclude each other.
    """
    name, at, named = model.partition("@")
    if name not in ALIASES or (at and name != DEFAULT_ID):
        raise unknown_model(engine, model)
    if at and named != "auto":
        try:
            engine.grid.require(Scale.parse(named))
        except ValueError:
            raise unknown_model(engine, model) from None
    if named and scale and named != scale:
        raise ApiError(400, f"model {model} and scale {scale} given; one of them is allowed", param="scale")
    named = named or scale or ""
    if named == "auto" and scale is None:
        named, policy = "", policy or "auto"
    given = [field for field, value in (("scale", named), ("budget_ms", budget_ms)) if value]
    if len(given) > 1 or (given and policy == "auto"):
        fields = ", ".join([*given, *(["policy=auto"] if policy == "auto" else [])])
        raise ApiError(400, f"{fields} given; one of them is allowed", param=given[-1])
    if budget_ms is not None:
        if not 0 < budget_ms < float("inf"):
            raise ApiError(400, f"budget_ms {budget_ms:g}: more than 0 is needed", param="budget_ms")
        return Wish("best", budget_ms, policy != "fixed")
    if policy == "auto":
        require_auto(engine)
        return Wish("auto")
    if named:
        return Wish(start_of(engine, named), may_degrade=policy == "elastic")
    return Wish("best", may_degrade=False) if policy == "fixed" else Wish(start_of(engine, default))


def start_of(engine: Engine, text: str) -> Scale | Literal["best", "auto"]:
    """Reads a scale, `best` or `auto`.

    Raises:
        ApiError: if the model was not trained at the scale.
    """
    if text == "best":
        return "best"
    if text == "auto":
        return "auto"
    try:
        return engine.grid.require(Scale.parse(text))
    except ValueError as error:
        raise ApiError(400, str(error), param="scale", code="unknown_scale") from None


def require_auto(engine: Engine) -> Policy:
    """The policy `auto`.

    Raises:
        ApiError: if the model was not calibrated.
    """
    try:
        return engine.auto
    except ValueError as error:
        raise ApiError(400, str(error), param="policy", code="not_calibrated") from None


def model_ids(engine: Engine) -> list[str]:
    """What may be given as `model`, but for aliases."""
    return [DEFAULT_ID, *(f"{DEFAULT_ID}@{scale}" for scale in engine.grid)]


def unknown_model(engine: Engine, model: str) -> ApiError:
    """No such model."""
    message = f"the model {model[:100]!r} does not exist; there are: {', '.join(model_ids(engine))}"
    return ApiError(404, message, param="model", code="model_not_found")


class Planner:
    """Finds the ways to read files.

    Args:
        engine: the model.
        predictor: says what they take.
    """

    def __init__(self, engine: Engine, predictor: Predictor) -> None:
        self._engine = engine
        self._predictor = predictor

    def plans(self, wish: Wish, found: Found) -> list[Plan]:
        """The ways from what was asked to the coarsest that is allowed, each quicker than the one before."""
        usable = self._usable(found)
        if wish.start == "auto":
            first = self._auto(found)
        elif wish.budget_ms is not None and usable:
            first = self.at(self._within(wish.budget_ms, found) or usable[0], found)
        elif isinstance(wish.start, Scale):
            first = self.at(wish.start, found)
        else:
            first = self.at(usable[0] if usable else self._engine.grid.scales[0], found)
        plans, seconds = [first], _whole_s(first)
        if wish.may_degrade:
            rest = sorted((self.at(scale, found) for scale in usable), key=_whole_s, reverse=True)
            for plan in rest:
                if _whole_s(plan) <= (1 - _MIN_SAVING) * seconds:
                    plans.append(plan)
                    seconds = _whole_s(plan)
        return plans

    def at(self, scale: Scale, found: Found) -> Plan:
        """At one scale."""
        return self._plan(str(scale), Fixed(scale), scale, found)

    def all_of(self, scales: Sequence[Scale], found: Found) -> Plan:
        """At several scales, to be compared."""
        plans = [self.at(scale, found) for scale in scales]
        richest = max(plans, key=lambda plan: plan.media.seconds)
        model = Estimate("compare", sum(plan.model.seconds for plan in plans))
        segment = Estimate("compare", sum(plan.segment.seconds for plan in plans))
        return Plan("compare", richest.policy, richest.media, model, segment)

    def _auto(self, found: Found) -> Plan:
        policy = require_auto(self._engine)
        choice = policy.first(found.segment)
        return self._plan("auto", policy, choice.scale if choice else self._engine.grid.scales[0], found)

    def _plan(self, name: str, policy: Policy, scale: Scale, found: Found) -> Plan:
        sees = found.has_video and (policy.looks == "first" or (policy.looks == "if needed" and not found.has_sound))
        return Plan(
            name,
            policy,
            self._predictor.media(found.duration_s, lips=sees),
            self._predictor.reading(scale, found.duration_s, name),
            self._predictor.reading(scale, min(found.duration_s, MAX_SEGMENT_S), name),
        )

    def _within(self, budget_ms: float, found: Found) -> Scale | None:
        """The finest scale that reads a segment in so many milliseconds, its part of the file included."""

        def price(scale: Scale, duration_s: float) -> float:
            sees = scale.video is not None
            media = self._predictor.media(duration_s, lips=sees)
            return 1000 * (
                self._predictor.seconds(media) + self._predictor.seconds(self._predictor.reading(scale, duration_s))
            )

        choice = Budget(self._engine.grid, budget_ms, "ms", price).first(found.segment)
        return None if choice is None else choice.scale

    def _usable(self, found: Found) -> list[Scale]:
        """The scales for what a file has, finest first; lips alone only where there is no sound."""
        usable = [scale for scale in self._engine.grid if found.segment.allows(scale)]
        heard = [scale for scale in usable if scale.audio is not None]
        return sorted(heard or usable, key=lambda scale: (-scale.tokens_per_second, scale))


def _whole_s(plan: Plan) -> float:
    """By the cost model alone: the order of plans does not change with what is measured."""
    return plan.media.seconds + plan.model.seconds
