"""How long requests will take on this machine: the cost model's numbers, corrected by what was measured."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from mtsk.inference.engine import Engine
from mtsk.inference.segments import MAX_SEGMENT_S
from mtsk.scale import Scale, ScaleGrid
from mtsk.serving.load import Corrections
from mtsk.types import VIDEO_FPS

# First guesses, of a processor with two cores; what is measured corrects them.
_FLOPS_PER_S, _BYTES_PER_S = 60e9, 10e9
_SOUND_S, _FRAME_S = 0.01, 0.004  # decoding a second of sound; a frame, and the face on it
_FIXED_S = 0.01  # of a file
_DRAFTED = 0.2  # share of the passes that are left where a draft is checked instead of written


@dataclass(frozen=True)
class Estimate:
    """Of some work.

    Attributes:
        kind: which correction applies.
        seconds: without it.
    """

    kind: str
    seconds: float


class Predictor:
    """Predicts seconds.

    Args:
        engine: what will do the work.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.corrections = Corrections()

    @property
    def grid(self) -> ScaleGrid:
        """The model's scales."""
        return self._engine.grid

    def seconds(self, estimate: Estimate) -> float:
        """With the correction so far."""
        return estimate.seconds * self.corrections.factor(estimate.kind)

    def media(self, duration_s: float, *, lips: bool) -> Estimate:
        """Of decoding a file, and following a face if lips are wanted."""
        per_second = _SOUND_S + (VIDEO_FPS * _FRAME_S if lips else 0.0)
        return Estimate("lips" if lips else "sound", _FIXED_S + duration_s * per_second)

    def reading(self, scale: Scale, duration_s: float, name: str | None = None) -> Estimate:
        """Of encoding and decoding at a scale.

        Args:
            name: of the policy that starts at the scale, if there is one.
        """
        num = max(1, math.ceil(duration_s / MAX_SEGMENT_S - 1e-6))
        # In steps of 0.2 s, so that few are computed.
        seconds = num * self._of_segment(scale, math.ceil(duration_s / num * 5) / 5)
        return Estimate(name or str(scale), seconds)

    def writing(self, scale: Scale, duration_s: float, num_written: int) -> float:
        """Seconds for a text of so many tokens of which no draft guesses any, without correction."""
        return self._seconds(scale, duration_s, num_written, 1.0)

    @functools.cache  # noqa: B019  (a server has one)
    def _of_segment(self, scale: Scale, duration_s: float) -> float:
        """With as much text as ordinary speech has."""
        return self._seconds(scale, duration_s, None, _DRAFTED if self._engine.model.ctc_heads() else 1.0)

    def _seconds(self, scale: Scale, duration_s: float, num_written: int | None, share_of_passes: float) -> float:
        projected = self._engine.model.reading(scale).projected
        cost = self._engine.costs.cost(scale, duration_s, num_text_tokens=num_written, projected=projected)
        num_bytes = sum(
            stage.weight_bytes * (share_of_passes if name == "decode" else 1.0)
            for name, stage in cost.stages.items()
            if name != "face"
        )
        flops = cost.total_flops - cost.stages["face"].flops
        return flops / _FLOPS_PER_S + num_bytes / _BYTES_PER_S
