"""What every scale makes of the same utterances, and at what cost: for calibration and for reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mtsk.inference.beam import Beams
from mtsk.inference.deciding import Reader
from mtsk.model.cost import Cost, CostModel
from mtsk.scale import Scale
from mtsk.types import Example, Segment


@dataclass(frozen=True)
class Tried:
    """An utterance at one scale."""

    row: int  # among the examples
    segment: Segment
    cost: Cost
    encode_flops: dict[str, int]  # by modality of the scale, `a` and `v`
    seconds: float  # for encoding all that the scales need, and decoding: an equal share of the batch


def try_scales(
    reader: Reader, costs: CostModel, examples: Sequence[Example], scales: Iterable[Scale]
) -> Iterator[Tried]:
    """Encodes examples once, and decodes them at each scale, as far as they have what it needs."""
    started_s = time.perf_counter()
    encoded = reader.encode(examples)
    encode_s = (time.perf_counter() - started_s) / len(examples)
    for scale in scales:
        rows = [row for row in range(len(examples)) if encoded.features.reaches(row, scale)]
        if not rows:
            continue
        started_s = time.perf_counter()
        segments = reader.write(encoded.rows(rows), [scale] * len(rows), Beams())
        seconds = encode_s + (time.perf_counter() - started_s) / len(rows)
        for row, segment in zip(rows, segments, strict=True):
            num_written = len(reader.model.prompts.target(segment.text)) - 1  # without the end
            num_features = {
                letter: 0 if part is None else int(part.lengths_B[row])
                for letter, part in (("a", encoded.features.audio), ("v", encoded.features.video))
            }
            alone = {part.task: costs.cost_of(part, num_features, 0).encode_flops for part in scale.parts}
            yield Tried(row, segment, costs.cost_of(scale, num_features, num_written), alone, seconds)
