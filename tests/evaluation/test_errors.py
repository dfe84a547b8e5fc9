"""Kinds of errors: each rule on a small example, and reports that say what was sorted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsk.evaluation.error_report import write_errors
from mtsk.evaluation.errors import FLAGS, KINDS, Lexicon, WordError, has_loop, read_counts, skeleton, sort_errors
from mtsk.evaluation.grid import NO_INPUT, Hypothesis, Row
from mtsk.evaluation.wer import corpus_rate, word_errors
from mtsk.scale import Scale

WORDS = st.lists(st.sampled_from(["the", "some", "thing", "something", "mister", "hale", "steel", "still"]), max_size=9)
COUNTS = {"steel": 9, "grain": 5, "lobster": 4, "something": 80}


def num_tokens(word: str) -> int:
    """Of a tokenizer that has learnt two names, and every other word in either spelling."""
    return 1 if word.lower() != word or word not in ("margaret", "judah") else 2


LEXICON = Lexicon(COUNTS, num_tokens)


def sorted_errors(reference: str, text: str, duration_s: float = 0.0) -> list[WordError]:
    return list(sort_errors(Hypothesis("u0", reference, text, duration_s), LEXICON).errors)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("said margaret then", "said market then", [("margaret", "market", "name")]),
        ("judah's son", "due's son", [("judah's", "due's", "name")]),
        ("asked mister thornton to", "asked mister fortune to", [("thornton", "fortune", "name")]),
        ("tell mister that", "tell mister this", [("that", "this", "function")]),
        ("in steel", "on steel", [("in", "on", "function")]),
        ("anyone's", "any ones", [(None, "any", "boundary"), ("anyone's", "ones", "boundary")]),
        ("what flavour", "what flavor", [("flavour", "flavor", "spelling")]),
        ("the plough", "the plow", [("plough", "plow", "spelling")]),
        ("the lobster", "the blanket", [("lobster", "blanket", "rare")]),
        ("the grain", "the brick", [("grain", "brick", "other")]),
        ("two steel", "two blue grey steel", [(None, "blue", "other"), (None, "grey", "other")]),
        ("two steel", "two thank you so steel", [(None, word, "hallucinated") for word in ("thank", "you", "so")]),
        ("all right", "all right", []),
    ],
)
def test_each_error_has_its_kind(reference, text, expected):
    found = sorted_errors(reference, text)
    assert sorted(map(str, found)) == sorted(str(WordError(*each)) for each in expected)


@pytest.mark.parametrize(("reference", "text"), [("some thing here", "something here"), ("anyone", "any one")])
def test_joined_and_split_words(reference, text):
    """Whichever of the two words the alignment pairs with the one."""
    assert [error.kind for error in sorted_errors(reference, text)] == ["boundary"] * 2


@settings(deadline=None)
@given(WORDS, WORDS)
def test_the_errors_are_those_that_the_rate_counts(said, written):
    reference, text = " ".join(said), " ".join(written)
    errors, counted = sorted_errors(reference, text), word_errors(reference, text)
    operations = [error.operation for error in errors]
    assert operations.count("substitution") == counted.substitutions
    assert operations.count("deletion") == counted.deletions
    assert operations.count("insertion") == counted.insertions
    assert {error.kind for error in errors} <= set(KINDS)


def test_without_counts_nothing_is_rare_and_without_a_tokenizer_titles_tell_names():
    def kind(reference: str, text: str) -> str:
        return sort_errors(Hypothesis("u0", reference, text), Lexicon()).errors[0].kind

    assert kind("the lobster", "the blanket") == "other"
    assert kind("margaret", "market") == "other"
    assert kind("miss margaret", "miss market") == "name"


@pytest.mark.parametrize(
    ("reference", "text", "duration_s", "flags"),
    [
        ("", "thank you", 9.0, ("in silence",)),
        ("two steel", "", 9.0, ("no text",)),
        ("a b c d e f", "a b c d e g", 1.0, ()),  # whoever speaks that quickly is not held against the text
        ("a b", "a b c d e f", 1.0, ("faster than speech",)),
        ("a b", "a b c d e f", 1.2, ()),
        ("no", "no no no no", 9.0, ("loop",)),
        ("no no no no", "no no no no", 9.0, ()),
        ("we go", "we go so we go so we go so", 9.0, ("loop",)),
    ],
)
def test_what_cannot_have_been_said(reference, text, duration_s, flags):
    assert sort_errors(Hypothesis("u0", reference, text, duration_s), LEXICON).flags == flags


def test_loops():
    assert not has_loop(["no"] * 3)
    assert not has_loop(["so", "we", "go"] * 2 + ["so", "we"])
    assert has_loop(["well"] + ["so", "we", "go"] * 3)
    assert not has_loop([])


@pytest.mark.parametrize(
    ("word", "other"),
    [("colour", "color"), ("centre", "center"), ("knight", "night"), ("realise", "realize"), ("phial", "file")],
)
def test_what_sounds_alike(word, other):
    assert skeleton(word) == skeleton(other)


def test_what_does_not():
    assert len({skeleton(word) for word in ("chin", "kin", "shin", "thin", "sin", "akin")}) == 6


def test_counts_are_read_from_sentences_and_counts(tmp_path: Path):
    files = {"a.txt": "Steel, and\nsteel", "b.json": '{"x": "steel and steel"}', "c.json": '["steel and", "steel"]'}
    files["d.json"] = '{"steel": 2, "and": 1}'
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert read_counts(tmp_path / name) == {"steel": 2, "and": 1}
    (tmp_path / "e.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"e\.json: neither sentences"):
        read_counts(tmp_path / "e.json")


def test_the_report_says_what_was_sorted(tmp_path: Path):
    hypotheses = (
        Hypothesis("u0", "said margaret", "said market", 2.0),
        Hypothesis("u1", "two steel", "", 2.0),
        Hypothesis("u2", "all right", "all right", 2.0),
    )
    rate = corpus_rate([each.reference for each in hypotheses], [each.text for each in hypotheses])
    rows = [Row("a4", Scale.parse("a4"), -5.0, rate, hypotheses), Row(NO_INPUT, None, None, rate, hypotheses)]
    write_errors(rows, tmp_path, LEXICON)
    content = json.loads((tmp_path / "errors.json").read_text(encoding="utf-8"))
    assert content["rules"]["kinds"] == KINDS
    (record,) = content["rows"]
    assert (record["scale"], record["snr_db"], record["words"], record["errors"]) == ("a4", -5.0, 6, 3)
    assert record["operations"] == {"substitution": 1, "deletion": 2, "insertion": 0}
    assert record["kinds"] == {**dict.fromkeys(KINDS, 0), "name": 1, "rare": 1, "other": 1}
    assert record["flags"] == {**dict.fromkeys(FLAGS, 0), "no text": 1}
    assert ["margaret", "market", 1] in record["confusions"]
    assert [each["utterance"] for each in record["worst"]] == ["u1", "u0"]
    text = (tmp_path / "errors.md").read_text(encoding="utf-8")
    assert "| a4 at -5 dB | 6 | 3 | 1 | 2 | 0 | 0 | 0 | 1 (33 %) |" in text
    assert "`u1`: 2 errors in 2 words, no text" in text
