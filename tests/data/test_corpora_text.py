"""The spelling of transcripts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsk.data.corpora.text import plain_text
from mtsk.evaluation.wer import normalize


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("WHEN YOU'RE COOKING", "when you're cooking"),
        ("{NS} AND {LG} THEN { br }", "and then"),
        ("THE {UH} END", "the uh end"),  # said, unlike noise
        ("IN 1999 'CAUSE", "in 1999 'cause"),
        ("Well, I don\u2019t know - 3,000 of them?", "well i don't know 3000 of them"),
        ("He said 'never' and \u2018go\u2019.", "he said never and go"),
        ("he said 'stop now' loudly", "he said stop now loudly"),
        ("'TIL THE DOGS' TAILS GOIN' OL' 'EM 'BOUT '90S", "'til the dogs' tails goin' ol' 'em 'bout '90s"),
        ("'tellin' them 'we're done'", "tellin them we're done"),
        ("IT 'S", "it 's"),
        ("It is 3.5 or 1,000.25. 4. Next", "it is 3 point 5 or 1000 point 25 4 next"),
        ("a well-known snake_case thing", "a well known snake case thing"),
        ("3, 4,5 and 1,234,567", "3 4 5 and 1234567"),
        ("CAFE\u0301 \ufb01ne", "caf\u00e9 fine"),
        (" ' -- . ", ""),
        ("", ""),
    ],
)
def test_examples(text: str, plain: str) -> None:
    assert plain_text(text) == plain


@given(st.text(alphabet=st.sampled_from("aB9'\u2019 ,.-_{}\u00e9NS"), max_size=30))
def test_it_is_its_own_result_and_what_is_scored(text: str) -> None:
    plain = plain_text(text)
    assert plain_text(plain) == plain
    assert normalize(plain) == plain.split()


@given(st.lists(st.text(alphabet=st.sampled_from("aSiN9'"), max_size=6), max_size=4))
def test_words_alone_are_spelled_as_in_their_text(words: list[str]) -> None:
    assert " ".join(filter(None, map(plain_text, words))) == plain_text(" ".join(words))
