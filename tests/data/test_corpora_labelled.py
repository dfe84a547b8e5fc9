"""Recordings without text: which labels are good enough, and the file that keeps them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mtsk.data.corpora import labelled
from mtsk.data.corpora.labelled import Label
from tests.data.conftest import write_tones

GOOD = Label(
    "labelled_103-1240-0000", "103-1240-0000.flac", 9, 3.0, "Mrs. Lind\u2019s well-known, \u201cchapter\u201d.",
    "missus lind's well known chapter", math.log(0.9), math.log(0.5),
)  # fmt: skip


def test_a_plain_label_is_kept_at_its_confidence_and_below():
    assert GOOD.confidence == pytest.approx(0.9)
    assert GOOD.refusal(0.89) == ""
    assert GOOD.refusal(0.91) == "the confidence of its label, 0.900, is below 0.91"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"duration_s": 25.1}, "lasts 25.1 s; allowed are up to 25 s"),
        ({"raw_text": "In 1880, the 1st"}, "has 0 1 8, which may be read in several ways: 'In 1880, the 1st'"),
        ({"raw_text": "all of it & more"}, "has &, which"),
        ({"raw_text": "[music]", "text": "music"}, "has [ ], which"),
        ({"raw_text": "", "text": ""}, "has 0 words: ''; at least 2"),
        ({"raw_text": "You.", "text": "you"}, "has 1 words: 'You.'"),
        ({"text": " ".join("abcdefghijklmnopqrs")}, "has 19 words in 3.0 s; allowed are 1 to 6 a second"),
        ({"duration_s": 5.1}, "has 5 words in 5.1 s"),
        ({"raw_text": "Chapter 17.5 of it"}, "has 1 5 7, which"),
        ({"raw_text": "at 12% or $9"}, "has $ % 1 2 9, which"),
        ({"raw_text": "King Henry VIII said"}, "has VIII, which"),
        ({"raw_text": "CHAPTER V The Abbot"}, "has CHAPTER V, which"),
        ({"duration_s": 20.0, "raw_text": "so it was, " * 8, "text": "so it was " * 8}, "repeats itself"),
    ],
)
def test_labels_that_may_be_wrong_are_refused(change, reason):
    assert reason in replace(GOOD, **change).refusal(0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"text": " ".join("abcdefghijklmnopqr")},
        {"duration_s": 5.0},
        {"raw_text": "Chapter 17, The 9 days."},
        {"raw_text": "I said: \u2018The last chapter, V. Vickers\u2019 \u2014 well\u2026'"},
    ],
)
def test_labels_at_the_limits_are_kept(change):
    assert replace(GOOD, **change).refusal(0.0) == ""


def test_recordings_are_found_in_folders_and_need_names_of_their_own(tmp_path):
    write_tones(tmp_path / "a", 2)
    assert list(labelled.recordings(tmp_path)) == ["labelled_u00", "labelled_u01"]
    write_tones(tmp_path / "b", 1)
    with pytest.raises(ValueError, match="have the same name"):
        labelled.recordings(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no media files"):
        labelled.recordings(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder"):
        labelled.recordings(tmp_path / "absent")


def test_sources_have_text_or_a_reason_and_talkers_stay_in_one_split():
    names = [f"{talker}-{chapter}-0000" for talker in range(300) for chapter in (7, 8)]
    found = {f"labelled_{name}": Path(f"{name}.flac") for name in [*names, "holiday"]}
    labels = {id: replace(GOOD, id=id) for id in found}
    labels["labelled_0-7-0000"] = replace(GOOD, mean_log_prob=math.log(0.3))
    del labels["labelled_1-7-0000"]
    corpus = labelled.list_sources(found, labels, 0.8)
    by_id = {source.id: source for source in corpus.sources}
    assert set(by_id) == set(found)
    assert "0.300, is below 0.8" in by_id["labelled_0-7-0000"].refusal
    assert by_id["labelled_0-7-0000"].text == ""
    assert by_id["labelled_1-7-0000"].refusal == "it could not be labelled"
    assert (by_id["labelled_2-8-0000"].text, by_id["labelled_2-8-0000"].refusal) == (GOOD.text, "")
    assert (by_id["labelled_2-8-0000"].speaker, by_id["labelled_holiday"].speaker) == ("2", "holiday")
    splits = {split: {s.speaker for s in corpus.sources if s.split == split} for split in ("train", "dev")}
    assert not splits["train"] & splits["dev"]
    assert 30 <= len(splits["dev"]) <= 70  # of 301
    assert "599 of 601" in corpus.notes[0]


def test_the_file_of_labels_loses_a_torn_last_line(tmp_path):
    path = tmp_path / "labels.jsonl"
    assert labelled.read_labels(path) == {}
    other = replace(GOOD, id="labelled_other")
    labelled.write_labels(path, [GOOD, other])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert labelled.read_labels(path) == {GOOD.id: GOOD}
    assert path.read_text() == labelled.line(GOOD)
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(ValueError, match="line 1 is not a label"):
        labelled.read_labels(path)
