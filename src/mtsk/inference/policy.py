"""Policies: which scale to decode at, and whether to decode again. Pure functions of what is known of an utterance.

A policy never sees media or a model, so the command line, the server and the calibration use the same objects. All
budgets are per segment: what is decoded in one pass, at most some 16 s of a file, or one request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mtsk.config import AutoConfig, StepConfig
from mtsk.scale import FEATURE_S, Scale, ScaleGrid

if TYPE_CHECKING:
    from mtsk.inference.profile import Profile
    from mtsk.model.cost import CostModel


@dataclass(frozen=True)
class Known:
    """What is known of an utterance before it is encoded: how long its sound and its lips are, 0 without.

    Pictures in which nobody has looked for lips yet count as lips.
    """

    sound_s: float
    lips_s: float
    snr_db: float | None = None
    """As `estimate_snr_db` guesses it; None without sound."""

    @property
    def duration_s(self) -> float:
        """The longer of both."""
        return max(self.sound_s, self.lips_s)

    def allows(self, scale: Scale) -> bool:
        """Whether there is at least one token of each modality of a scale."""
        seconds = {"a": self.sound_s / FEATURE_S["audio"], "v": self.lips_s / FEATURE_S["video"]}
        return all(round(seconds[letter], 6) >= (scale.rate(letter) or 0) for letter in scale.task)


@dataclass(frozen=True)
class Attempt:
    """What one pass gave."""

    scale: Scale
    text: str
    confidence: float | None
    """From 0 to 1, see `Segment.sureness`; None where nothing estimated it."""


@dataclass(frozen=True)
class Choice:
    """A scale, and why."""

    scale: Scale
    why: str


Looks = Literal["never", "first", "if needed"]
"""Whether a file is read for its sound alone, for both, or for its sound and then, in places, for its lips."""


class Policy(Protocol):
    """Decides for one utterance at a time."""

    def first(self, known: Known) -> Choice | None:
        """The scale to begin with; None if there is none for what the utterance has."""
        ...

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        """The scale to decode at once more after these attempts, at least one; None: the last one is kept."""
        ...

    @property
    def looks(self) -> Looks:
        """When it needs to see lips."""
        ...


@dataclass(frozen=True)
class Fixed:
    """One scale; where sound or lips are missing, the other alone at its rate."""

    scale: Scale

    def first(self, known: Known) -> Choice | None:
        """See `Policy`."""
        if known.allows(self.scale):
            return Choice(self.scale, "as asked")
        alone = next((part for part in self.scale.parts if known.allows(part)), None)
        return None if alone is None else Choice(alone, f"{self.scale} needs {_lack(known)}")

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        """See `Policy`."""
        del known, attempts
        return None

    @property
    def looks(self) -> Looks:
        """See `Policy`."""
        return "never" if self.scale.video is None else "first"


Price = Callable[[Scale, float], float]
"""What a scale costs for so many seconds of recording, in the unit of a budget."""


@dataclass(frozen=True)
class Budget:
    """The finest trained scale whose predicted price fits, per segment: that with the most tokens a second, but lips
    alone only where there is no sound. If nothing fits, the cheapest, and the decision says so.

    Attributes:
        limit: at most so much.
        unit: of the limit and the price: `tokens`, `TFLOPs`, `ms`.
        price: predicts, from the duration alone.
    """

    grid: ScaleGrid
    limit: float
    unit: str
    price: Price

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"a budget of {self.limit:g} {self.unit}; more than 0 is needed")

    def first(self, known: Known) -> Choice | None:
        """See `Policy`."""
        usable = _finest_first(self.grid, known)
        if not usable:
            return None
        prices = {scale: self.price(scale, known.duration_s) for scale in usable}
        fits = next((scale for scale in usable if prices[scale] <= self.limit), None)
        scale = min(usable, key=prices.__getitem__) if fits is None else fits
        verdict = "over budget" if fits is None else "budget"
        return Choice(scale, f"{verdict}: {prices[scale]:.3g} of {self.limit:g} {self.unit}")

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        """See `Policy`."""
        del known, attempts
        return None

    @property
    def looks(self) -> Looks:
        """See `Policy`."""
        return "if needed" if self.grid.video_rates else "never"


@dataclass(frozen=True)
class Auto:
    """Coarse first, finer where the text is unsure; lips only where the sound is noisy or the text unsure.

    Attributes:
        grid: the trained scales.
        config: of the model's calibration; see `mtsk calibrate`.
    """

    grid: ScaleGrid
    config: AutoConfig

    def __post_init__(self) -> None:
        for band in self.config.bands:
            for step in band.steps:
                self.grid.require(step.scale)

    def first(self, known: Known) -> Choice | None:
        """See `Policy`."""
        steps = self._steps(known)
        sound = "no sound" if known.snr_db is None else f"sound at {known.snr_db:.0f} dB"
        if steps:
            return Choice(steps[0].scale, sound)
        usable = _finest_first(self.grid, known)
        return Choice(usable[0], f"{sound}, {_lack(known)} missing") if usable else None

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        """See `Policy`."""
        last, steps = attempts[-1], self._steps(known)
        at = next((i for i, step in enumerate(steps) if step.scale == last.scale), len(steps))
        if at + 1 >= len(steps):
            return None
        # What has no confidence is not trusted.
        confidence = last.confidence or 0.0
        if confidence >= steps[at].min_confidence:
            return None
        return Choice(steps[at + 1].scale, f"unsure, {confidence:.2f} < {steps[at].min_confidence:.2f}")

    @property
    def looks(self) -> Looks:
        """See `Policy`."""
        return "if needed" if self.grid.video_rates else "never"

    def _steps(self, known: Known) -> list[StepConfig]:
        """Of the band of this sound the steps that can be made."""
        snr_db = float("-inf") if known.snr_db is None else known.snr_db
        band = next(b for b in self.config.bands if b.min_snr_db is None or snr_db >= b.min_snr_db)
        return [step for step in band.steps if known.allows(step.scale)]


def _finest_first(grid: ScaleGrid, known: Known) -> list[Scale]:
    """The scales that an utterance allows: with its sound, if that is possible; of equally fine ones sound first."""
    usable = [scale for scale in grid if known.allows(scale)]
    heard = [scale for scale in usable if scale.audio is not None]
    return sorted(heard or usable, key=lambda scale: (-scale.tokens_per_second, scale))


def _lack(known: Known) -> str:
    return "lips" if known.sound_s else "sound"


def token_budget(grid: ScaleGrid, limit: float) -> Budget:
    """Of LLM tokens that media become; text and prompt are not counted.

    Raises:
        ValueError: if the limit is not above 0.
    """

    def price(scale: Scale, duration_s: float) -> float:
        features = {name: int(round(duration_s / each, 6)) for name, each in FEATURE_S.items()}
        return scale.num_tokens(num_audio_features=features["audio"], num_video_features=features["video"])

    return Budget(grid, limit, "tokens", price)


def tflops_budget(grid: ScaleGrid, costs: CostModel, limit: float) -> Budget:
    """Of 10^12 operations of all stages, with as much text as ordinary speech has.

    Raises:
        ValueError: if the limit is not above 0.
    """
    return Budget(grid, limit, "TFLOPs", lambda scale, duration_s: costs.cost(scale, duration_s).total_flops / 1e12)


def ms_budget(grid: ScaleGrid, costs: CostModel, profile: Profile, limit: float) -> Budget:
    """Of milliseconds on a measured machine that does nothing else; reading the file is not counted.

    Raises:
        ValueError: if the limit is not above 0.
    """
    return Budget(grid, limit, "ms", lambda scale, duration_s: profile.ms(costs, scale, duration_s))
