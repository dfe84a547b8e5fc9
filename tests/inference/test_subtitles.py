"""Cues: examples of each layout, and what holds for any segments."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtsk.inference.subtitles import MIN_CUE_MS, Cue, CueMaker, SubtitleOptions
from mtsk.inference.writers import render
from mtsk.types import Segment, Transcript, Word
from tests.inference.readers import Shown, plain, read_srt, read_vtt, scale, timed, untimed

WORDS = timed("bin blue at f two now", 0.5, 0.8, 0.8, 1.2, 1.3, 1.4, 1.4, 1.6, 1.7, 2.0, 2.0, 2.5, start_s=0, end_s=3)


def cues(segments: Sequence[Segment], options: SubtitleOptions | None = None) -> list[tuple[int, int, str]]:
    maker = CueMaker(options or SubtitleOptions(), str)
    made: list[Cue] = []
    for segment in segments:
        made += maker.add(segment)
    made += maker.close()
    return [(cue.start_ms, cue.end_ms, cue.text) for cue in made]


# Options.


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"max_line_width": 0}, "max_line_width 0: 1 is the least"),
        ({"max_line_width": 9, "max_line_count": -1}, "max_line_count -1: 1 is the least"),
        ({"max_words_per_line": 0}, "max_words_per_line 0: 1 is the least"),
        ({"max_line_count": 2}, "max_line_count 2 needs max_line_width"),
        ({"max_words_per_line": 2, "max_line_width": 9}, "exclude each other"),
    ],
)
def test_options_that_contradict(values: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SubtitleOptions(**values)  # type: ignore[arg-type]


def test_which_options_need_words() -> None:
    assert not SubtitleOptions().needs_words
    assert not SubtitleOptions(max_line_width=9).needs_words
    assert SubtitleOptions(max_line_width=9, max_line_count=2).needs_words
    assert SubtitleOptions(highlight_words=True).needs_words


# Layouts.


def test_a_cue_per_segment() -> None:
    segments = [untimed("bin blue", 0, 1.5), untimed("  ", 1.5, 2), untimed("set\n red", 2, 3.0004)]
    assert cues(segments) == [(0, 1500, "bin blue"), (2000, 3000, "set red")]
    assert cues([WORDS]) == [(500, 2500, "bin blue at f two now")]  # no longer than what is said


def test_lines_of_a_width() -> None:
    assert cues([WORDS], SubtitleOptions(max_line_width=8)) == [(500, 2500, "bin blue\nat f two\nnow")]
    assert cues([WORDS], SubtitleOptions(max_line_width=7)) == [(500, 2500, "bin\nblue at\nf two\nnow")]
    assert cues([WORDS], SubtitleOptions(max_line_width=1)) == [(500, 2500, "bin\nblue\nat\nf\ntwo\nnow")]


def test_lines_without_word_times() -> None:
    segment = untimed("bin blue at f two now", 0, 3)
    assert cues([segment], SubtitleOptions(max_line_width=8)) == [(0, 3000, "bin blue\nat f two\nnow")]
    assert cues([segment], SubtitleOptions(max_line_width=8, max_line_count=1)) == cues(
        [segment], SubtitleOptions(max_line_width=8)
    )  # one cue, as nothing says when a second would begin
    assert cues([segment], SubtitleOptions(highlight_words=True)) == [(0, 3000, "bin blue at f two now")]


def test_cues_of_some_lines() -> None:
    assert cues([WORDS], SubtitleOptions(max_line_width=8, max_line_count=1)) == [
        (500, 1200, "bin blue"),
        (1300, 2000, "at f two"),
        (2000, 2500, "now"),
    ]
    assert cues([WORDS], SubtitleOptions(max_line_width=8, max_line_count=2)) == [
        (500, 2000, "bin blue\nat f two"),
        (2000, 2500, "now"),
    ]


def test_cues_of_some_lines_fill_up_across_segments() -> None:
    options = SubtitleOptions(max_line_width=20, max_line_count=1)
    soon = timed("bin blue", 0, 1, 1, 2), timed("at f", 3, 4, 4, 5)
    assert cues(soon, options) == [(0, 5000, "bin blue at f")]
    assert cues(soon, SubtitleOptions(max_line_width=20)) == [(0, 2000, "bin blue"), (3000, 5000, "at f")]


def test_a_long_pause_begins_a_cue() -> None:
    options = SubtitleOptions(max_line_width=20, max_line_count=1)
    assert cues([timed("bin blue", 0, 1, 4, 5)], options) == [(0, 5000, "bin blue")]
    assert cues([timed("bin blue", 0, 1, 4.001, 5)], options) == [(0, 1000, "bin"), (4001, 5000, "blue")]


def test_a_segment_without_word_times_stands_alone() -> None:
    options = SubtitleOptions(max_line_width=20, max_line_count=1)
    segments = [timed("bin", 0, 1), untimed("blue at", 1, 2), timed("f", 2, 3)]
    assert cues(segments, options) == [(0, 1000, "bin"), (1000, 2000, "blue at"), (2000, 3000, "f")]


def test_cues_of_some_words() -> None:
    assert cues([WORDS], SubtitleOptions(max_words_per_line=4)) == [
        (500, 1600, "bin blue at f"),
        (1700, 2500, "two now"),
    ]


def test_highlights() -> None:
    segment = timed("bin blue at f", 0, 1, 1, 2, 2.5, 3, 3.01, 4)
    assert cues([segment], SubtitleOptions(max_line_width=8, highlight_words=True)) == [
        (0, 1000, "<u>bin</u> blue\nat f"),
        (1000, 2000, "bin <u>blue</u>\nat f"),
        (2000, 2500, "bin blue\nat f"),
        (2500, 3010, "bin blue\n<u>at</u> f"),  # a gap too short for a cue
        (3010, 4000, "bin blue\nat <u>f</u>"),
    ]


def test_a_complete_cue_does_not_wait() -> None:
    maker = CueMaker(SubtitleOptions(max_words_per_line=4), str)
    assert [cue.text for cue in maker.add(WORDS)] == ["bin blue at f", "two now"]
    maker = CueMaker(SubtitleOptions(max_line_width=8, max_line_count=1), str)
    assert [cue.text for cue in maker.add(WORDS)] == ["bin blue", "at f two"]
    assert [cue.text for cue in maker.close()] == ["now"]
    assert maker.close() == []


# Texts and their words.


@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("Bin, blue!", ["Bin", "blue"], ["Bin,", "blue!"]),
        ('he said "bin blue" -- now', ["he", "said", "bin", "blue", "now"], ["he", "said", '"bin', 'blue" --', "now"]),
        ("bin blue now", [" bin", " now", " "], ["bin blue", "now"]),  # a word that was not aligned
        ("今日は", ["今日", "は"], ["今日", "は"]),
        ("bin blue", ["bin", "red"], ["bin blue"]),  # words of something else: the text counts
    ],
)
def test_a_text_is_kept_whatever_its_words(text: str, words: list[str], shown: list[str]) -> None:
    times = tuple(Word(word, float(at), at + 1.0) for at, word in enumerate(words))
    made = cues([Segment(0, 9, text, scale(), 1, times)], SubtitleOptions(max_words_per_line=1))
    assert [cue for _, _, cue in made] == shown


def test_words_of_a_script_without_spaces_are_not_torn_apart() -> None:
    segment = Segment(0, 2, "今日は", scale(), 1, (Word("今日", 0, 1), Word("は", 1, 2)))
    assert cues([segment]) == [(0, 2000, "今日は")]
    assert cues([segment], SubtitleOptions(max_line_width=2)) == [(0, 2000, "今日\nは")]


# Times.


def test_times_that_overlap_or_lie_outside() -> None:
    one_each = SubtitleOptions(max_words_per_line=1)
    segment = timed("a b c d", -1, 0.5, 0.3, 0.4, 0.35, 9, 8, 9, start_s=0, end_s=1)
    assert [times[:2] for times in cues([segment], one_each)] == [(0, 500), (500, 520), (520, 980), (980, 1000)]


def test_a_segment_too_short_for_its_words_is_shared() -> None:
    segment = timed("a b", 1, 1, 1, 1, start_s=1, end_s=1.01)
    assert cues([segment], SubtitleOptions(max_words_per_line=1)) == [(1000, 1005, "a"), (1005, 1010, "b")]


def test_what_lies_wholly_in_the_past_follows() -> None:
    assert cues([untimed("a", 0, 5), untimed("b", 1, 4)]) == [(0, 5000, "a"), (5000, 5000 + MIN_CUE_MS, "b")]


# Any segments.

LAYOUTS = [
    SubtitleOptions(),
    SubtitleOptions(max_line_width=12),
    SubtitleOptions(max_line_width=12, max_line_count=2),
    SubtitleOptions(max_words_per_line=2),
    SubtitleOptions(highlight_words=True),
    SubtitleOptions(max_line_width=12, max_line_count=1, highlight_words=True),
]
# Other programs may be busy.
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
layouts = st.sampled_from(LAYOUTS)
times = st.floats(-10, 400_000) | st.floats(0, 3)
odd_texts = st.text(st.sampled_from("ab-<>&;u/ \n\r\t\u2028\x85\x1c1") | st.characters(codec="utf-8"), max_size=30)
spoken = st.text(st.sampled_from("abé-<>&'.今"), min_size=1, max_size=8)


@st.composite
def any_segments(draw: st.DrawFn) -> list[Segment]:
    """Times in any order, of words that are those of the text or are not."""
    segments = []
    for text in draw(st.lists(odd_texts, max_size=5)):
        said = draw(st.lists(spoken, max_size=3) | st.just(text.split()))
        words = tuple(Word(word, draw(times), draw(times)) for word in said)
        segments.append(Segment(draw(times), draw(times), text, scale(), 1, words))
    return segments


@st.composite
def good_segments(draw: st.DrawFn) -> list[Segment]:
    """One behind another, a tenth of a second or longer, all words with times, though those may be odd."""
    segments = []
    edge_s = 0.0
    for words in draw(st.lists(st.lists(spoken, min_size=1, max_size=5), min_size=1, max_size=5)):
        start_s, edge_s = edge_s, edge_s + draw(st.floats(0.11, 20))
        any_time = st.floats(-1, edge_s + 1)
        timed_words = tuple(Word(word, draw(any_time), draw(any_time)) for word in words)
        segments.append(Segment(start_s, edge_s, " ".join(words), scale(), 1, timed_words))
    return segments


def transcript(segments: Sequence[Segment]) -> Transcript:
    duration_s = segments[-1].end_s if segments else 1.0
    return Transcript("", scale(), 1, duration_s, {}, segments=tuple(segments))


def compact(text: str) -> str:
    """Without space, and with arrows as SubRip may have them."""
    return re.sub("-*>", ">", "".join(text.split()))


def check_order(shown: Sequence[Shown]) -> None:
    assert all(cue.start_ms < cue.end_ms for cue in shown)
    assert all(cue.end_ms <= following.start_ms for cue, following in itertools.pairwise(shown))


@unhurried
@given(any_segments(), st.sampled_from(LAYOUTS[:4]))
def test_any_segments_are_read_back(segments: list[Segment], options: SubtitleOptions) -> None:
    text = "".join(segment.text for segment in segments)
    srt = read_srt(render("srt", "a.wav", [transcript(segments)], options))
    vtt = read_vtt(render("vtt", "a.wav", [transcript(segments)], options))
    check_order(srt)
    assert [(cue.start_ms, cue.end_ms) for cue in srt] == [(cue.start_ms, cue.end_ms) for cue in vtt]
    assert compact("".join(cue.text for cue in srt)) == compact(text)
    assert compact("".join(plain(cue.text) for cue in vtt)) == compact(text)


@unhurried
@given(any_segments(), layouts)
def test_any_segments_in_any_layout_are_in_order(segments: list[Segment], options: SubtitleOptions) -> None:
    check_order(read_srt(render("srt", "a.wav", [transcript(segments)], options)))
    check_order(read_vtt(render("vtt", "a.wav", [transcript(segments)], options)))


@unhurried
@given(good_segments(), layouts)
def test_good_segments_keep_their_time(segments: list[Segment], options: SubtitleOptions) -> None:
    shown = read_vtt(render("vtt", "a.wav", [transcript(segments)], options))
    check_order(shown)
    assert all(cue.end_ms - cue.start_ms >= MIN_CUE_MS for cue in shown)
    assert shown[0].start_ms >= 0
    assert shown[-1].end_ms <= round(1000 * segments[-1].end_s)


@unhurried
@given(good_segments(), layouts)
def test_good_segments_keep_their_lines(segments: list[Segment], options: SubtitleOptions) -> None:
    for cue in read_vtt(render("vtt", "a.wav", [transcript(segments)], options)):
        lines = plain(cue.text).split("\n")
        assert len(lines) <= (options.max_line_count or len(lines))
        for line in lines:
            assert len(line) <= (options.max_line_width or len(line)) or " " not in line
            assert len(line.split(" ")) <= (options.max_words_per_line or len(line))


@unhurried
@given(good_segments(), st.sampled_from(LAYOUTS[:4]))
def test_good_segments_keep_their_words(segments: list[Segment], options: SubtitleOptions) -> None:
    shown = read_vtt(render("vtt", "a.wav", [transcript(segments)], options))
    words = [word.text for segment in segments for word in segment.words]
    assert " ".join(plain(line) for cue in shown for line in cue.lines).split(" ") == words


@unhurried
@given(good_segments(), st.sampled_from(LAYOUTS[4:]))
def test_each_word_is_highlighted_once(segments: list[Segment], options: SubtitleOptions) -> None:
    shown = read_vtt(render("vtt", "a.wav", [transcript(segments)], options))
    marked = [plain(found) for cue in shown for found in re.findall("<u>(.*?)</u>", cue.text)]
    assert marked == [word.text for segment in segments for word in segment.words]
    assert all(cue.text.count("<u>") <= 1 for cue in shown)
