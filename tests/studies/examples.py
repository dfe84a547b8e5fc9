"""A small study with known figures."""

import dataclasses

from mtsk.scale import Scale
from mtsk.studies.results import Cost, Measured, Results, RunFacts

WORDS = (10,) * 10


def measured(matrix: str, method: str, scale: str | None, percent: int, **more) -> Measured:
    """Every utterance has the same share of errors, so that the interval has no width: `percent` in tens."""
    parsed = None if scale is None else Scale.parse(scale)
    base = Measured(matrix, method, "average", 1, parsed, None, (percent // 10,) * 10, WORDS)
    return dataclasses.replace(base, **more)


def runs(
    matrix: str, method: str, models: list[str], *, seed: int = 1, num_trainable: int = 1_000_000
) -> list[RunFacts]:
    """One run per model, whose scales are separated by spaces."""
    scales = [tuple(Scale.parse(text) for text in model.split()) for model in models]
    return [RunFacts(matrix, method, "average", seed, each, num_trainable, 100, 60.0) for each in scales]


RESULTS = Results(
    "Strategies",
    {"hardware": "2 CPU cores", "data": "a | b"},
    (
        measured("ASR", "independent", "a4", 10),
        measured("ASR", "independent", "a8", 20),
        measured("ASR", "MS", "a4", 20),
        measured("ASR", "MS", "a4", 40, seed=2),
        measured("ASR", "MS", "a8", 10),
        measured("ASR", "training-free", "a4", 10),
        measured("ASR", "training-free", "a8", 190),
        measured("ASR", "MS", None, 90),
        measured("ASR", "MS", "a4", 50, snr_db=-5.0),
        measured("ASR", "MS", "a4", 30, snr_db=5.0),
        measured("AVSR", "SS", "a4v2", 10),
        measured("AVSR", "SS", "a4v5", 10),
        measured("AVSR", "MSS", "a4v2", 20),
    ),
    (Cost(Scale(8), 25.0, 0.00612, 0.5), Cost(Scale(4), 50.25, 11.4, 1234.5), Cost(Scale(4, 2), 60.0, 1.0, 2.0)),
    (
        *runs("ASR", "independent", ["a4", "a8"]),
        *runs("ASR", "independent", ["a4"], seed=2, num_trainable=2_000_000),
        *runs("ASR", "MS", ["a4 a8"], num_trainable=1_500_000),
    ),
)
