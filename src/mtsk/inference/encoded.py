"""Examples after the encoders, before any scale is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtsk.data.collate import collate
from mtsk.inference.characters import Readings
from mtsk.inference.recording import duration_s
from mtsk.model.avsr import AvsrModel, Encoded
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


@torch.inference_mode()
def encode(model: AvsrModel, examples: Sequence[Example]) -> EncodedExamples:
    """Encodes the modalities that examples have, once for all scales. A row goes only through the encoders of what it
    has. On a processor each goes alone: in a batch none is quicker there, and what comes out would depend on it."""
    if model.device.type != "cpu" or len(examples) < 2:
        return _encode_together(model, examples)
    return _joined([_encode_together(model, [example]) for example in examples])


def _encode_together(model: AvsrModel, examples: Sequence[Example]) -> EncodedExamples:
    sound = [row for row, example in enumerate(examples) if example.waveform is not None and len(example.waveform)]
    lips = [row for row, example in enumerate(examples) if example.mouth is not None and len(example.mouth)]
    present = [s for s in model.grid if (sound or s.audio is None) and (lips or s.video is None)]
    parts = {part for scale in present for part in scale.parts}

    def encoded(examples: Sequence[Example], scales: Sequence[Scale]) -> Encoded:
        return model.encode(collate(examples).to(model.device), scales) if examples else Encoded(None, None)

    heard = [replace(examples[row], mouth=None) for row in sound]
    seen = [replace(examples[row], waveform=None) for row in lips]
    audio = encoded(heard, [part for part in parts if part.audio is not None]).audio
    video = encoded(seen, [part for part in parts if part.video is not None]).video
    num_rows = len(examples)
    features = model.in_context(Encoded(_spread(audio, sound, num_rows), _spread(video, lips, num_rows)))
    return EncodedExamples(features, Readings.of(model, features), tuple(map(duration_s, examples)))


def _spread(features: Features | None, rows: Sequence[int], num_rows: int) -> Features | None:
    """Features of some rows among all rows; the others have length 0."""
    if features is None or len(rows) == num_rows:
        return features
    values_BTD = features.values_BTD.new_zeros(num_rows, *features.values_BTD.shape[1:])
    lengths_B = features.lengths_B.new_zeros(num_rows)
    values_BTD[rows], lengths_B[rows] = features.values_BTD, features.lengths_B
    return Features(values_BTD, lengths_B)


def _joined(rows: Sequence[EncodedExamples]) -> EncodedExamples:
    """Rows that were encoded alone, as one batch."""
    audio, video = (_side_by_side([getattr(row.features, name) for row in rows]) for name in ("audio", "video"))
    read: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.readings.by_modality):
        its = [row.readings.by_modality.get(name, [None])[0] for row in rows]
        nothing_SC = next(each for each in its if each is not None)[:0]
        read[name] = [nothing_SC if each is None else each for each in its]
    durations_s = tuple(duration for row in rows for duration in row.durations_s)
    return EncodedExamples(Encoded(audio, video, True), replace(rows[0].readings, by_modality=read), durations_s)


def _side_by_side(features: Sequence[Features | None]) -> Features | None:
    """Features of one row each, None where it has none."""
    some = next((each for each in features if each is not None), None)
    if some is None:
        return None
    values = [some.values_BTD[0, :0] if each is None else each.values_BTD[0] for each in features]
    lengths = [0 if each is None else int(each.lengths_B[0]) for each in features]
    return Features(pad_sequence(values, batch_first=True), torch.tensor(lengths, device=some.lengths_B.device))


def only(example: Example, scale: Scale) -> Example:
    """What the scale needs of an example."""
    waveform = example.waveform if scale.audio is not None else None
    return replace(example, waveform=waveform, mouth=example.mouth if scale.video is not None else None)


@dataclass(frozen=True)
class Found:
    """A text that a row may say, and the mean log-probability of its tokens."""

    text: str
    mean_logprob: float
