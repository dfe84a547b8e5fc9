"""Examples after the encoders, before any scale is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtsk.inference.characters import Readings
from mtsk.model.avsr import Encoded
from mtsk.scale import Scale
from mtsk.types import Example, Features


@dataclass(frozen=True)
class EncodedExamples:
    """Features of some examples, what the character heads read in them, and how long each lasts."""

    features: Encoded
    readings: Readings
    durations_s: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.durations_s)

    def rows(self, rows: Sequence[int]) -> EncodedExamples:
        """The chosen rows."""
        read = {name: [each[row] for row in rows] for name, each in self.readings.by_modality.items()}
        durations_s = tuple(self.durations_s[row] for row in rows)
        return EncodedExamples(self.features.rows(rows), replace(self.readings, by_modality=read), durations_s)


def spread(features: Features | None, rows: Sequence[int], num_rows: int) -> Features | None:
    """Features of some rows among all rows; the others have length 0."""
    if features is None or len(rows) == num_rows:
        return features
    values_BTD = features.values_BTD.new_zeros(num_rows, *features.values_BTD.shape[1:])
    lengths_B = features.lengths_B.new_zeros(num_rows)
    values_BTD[rows], lengths_B[rows] = features.values_BTD, features.lengths_B
    return Features(values_BTD, lengths_B)


def only(example: Example, scale: Scale) -> Example:
    """What the scale needs of an example."""
    waveform = example.waveform if scale.audio is not None else None
    return replace(example, waveform=waveform, mouth=example.mouth if scale.video is not None else None)


@dataclass(frozen=True)
class Found:
    """A text that a row may say, and the mean log-probability of its tokens."""

    text: str
    mean_logprob: float
