"""What kinds of errors a recogniser makes: each wrong word in one kind, and texts that cannot be what was said."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jiwer

from mtsk.evaluation.grid import Hypothesis
from mtsk.evaluation.wer import normalize

Operation = Literal["substitution", "deletion", "insertion"]

# In this order: a word is of the first kind that fits.
KINDS = {
    "hallucinated": "inserted, three words or more in a row",
    "boundary": "words joined or split, their letters agree: `some thing` for `something`",
    "name": "the word said is a name: the tokenizer of the language model writes it in fewer tokens with a capital, or "
    "a title such as `mister` stands before it. Names that neither tells are of the kinds below",
    "function": "the word said, or inserted, is an article, pronoun, preposition, auxiliary, conjunction or the like",
    "spelling": "nearly the word said: at most two letters differ and no more than half of them, or the consonants "
    "sound alike (`colour` for `color`)",
    "rare": "the word said comes less than five times in the counted sentences",
    "other": "the rest",
}
FLAGS = {
    "in silence": "a text although nothing was said",
    "no text": "nothing although something was said",
    "faster than speech": "more than five words a second, and more words than were said",
    "loop": "the same words again and again: one word four times, several three times",
}
_HALLUCINATED_RUN = 3
_RARE_BELOW = 5
_WORDS_PER_S = 5.0
_MOST_JOINED = 4  # words
_LONGEST_LOOP = 8  # words
_TITLES = {"mister", "missus", "miss", "doctor", "madame", "monsieur", "captain", "saint"}
_FUNCTION_WORDS_TEXT = """
a about above across after against ain't all along although am among an and any anybody anyone anything are aren't
around as at be because been before being below between both but by can can't cannot could couldn't did didn't do does
doesn't doing don't down during each either else every everybody everyone everything few for from had hadn't has
hasn't have haven't having he he'd he'll he's her here hers herself him himself his how i i'd i'll i'm i've if in into
is isn't it it'd it'll it's its itself me might mine more most much must my myself neither no nobody none nor not
nothing of off on one or other others ought our ours ourselves out over own shall shan't she she'd she'll she's should
shouldn't so some somebody someone something such than that that's the thee their theirs them themselves then there
there's these they they'd they'll they're they've thine this those thou though through thy thyself till to too toward
towards under unless until unto up upon us very was wasn't we we'd we'll we're we've were weren't what what's when
where whether which while who who's whom whose why will with within without won't would wouldn't ye yet you you'd
you'll you're you've your yours yourself yourselves
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
_SOUNDS = [
    *((r"^(?:kn|gn|pn)", "n"), (r"^wr", "r"), (r"^wh", "w"), (r"^ps", "s"), (r"^x", "s")),
    *(("tch", "ch"), ("dg", "j"), ("gh", ""), ("ph", "f"), ("ck", "k"), ("sch", "sk"), ("qu", "kw"), ("x", "ks")),
    *((r"c(?=[eiy])", "s"), (r"c(?!h)", "k"), ("q", "k"), ("z", "s"), (r"^[aeiouy]+", "a")),
    *((r"(?<!^)[aeiouyw]", ""), (r"(?<![cst])h", ""), (r"(.)\1+", r"\1")),
]


@dataclass(frozen=True)
class WordError:
    """One edit: the word that was said, the word that was written in its place, and the kind out of `KINDS`."""

    reference: str | None  # None: inserted
    hypothesis: str | None  # None: left out
    kind: str

    @property
    def operation(self) -> Operation:
        """What was done to the reference."""
        if self.reference is None:
            return "insertion"
        return "deletion" if self.hypothesis is None else "substitution"


@dataclass(frozen=True)
class UtteranceErrors:
    """All that is wrong with one text."""

    hypothesis: Hypothesis
    errors: tuple[WordError, ...]
    flags: tuple[str, ...]  # out of `FLAGS`


@dataclass(frozen=True)
class Lexicon:
    """What is known of words.

    Args:
        counts: how often a word comes in the training sentences; None: nothing is called rare.
        num_tokens: of a word with a space before it, by a tokenizer that keeps capitals; None: names by title alone.
    """

    counts: Mapping[str, int] | None = None
    num_tokens: Callable[[str], int] | None = None

    def is_rare(self, word: str) -> bool:
        """Whether it comes less than five times in the counted sentences."""
        return self.counts is not None and self.counts.get(word, 0) < _RARE_BELOW

    def is_name(self, word: str, before: str | None) -> bool:
        """Whether it is one after this word."""
        stem = word.removesuffix("'s")
        if stem in _FUNCTION_WORDS or not stem:
            return False
        by_capital = self.num_tokens is not None and self.num_tokens(stem.capitalize()) < self.num_tokens(stem)
        return by_capital or before in _TITLES


def read_counts(path: Path) -> Counter[str]:
    """How often words come: out of a JSON file (sentences, as a list or by name; or counts by word), or a text file of
    sentences.

    Raises:
        ValueError: if it is neither.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return Counter(normalize(text))
    content = json.loads(text)
    entries = list(content.values()) if isinstance(content, dict) else content
    if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
        return Counter(word for entry in entries for word in normalize(entry))
    if isinstance(content, dict) and all(isinstance(entry, int) for entry in entries):
        return Counter(content)
    raise ValueError(f"{path}: neither sentences (a list, or by name) nor counts by word")


def sort_errors(hypothesis: Hypothesis, lexicon: Lexicon) -> UtteranceErrors:
    """Every edit of a shortest alignment in its kind; what is odd about the text as a whole."""
    said, written = normalize(hypothesis.reference), normalize(hypothesis.text)
    errors = [error for region in _regions(said, written) for error in _sorted_region(region, said, written, lexicon)]
    return UtteranceErrors(hypothesis, tuple(errors), tuple(_flags(said, written, hypothesis.duration_s)))


_Edit = tuple[int | None, int | None]  # position among the words said, among the words written


def _regions(said: Sequence[str], written: Sequence[str]) -> Iterator[list[_Edit]]:
    """The edits that stand side by side."""
    region: list[_Edit] = []
    for chunk in jiwer.process_words(" ".join(said), " ".join(written)).alignments[0]:
        if chunk.type == "equal":
            if region:
                yield region
            region = []
            continue
        before: range | list[None] = range(chunk.ref_start_idx, chunk.ref_end_idx)
        after: range | list[None] = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
        region += itertools.zip_longest(before, after)
    if region:
        yield region


def _sorted_region(
    region: Sequence[_Edit], said: Sequence[str], written: Sequence[str], lexicon: Lexicon
) -> Iterator[WordError]:
    joined_said, joined_written = _joined(region, said, written)
    for is_insertion, run in itertools.groupby(region, key=lambda edit: edit[0] is None):
        edits = list(run)
        for i, j in edits:
            before = said[i - 1] if i else None
            reference, hypothesis = None if i is None else said[i], None if j is None else written[j]
            if is_insertion and len(edits) >= _HALLUCINATED_RUN:
                kind = "hallucinated"
            elif i in joined_said or j in joined_written:
                kind = "boundary"
            else:
                kind = _kind(reference, hypothesis, before, lexicon)
            yield WordError(reference, hypothesis, kind)


def _kind(reference: str | None, hypothesis: str | None, before: str | None, lexicon: Lexicon) -> str:
    if reference is not None and lexicon.is_name(reference, before):
        return "name"
    if (reference or hypothesis) in _FUNCTION_WORDS:
        return "function"
    if reference is not None and hypothesis is not None and _are_near(reference, hypothesis):
        return "spelling"
    if reference is not None and lexicon.is_rare(reference):
        return "rare"
    return "other"


def _joined(region: Sequence[_Edit], said: Sequence[str], written: Sequence[str]) -> tuple[set[int], set[int]]:
    """Positions of words whose letters agree although they are divided otherwise."""
    joined_said, joined_written = set[int](), set[int]()
    spans_said = list(_spans([i for i, _ in region if i is not None], said))
    spans_written = list(_spans([j for _, j in region if j is not None], written))
    for (said_at, letters), (written_at, others) in itertools.product(spans_said, spans_written):
        if letters == others and len(said_at) != len(written_at):
            joined_said.update(said_at)
            joined_written.update(written_at)
    return joined_said, joined_written


def _spans(positions: Sequence[int], words: Sequence[str]) -> Iterator[tuple[range, str]]:
    if not positions:
        return
    first, end = positions[0], positions[-1] + 1
    for start in range(first, end):
        for stop in range(start + 1, min(end, start + _MOST_JOINED) + 1):
            yield range(start, stop), "".join(words[start:stop]).replace("'", "")


def _are_near(word: str, other: str) -> bool:
    # Letters are written as words for jiwer, which counts the edits.
    aligned = jiwer.process_words(" ".join(word), " ".join(other))
    distance = aligned.substitutions + aligned.deletions + aligned.insertions
    if distance <= 2 and 2 * distance <= max(len(word), len(other)):
        return True
    sound = skeleton(word)
    return len(sound) >= 2 and sound == skeleton(other)


def skeleton(word: str) -> str:
    """How a word sounds, roughly: its consonants, and an `a` for vowels in front."""
    sound = word.replace("'", "")
    for pattern, replacement in _SOUNDS:
        sound = re.sub(pattern, replacement, sound)
    return sound


def _flags(said: Sequence[str], written: Sequence[str], duration_s: float) -> Iterator[str]:
    if written and not said:
        yield "in silence"
    if said and not written:
        yield "no text"
    if duration_s and len(written) > max(len(said), _WORDS_PER_S * duration_s):
        yield "faster than speech"
    if has_loop(written) and not has_loop(said):
        yield "loop"


def has_loop(words: Sequence[str]) -> bool:
    """Whether a word comes four times in a row, or several words three times."""
    for length in range(1, _LONGEST_LOOP + 1):
        num_same, wanted = 0, length * (3 if length == 1 else 2)
        for word, earlier in zip(words[length:], words, strict=False):
            num_same = num_same + 1 if word == earlier else 0
            if num_same >= wanted:
                return True
    return False
