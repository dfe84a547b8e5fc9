"""The grid with a recogniser whose errors are planted, so that every cell's WER is known."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mtsk.evaluation.grid import NO_INPUT, Hypothesis, Peer, Recognized, Row, evaluate, measure
from mtsk.evaluation.wer import Rate
from mtsk.scale import Scale
from mtsk.types import Example

TEXTS = ("bin blue at f two now", "lay red by g nine again", "set white in z one soon", "place green with o six please")
WAVEFORM, MOUTH = np.zeros(16_000, np.float32), np.zeros((25, 96, 96), np.uint8)
A4, A16, V2, A4V2 = (Scale.parse(name) for name in ("a4", "a16", "v2", "a4v2"))


def examples_at(snr_db: float | None) -> list[list[Example]]:
    """Two batches of two; the noise level is written into the waveform, for the recogniser to hear."""
    level = 0.0 if snr_db is None else 10 ** (-snr_db / 20)
    examples = [Example(f"u{i}", WAVEFORM + np.float32(level), MOUTH, text) for i, text in enumerate(TEXTS)]
    return [examples[:2], examples[2:]]


class Planted:
    """Gets the last `wrong[scale]` words of every utterance wrong, one more if it hears noise."""

    def __init__(self, wrong: dict[Scale, int]) -> None:
        self.wrong = wrong
        self.encoded: list[Sequence[Example]] = []
        self.decoded: list[tuple[Scale, tuple[str, ...]]] = []

    def encode(self, examples: Sequence[Example]) -> Sequence[Example]:
        self.encoded.append(examples)
        return examples

    def usable(self, encoded: Sequence[Example], scale: Scale) -> list[int]:
        """Lips of a single frame are too short."""
        return [
            row
            for row, example in enumerate(encoded)
            if (scale.audio is None or example.waveform is not None)
            and (scale.video is None or (example.mouth is not None and len(example.mouth) > 1))
        ]

    def decode(self, encoded: Sequence[Example], scale: Scale, rows: Sequence[int]) -> list[str]:
        chosen = [encoded[row] for row in rows]
        assert self.usable(chosen, scale) == list(range(len(chosen)))
        self.decoded.append((scale, tuple(example.id for example in chosen)))
        texts = []
        for example in chosen:
            noisy = scale.audio is not None and example.waveform is not None and bool(example.waveform.any())
            num_wrong = self.wrong[scale] + noisy
            words = example.text.split()
            texts.append(" ".join(words[: len(words) - num_wrong] + ["wrong"] * num_wrong))
        return texts

    def decode_no_input(self, examples: Sequence[Example]) -> list[str]:
        return ["place green with o six please"] * len(examples)


class Echo:
    """A peer that is right about every utterance but the first of each batch, about which it says nothing."""

    def recognize(self, examples: Sequence[Example]) -> list[Recognized]:
        return [Recognized("", 2 * 10**12), *(Recognized(example.text, 4 * 10**12) for example in examples[1:])]


def run(
    tmp_path: Path,
    recognizer: Planted,
    scales: Sequence[Scale],
    snrs_db: Sequence[float | None] = (None, -5.0),
    dataset_of: Callable[[float | None], Iterable[Sequence[Example]]] = examples_at,
    peers: dict[str, Peer] | None = None,
) -> list[Row]:
    console = Console(file=io.StringIO())
    return evaluate(recognizer, dataset_of, scales, snrs_db, peers=peers, out_dir=tmp_path, console=console)


def lines_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "hypotheses.jsonl").read_text("utf-8").splitlines()]


def test_planted_errors_give_the_planted_wer(tmp_path):
    recognizer = Planted({A4: 1, A16: 2, V2: 3, A4V2: 0})
    rows = run(tmp_path, recognizer, [A4, A16, V2, A4V2], peers={"echo": Echo()})
    rates = {(row.name, row.snr_db): row.rate.value for row in rows}
    for name, clean, noisy in (("a4", 1, 2), ("a16", 2, 3), ("v2", 3, 3), ("a4v2", 0, 1)):
        assert rates[name, None] == pytest.approx(clean / 6)
        assert rates[name, -5.0] == pytest.approx(noisy / 6)
    assert rates["echo", None] == rates["echo", -5.0] == 0.5
    assert (
        rates[NO_INPUT, None] == rates[NO_INPUT, -5.0] == 18 / 24
    )  # the last sentence is right, the others share none
    assert [row.name for row in rows] == ["a4", "a16", "v2", "a4v2", "echo", NO_INPUT] * 2
    assert {row.name: row.scale for row in rows} == {
        **{"a4": A4, "a16": A16, "v2": V2, "a4v2": A4V2},
        **{"echo": None, NO_INPUT: None},
    }
    assert all((row.rate.words, row.rate.utterances) == (24, 4) for row in rows)


def test_what_each_row_costs(tmp_path):
    """Clips last a second; at a finer scale the planted operations are more, and they count the words written."""

    def flops_of(example: Example, scale: Scale, text: str) -> int:
        assert example.waveform is not None
        assert scale.audio is not None
        return len(text.split()) * len(example.waveform) * 10**9 // scale.audio

    console = Console(file=io.StringIO())
    rows = evaluate(
        Planted({A4: 1, A16: 2}), examples_at, [A4, A16], [None],
        peers={"echo": Echo()}, flops_of=flops_of, out_dir=tmp_path, console=console,
    )  # fmt: skip
    cost = {row.name: row.tflops_per_s for row in rows}
    assert cost == {"a4": pytest.approx(6 * 16 / 4), "a16": pytest.approx(6.0), "echo": 3.0, NO_INPUT: None}
    assert {row.name for row in rows if row.seconds is not None and row.seconds >= 0} == {"a4", "a16", "echo"}
    assert run(tmp_path, Planted({A4: 1}), [A4])[0].tflops_per_s is None  # not asked for


def test_time_is_the_median_over_utterances():
    hypotheses = tuple(Hypothesis(f"u{i}", "a", "a", 1.0, seconds) for i, seconds in enumerate((0.1, 0.3, 50.0)))
    assert Row("a4", A4, None, Rate(0.0, 0.0, 0.0, 3, 3), hypotheses).seconds == 0.3


def test_a_batch_is_encoded_once_for_all_scales(tmp_path):
    recognizer = Planted({A4: 1, A16: 2, A4V2: 0})
    run(tmp_path, recognizer, [A4, A16, A4V2])
    assert len(recognizer.encoded) == 4  # two batches at two SNRs


def test_lips_are_decoded_at_one_snr_and_written_for_all(tmp_path):
    recognizer = Planted({V2: 1})
    run(tmp_path, recognizer, [V2])
    assert recognizer.decoded == [(V2, ("u0", "u1")), (V2, ("u2", "u3"))]
    written = [(line["utterance"], line["snr_db"]) for line in lines_of(tmp_path) if line["scale"] == "v2"]
    assert written == [(f"u{i}", snr_db) for snr_db in (None, -5.0) for i in range(4)]


def test_a_modality_without_a_scale_is_not_encoded(tmp_path):
    recognizer = Planted({A4: 0})
    run(tmp_path, recognizer, [A4])
    assert all(example.mouth is None for examples in recognizer.encoded for example in examples)
    assert all(example.waveform is not None for examples in recognizer.encoded for example in examples)


def test_hypotheses_are_written_as_they_come(tmp_path):
    seen = []

    def dataset_of(snr_db):
        for batch in examples_at(snr_db):
            seen.append(len(lines_of(tmp_path)))
            yield batch

    run(tmp_path, Planted({A4: 1}), [A4], dataset_of=dataset_of)
    assert seen == [0, 4, 8 + 4, 8 + 4 + 2]  # a4 and no input per batch; at the second SNR no input is there at once
    lines = lines_of(tmp_path)
    assert len(lines) == 16
    assert lines[0] == {
        "utterance": "u0",
        "scale": "a4",
        "snr_db": None,
        "reference": "bin blue at f two now",
        "hypothesis": "bin blue at f two wrong",
    }
    assert lines[-1]["snr_db"] == -5.0


def test_progress_is_shown(tmp_path):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    evaluate(Planted({A4: 1}), examples_at, [A4], [-5.0], out_dir=tmp_path, console=console)
    assert "-5 dB" in file.getvalue()
    assert "4 utterances" in file.getvalue()


def gaps_at(snr_db: float | None) -> list[list[Example]]:
    """The first utterance has no lips, the second too short ones, the third no sound; the fourth has all."""
    (u0, u1), (u2, u3) = examples_at(snr_db)
    return [[replace(u0, mouth=None), replace(u1, mouth=MOUTH[:1])], [replace(u2, waveform=None), u3]]


def test_what_a_scale_cannot_use_is_left_out_and_told(tmp_path):
    file = io.StringIO()
    recognizer = Planted({A4: 1, V2: 2, A4V2: 0})
    rows = evaluate(
        recognizer, gaps_at, [A4, V2, A4V2], [None, -5.0], out_dir=tmp_path, console=Console(file=file, width=40)
    )
    used = {(row.name, row.snr_db): [each.utterance for each in row.hypotheses] for row in rows}
    for snr_db in (None, -5.0):
        assert used["a4", snr_db] == ["u0", "u1", "u3"]
        assert used["v2", snr_db] == ["u2", "u3"]
        assert used["a4v2", snr_db] == ["u3"]
        assert used[NO_INPUT, snr_db] == ["u0", "u1", "u2", "u3"]
    rates = {row.name: row.rate for row in rows if row.snr_db is None}
    assert rates["a4"].value == pytest.approx(1 / 6)
    assert (rates["a4"].words, rates["a4"].utterances) == (18, 3)
    assert [line for line in file.getvalue().splitlines() if "warning" in line] == [
        "mtsk: warning: a4: 1 of 4 utterances left out: no sound or too short",
        "mtsk: warning: v2: 2 of 4 utterances left out: no lips or too short",
        "mtsk: warning: a4v2: 3 of 4 utterances left out: no sound, no lips or too short",
    ]


def test_a_scale_that_no_utterance_reaches_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the 2 utterances can be used at v2 a4v2"):
        run(tmp_path, Planted({A4: 0}), [A4, V2, A4V2], dataset_of=lambda snr_db: gaps_at(snr_db)[:1])


def test_measure_is_the_row_of_the_grid(tmp_path):
    scales = [A4, V2, A4V2]
    rows = run(tmp_path, Planted({A4: 1, V2: 2, A4V2: 0}), scales, [-5.0], dataset_of=gaps_at)
    rates = measure(Planted({A4: 1, V2: 2, A4V2: 0}), gaps_at(-5.0), scales)
    assert rates == {row.scale: row.rate for row in rows if row.scale is not None}
    assert set(measure(Planted({A4: 1}), gaps_at(None)[:1], scales)) == {A4}


@pytest.mark.parametrize(
    ("scales", "snrs_db", "message"),
    [([A4], [], "at least one SNR"), ([A4, A4], [None], "repeated: a4"), ([A4], [0.0, 0.0], "repeated: 0.0")],
)
def test_an_odd_grid_is_refused(tmp_path, scales, snrs_db, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, Planted({A4: 0}), scales, snrs_db)


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 utterances"):
        run(tmp_path, Planted({A4: 0}), [A4], dataset_of=lambda _: [])
