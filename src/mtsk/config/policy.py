"""What `auto` decides by: a sequence of scales for each quality of the sound, and how sure a text must be to stay."""

from __future__ import annotations

from dataclasses import dataclass

from mtsk.config.checks import require
from mtsk.scale import Scale


@dataclass(frozen=True)
class StepConfig:
    """A pass at a scale."""

    scale: Scale
    min_confidence: float = 0.0
    """A text that is less sure is decoded again at the next step; the last step keeps any."""


@dataclass(frozen=True)
class BandConfig:
    """What is done with sound of some quality."""

    steps: tuple[StepConfig, ...]
    min_snr_db: float | None = None
    """From this estimate of the signal-to-noise ratio on; None: all that the bands before it leave."""

    def __post_init__(self) -> None:
        require(bool(self.steps), "band.steps", self.steps, "at least one step")


@dataclass(frozen=True)
class AutoConfig:
    """Thresholds of `auto`. `mtsk calibrate` chooses them and stores them in a checkpoint."""

    bands: tuple[BandConfig, ...]
    """From clean sound down."""
    data: str = ""
    """What they were chosen on, for the record."""

    def __post_init__(self) -> None:
        limits = [band.min_snr_db for band in self.bands]
        known = [limit for limit in limits if limit is not None]
        falling = known == sorted(known, reverse=True) and len(set(known)) == len(known)
        ordered = bool(limits) and limits[-1] is None and None not in limits[:-1] and falling
        require(ordered, "policy.bands", limits, "falling values of min_snr_db, the last one null")
