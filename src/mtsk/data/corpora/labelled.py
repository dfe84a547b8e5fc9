"""Recordings without text, labelled by a recogniser that says how sure it is: which of its texts are good enough."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mtsk.data.corpora import Corpus, Source, media_files, stable_percent
from mtsk.files import write_whole

FILE_NAME = "labels.jsonl"
"""In the prepared folder."""
MAX_DURATION_S = 25.0
_MIN_WORDS = 2
_MIN_WORDS_PER_S, _MAX_WORDS_PER_S = 1.0, 6.0  # speech has 2 to 4; Whisper may stop after a heading such as "Chapter"
_MAX_COMPRESSION = 2.4  # of the text, in letters per byte; Whisper's own limit for a text that repeats itself
_DEV_PERCENT = 16  # of the talkers

# Letters and the marks between them. All else, most digits among it, can be read in several ways ("1880", "1st", "%"),
# or was not said at all ("[music]").
_PLAIN = re.compile(r"[^\W\d_]|[\s.,;:!?'\"\u2018\u2019\u201c\u201d\u2026\u2013\u2014-]")
# "Chapter I" and "Henry VIII".
_ROMAN = re.compile(r"\b(?:[IVXLC]{2,}|(?i:chapter|book|part|volume|section) [IVXLC]+)\b")
# A number that stands alone and is read in one way only, as in "Chapter 17".
_SMALL_NUMBER = re.compile(r"(?<![\w.,:$£€'-])[1-9]\d?(?![\w%:'-]|[.,]\d)")
_LIBRISPEECH = re.compile(r"(\d+)-\d+-\d+")  # talker, chapter, number


@dataclass(frozen=True, slots=True)
class Label:
    """What a recogniser made of a recording."""

    id: str
    file: str
    """Name of the recording."""
    num_bytes: int
    """Of the file: another one under the same name is labelled anew."""
    duration_s: float
    raw_text: str
    """With capitals, punctuation and digits, as it came."""
    text: str
    """As it is said, in lower case."""
    mean_log_prob: float
    """Per token, with that of the end."""
    min_log_prob: float
    """Of the least likely token."""

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of the tokens, from 0 to 1."""
        return math.exp(self.mean_log_prob)

    def refusal(self, min_confidence: float) -> str:
        """Why the text should not be learned from; empty if it may."""
        num_words = len(self.text.split())
        others = [*sorted(set(_PLAIN.sub("", _SMALL_NUMBER.sub("", self.raw_text)))), *_ROMAN.findall(self.raw_text)]
        if self.duration_s > MAX_DURATION_S:
            return f"it lasts {self.duration_s:.1f} s; allowed are up to {MAX_DURATION_S:.0f} s"
        if others:
            return f"its label has {' '.join(others)}, which may be read in several ways: {self.raw_text!r}"
        if num_words < _MIN_WORDS:
            return f"its label has {num_words} words: {self.raw_text!r}; at least {_MIN_WORDS} are needed"
        if not _MIN_WORDS_PER_S <= num_words / self.duration_s <= _MAX_WORDS_PER_S:
            return (
                f"its label has {num_words} words in {self.duration_s:.1f} s; allowed are {_MIN_WORDS_PER_S:g} to "
                f"{_MAX_WORDS_PER_S:g} a second"
            )
        if _compression(self.raw_text) > _MAX_COMPRESSION:
            return f"its label repeats itself: {self.raw_text!r}"
        if self.confidence < min_confidence:
            return f"the confidence of its label, {self.confidence:.3f}, is below {min_confidence:g}"
        return ""


def recordings(src: Path) -> dict[str, Path]:
    """Name of the utterance -> its file, for all media files in a folder and below it; sorted.

    Raises:
        ValueError: if `src` is no folder or has no media files, or two have the same name.
    """
    if not src.is_dir():
        raise ValueError(f"{src}: {'is not a folder' if src.exists() else 'no such folder'}")
    folders = [src, *sorted(path for path in src.rglob("*") if path.is_dir())]
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in media_files(folder)):
        other = found.setdefault(f"labelled_{path.stem}", path)
        if other is not path:
            raise ValueError(f"{other} and {path} have the same name: every recording needs one of its own")
    if not found:
        raise ValueError(f"{src} has no media files")
    return dict(sorted(found.items()))


def list_sources(found: dict[str, Path], labels: dict[str, Label], min_confidence: float) -> Corpus:
    """The recordings with their labels; refused are those without a label, and with one that may be wrong.

    About a sixth of the talkers are `dev`, the rest `train`. The talker is the first number of a name such as
    `103-1240-0000`, as LibriSpeech has them, else the recording is one of its own.

    Args:
        found: from `recordings`.
        labels: by name of the utterance.
        min_confidence: what `Label.confidence` must reach, from 0 to 1.
    """
    sources = []
    for id, path in found.items():
        talker = _talker(path.stem)
        split = "dev" if stable_percent(talker) < _DEV_PERCENT else "train"
        label = labels.get(id)
        refusal = "it could not be labelled" if label is None else label.refusal(min_confidence)
        text = "" if label is None or refusal else label.text
        sources.append(Source(id, path, text, (), split, talker, refusal))
    num_kept = sum(not source.refusal for source in sources)
    note = (
        f"labels were made by a recogniser and may be wrong: {num_kept} of {len(sources)} recordings have one of "
        f"confidence {min_confidence:g} or more that reads plainly"
    )
    return Corpus(tuple(sources), (note,))


def line(label: Label) -> str:
    """A label as a line of its file."""
    return json.dumps(asdict(label), ensure_ascii=False) + "\n"


def read_labels(path: Path) -> dict[str, Label]:
    """Labels by name. A last line that was cut short is taken out of the file.

    Raises:
        ValueError: if the file has a broken line before the last.
    """
    known: dict[str, Label] = {}
    if not path.exists():
        return known
    *lines, rest = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines, 1):
        try:
            label = Label(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a label; remove it: {error}") from error
        known[label.id] = label
    if rest:
        write_labels(path, known.values())
    return known


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """Writes the file of labels anew."""
    write_whole(path, "".join(line(label) for label in labels))


def _talker(stem: str) -> str:
    match = _LIBRISPEECH.fullmatch(stem)
    return match[1] if match else stem


def _compression(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))
