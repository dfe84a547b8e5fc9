"""Labelling: what is decoded, when, and what is kept of it."""

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtsk.evaluation.labelling import label, whisper_decoder
from mtsk.evaluation.peers import Decoded
from mtsk.evaluation.wer import corpus_rate
from mtsk.types import SAMPLE_RATE_HZ, Example

SHARED = Path(os.environ.get("MTSK_SHARED", Path(__file__).parents[2] / ".." / "shared"))
LIBRISPEECH = SHARED / "data" / "librispeech"


class FakeDecoder:
    """Writes the number of samples, and stops where it is told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def decode(self, examples: Sequence[Example]) -> list[Decoded]:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked += [example.id for example in examples]
        lengths = [0 if example.waveform is None else len(example.waveform) for example in examples]
        return [Decoded(f"Mr. {length}", (-0.1, -0.4, -0.1)) for length in lengths]


def write(path: Path, duration_s: float) -> Path:
    soundfile.write(path, np.full(int(duration_s * SAMPLE_RATE_HZ), 0.1), SAMPLE_RATE_HZ, subtype="PCM_16")
    return path


@pytest.fixture
def found(tmp_path):
    return {name: write(tmp_path / f"{name}.wav", 0.1) for name in "abc"}


def test_labels_are_written_as_they_come_and_not_made_twice(found, tmp_path):
    path, first, second = tmp_path / "out" / "labels.jsonl", FakeDecoder(stop_after=2), FakeDecoder()
    with pytest.raises(KeyboardInterrupt):
        label(found, path, lambda: first, progress=False)
    assert [json.loads(text)["id"] for text in path.read_text().splitlines()] == ["a", "b"]
    labels = label(found, path, lambda: second, progress=False)
    assert (first.asked, second.asked) == (["a", "b"], ["c"])
    assert list(labels) == ["a", "b", "c"]
    made = labels["a"]
    assert (made.file, made.duration_s, made.raw_text) == ("a.wav", 0.1, "Mr. 1600")
    assert made.text == "mister one thousand six hundred"
    assert made.mean_log_prob == pytest.approx(-0.2)
    assert made.min_log_prob == -0.4
    assert made.confidence == pytest.approx(math.exp(-0.2))

    def never():
        raise AssertionError("nothing is left to decode")

    assert label(found, path, never, progress=False) == labels


def test_another_file_under_the_same_name_is_labelled_anew(found, tmp_path):
    path, again = tmp_path / "labels.jsonl", FakeDecoder()
    label(found, path, FakeDecoder, progress=False)
    write(found["b"], 0.2)
    assert label(found, path, lambda: again, progress=False)["b"].raw_text == "Mr. 3200"
    assert again.asked == ["b"]
    assert label(found, path, FakeDecoder, progress=False)["b"].raw_text == "Mr. 3200"  # the later line holds


def test_long_and_broken_files_are_not_decoded(tmp_path):
    (tmp_path / "broken.wav").write_text("dear")
    found = {"broken": tmp_path / "broken.wav", "long": write(tmp_path / "long.wav", 25.5)}
    decoder = FakeDecoder()
    labels = label(found, tmp_path / "labels.jsonl", lambda: decoder, progress=False)
    assert (decoder.asked, list(labels)) == ([], ["long"])
    assert "lasts 25.5 s" in labels["long"].refusal(0.0)


@pytest.mark.weights
def test_whisper_is_surer_of_speech_than_of_noise():
    from mtsk.checkpoints.sources import is_cached

    if not is_cached("whisper-base"):
        pytest.skip("the base weights are not in the cache; `make weights` fetches them")
    if not LIBRISPEECH.is_dir():
        pytest.skip("the development data is not beside the repository")
    with (LIBRISPEECH / "test-other.tsv").open() as file:
        line = next(csv.DictReader(file, delimiter="\t"))
    waveform = soundfile.read(LIBRISPEECH / "test-other" / line["file"], dtype="float32")[0]
    noise = np.random.default_rng(0).normal(0, 0.1, len(waveform)).astype(np.float32)
    decoder = whisper_decoder()
    ((speech,), (drowned,)) = (decoder.decode([Example("x", mix, None)]) for mix in (waveform, 0.1 * waveform + noise))
    assert corpus_rate([line["transcript"]], [speech.text]).value < 0.2
    assert speech.text[0].isupper()
    assert len(speech.log_probs) > len(speech.text.split())  # a token or more for each word, and the end
    assert all(value <= 0 for value in speech.log_probs)
    assert np.mean(speech.log_probs) > np.log(0.7) > np.mean(drowned.log_probs)
