"""Word times by alignment: once per utterance, kept in a file, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, MonoCut

from mtsk.data.dataset import load_cuts, read_example
from mtsk.training.word_times import Align, with_word_times
from mtsk.types import SAMPLE_RATE_HZ, Word
from tests.training.prepared import write_split, write_utterance


class _Aligner:
    """Spreads the words evenly, and keeps count."""

    def __init__(self) -> None:
        self.num_made = 0
        self.texts: list[str] = []

    def make(self) -> Align:
        self.num_made += 1
        return self.align

    def align(self, waveform: np.ndarray, text: str) -> tuple[Word, ...]:
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        self.texts.append(text)
        return self.words(len(waveform) / SAMPLE_RATE_HZ, text)

    @staticmethod
    def words(duration_s: float, text: str) -> tuple[Word, ...]:
        if "set" in text:
            raise ValueError("text of 9 tokens given; at most 3 fit")
        words = text.split()
        edges = np.linspace(0.1, duration_s, len(words) + 1).tolist()
        return tuple(Word(*word) for word in zip(words, edges[:-1], edges[1:], strict=True))


@pytest.fixture
def cuts(tmp_path: Path) -> CutSet:
    """One with times; two without; one each without times and lips, without sound; one whose text does not fit."""
    for name in ("audio", "mouth"):
        (tmp_path / name).mkdir()
    made = [
        write_utterance(tmp_path, "timed_0"),
        write_utterance(tmp_path, "bare_1", words=False),
        write_utterance(tmp_path, "bare_2", words=False),
        write_utterance(tmp_path, "nolips_4", words=False, lips=False),
        write_utterance(tmp_path, "mute_5", words=False, sound=False),
        write_utterance(tmp_path, "crowded_7", words=False),
    ]
    write_split(tmp_path, "train", made)
    return load_cuts(tmp_path, "train")


def _without_words(cut: MonoCut) -> dict[str, object]:
    values: dict[str, object] = cut.to_dict()
    values["supervisions"] = [{k: v for k, v in cut.supervisions[0].to_dict().items() if k != "alignment"}]
    return values


def test_each_is_aligned_once_and_nothing_else_changes(
    cuts: CutSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "word_times.jsonl"
    aligner = _Aligner()
    timed = with_word_times(cuts, aligner.make, path)
    assert aligner.num_made == 1
    assert len(aligner.texts) == 4
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("2 of 6 utterances stay without word times")
    assert [cut.id for cut in timed] == [cut.id for cut in cuts]
    for before, after in zip(cuts, timed, strict=True):
        assert _without_words(before) == _without_words(after)
        words = read_example(after).words
        if before.id == "timed_0":
            assert words == read_example(before).words
            assert words
        elif before.id in ("mute_5", "crowded_7"):
            assert words == ()
        else:
            expected = aligner.words(before.duration, before.supervisions[0].text)
            assert [word.text for word in words] == [word.text for word in expected]
            for word, its in zip(words, expected, strict=True):
                assert (word.start_s, word.end_s) == pytest.approx((its.start_s, its.end_s), abs=1e-9)
            assert not read_example(before).words, "the cuts that were given were changed"
    again = with_word_times(cuts, aligner.make, path)
    assert aligner.num_made == 1
    assert [cut.to_dict() for cut in again] == [cut.to_dict() for cut in timed]
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize("cut_off", [1, 20, None], ids=["no newline", "half a line", "whole lines"])
def test_an_interruption_costs_one_alignment(cuts: CutSet, tmp_path: Path, cut_off: int | None) -> None:
    path = tmp_path / "word_times.jsonl"
    expected = with_word_times(cuts, _Aligner().make, path, say=lambda _: None)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    rest = b"".join(lines[:2])
    path.write_bytes(rest + lines[2][:-cut_off] if cut_off else rest)
    aligner = _Aligner()
    resumed = with_word_times(cuts, aligner.make, path, say=lambda _: None)
    assert len(aligner.texts) == 2
    assert path.read_bytes() == whole
    assert [cut.to_dict() for cut in resumed] == [cut.to_dict() for cut in expected]


def test_a_line_broken_elsewhere_is_an_error(cuts: CutSet, tmp_path: Path) -> None:
    path = tmp_path / "word_times.jsonl"
    with_word_times(cuts, _Aligner().make, path, say=lambda _: None)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{broken\n", *lines[2:]]))
    with pytest.raises(ValueError, match="line 2"):
        with_word_times(cuts, _Aligner().make, path)


def test_another_text_is_aligned_anew(cuts: CutSet, tmp_path: Path) -> None:
    path = tmp_path / "word_times.jsonl"
    with_word_times(cuts, _Aligner().make, path, say=lambda _: None)
    changed = CutSet([cut.map_supervisions(_in_other_words) if cut.id == "bare_1" else cut for cut in cuts])
    aligner = _Aligner()
    timed = with_word_times(changed, aligner.make, path, say=lambda _: None)
    assert aligner.texts == ["other words"]
    assert [word.text for word in read_example(timed["bare_1"]).words] == ["other", "words"]


def _in_other_words(supervision):
    supervision.text = "other words"
    return supervision


def test_long_ones_are_not_tried(cuts: CutSet, tmp_path: Path) -> None:
    """Longer than the aligner takes: not even read."""
    long = cuts["bare_1"].to_dict()
    long["duration"] = 30.5
    long["recording"]["sources"][0]["source"] = "nowhere.flac"
    said: list[str] = []
    aligner = _Aligner()
    timed = with_word_times(CutSet([MonoCut.from_dict(long)]), aligner.make, tmp_path / "times.jsonl", say=said.append)
    assert aligner.num_made == 0
    assert len(timed) == len(said) == 1
    assert not (tmp_path / "times.jsonl").exists()


def test_nothing_to_do_touches_nothing(cuts: CutSet, tmp_path: Path) -> None:
    timed = cuts.filter(lambda cut: cut.id == "timed_0").to_eager()
    aligner = _Aligner()
    assert with_word_times(timed, aligner.make, tmp_path / "none.jsonl") is timed
    assert aligner.num_made == 0
    assert not (tmp_path / "none.jsonl").exists()
