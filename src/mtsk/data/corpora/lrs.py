"""LRS2 (BBC programmes, arXiv:1809.02108) and LRS3 (TED talks, arXiv:1809.00496) as they are distributed.

Beside each clip lies a .txt: lines such as `Text:  ...` and `Conf:  ...`, in LRS3 a table of face boxes, and, always
for the subset `pretrain`, a table `WORD START END ASDSCORE` in seconds. Clips of `pretrain` may last minutes; they are
cut between words into segments of at most 16 s, as auto-avsr does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mtsk.data.corpora import (
    Corpus,
    Piece,
    Source,
    check_landmarks,
    media_files,
    read_text,
    stable_percent,
    supplied_landmarks,
    talkers_apart,
)
from mtsk.data.corpora.text import plain_text
from mtsk.types import VIDEO_FPS, Word

MAX_SEGMENT_S = 16
_MAX_SEGMENT_FRAMES = MAX_SEGMENT_S * VIDEO_FPS
_DEV_PERCENT = 2
_LRS2_LISTS = {"pretrain": "train", "train": "train", "val": "dev", "test": "test"}
_LRS3_SUBSETS = {"pretrain": "train", "trainval": "train", "test": "test"}


@dataclass(frozen=True)
class _Tree:
    corpus: str
    root: Path
    landmarks: Path | None

    def source(self, subset: str, talker: str, clip: Path, split: str) -> Source:
        script = clip.with_suffix(".txt")
        return Source(
            f"{self.corpus}_{subset}_{talker}_{clip.stem}",
            clip,
            split=split,
            speaker=talker,
            script=script,
            parse=parse_long if subset == "pretrain" else parse_clip,
            landmarks=supplied_landmarks(self.landmarks, Path(subset, talker, clip.stem)),
        )

    def walk(self, subset: str, split: str) -> Iterator[Source]:
        """Clips of all talkers of a subset."""
        folder = self.root / subset
        for talker in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            yield from (self.source(subset, talker, clip, split) for clip in media_files(folder / talker))


def list_sources(
    corpus: Literal["lrs2", "lrs3"], src: Path, *, pretrain: bool = True, landmarks: Path | None = None
) -> Corpus:
    """The clips of LRS2 or LRS3. Nothing but names is read; each .txt is, when its turn comes.

    LRS2: `mvlrs_v1/{main,pretrain}/<programme>/<n>.mp4`, the lists `train.txt`, `val.txt`, `test.txt` and
    `pretrain.txt` beside or in `mvlrs_v1`; lines `<programme>/<n>`, further columns are ignored. Its splits are the
    lists; val becomes `dev`.

    LRS3: `{pretrain,trainval,test}/<talker>/<n>.mp4`. There is no validation set: the talkers whose names fall into 2
    of 100 values of a hash are held out as `dev`, with their clips of trainval.

    No talker (in LRS2: no programme, as the talkers are not told) is in two splits: what training has of those in dev
    and test is left out, and the notes say how much.

    Args:
        corpus: which.
        src: the folder of the corpus.
        pretrain: take the subset `pretrain` too; without, `train` is LRS2's train or LRS3's trainval alone.
        landmarks: a folder of 68 landmarks a frame, a tree like the corpus: `<subset>/<talker>/<n>.pkl`.

    Raises:
        ValueError: if it is no such tree, or a list is not valid.
    """
    nested = {"lrs2": "mvlrs_v1", "lrs3": "lrs3"}[corpus]
    tree = _Tree(corpus, src / nested if (src / nested).is_dir() else src, landmarks)
    sources, notes = (_list_lrs2 if corpus == "lrs2" else _list_lrs3)(tree, src, pretrain)
    kept, lost = talkers_apart(sources)
    if corpus == "lrs3":
        # What pretrain has of the talkers held out lies there too; they are left out of both.
        num_talkers = len({source.speaker for source in kept if source.split == "dev"})
        num_clips = sum(source.split == "dev" for source in kept)
        notes.append(
            f"LRS3 has no validation set: {num_clips} clips of {num_talkers} talkers of trainval, chosen by a hash of "
            "their names, are dev"
        )
    return Corpus(tuple(kept), (*notes, *lost, *check_landmarks(landmarks, kept)), f"{corpus}_")


def parse_clip(script: str) -> tuple[Piece, ...]:
    """The one piece of a short clip: its text, and its words if the .txt tells their times.

    Raises:
        ValueError: if it is not of this form.
    """
    spoken, words = read_script(script)
    text = plain_text(spoken)
    # Words that are not those of the text would teach the wrong times.
    return (Piece(text, words if " ".join(word.text for word in words) == text else ()),)


def parse_long(script: str) -> tuple[Piece, ...]:
    """Segments of at most 16 s, each from its first word to its last. What fits into one is not cut.

    Times are rounded outwards to frames, so that sound and lips are cut at the same place. As many words as fit go
    into a segment. What was said decides, not the line `Text:`, which is the same words in a row.

    Raises:
        ValueError: if it is not of this form, has no word times, or a word lasts longer than a segment may.
    """
    _, words = read_script(script)
    if not words:
        raise ValueError(f"no word with its times (a table WORD START END), which cut it into {MAX_SEGMENT_S} s")
    if max(word.end_s for word in words) <= MAX_SEGMENT_S:
        return (_segment(words, 0, _MAX_SEGMENT_FRAMES, 0),)
    groups: list[list[Word]] = [[]]
    for word in words:
        if _end_frame([word]) - _start_frame([word]) > _MAX_SEGMENT_FRAMES:
            raise ValueError(
                f"word {word.text!r} lasts from {word.start_s} to {word.end_s} s; allowed: {MAX_SEGMENT_S} s"
            )
        if groups[-1] and _end_frame([*groups[-1], word]) - _start_frame(groups[-1]) > _MAX_SEGMENT_FRAMES:
            groups.append([])
        groups[-1].append(word)
    return tuple(_segment(group, _start_frame(group), _end_frame(group), n) for n, group in enumerate(groups))


def read_script(script: str) -> tuple[str, tuple[Word, ...]]:
    """The line `Text:` as it is, and the words of the table with their times, spelled by `plain_text`.

    Marks of noise are no words. The table ends at the first empty line.

    Raises:
        ValueError: if there is no such line, or a row of the table is not valid, quoting it.
    """
    lines = script.splitlines()
    spoken = next((line.partition(":")[2].strip() for line in lines if line.startswith("Text:")), None)
    if spoken is None:
        raise ValueError("no line `Text: ...`")
    start = next(
        (n for n, line in enumerate(lines) if line.upper().split()[:3] == ["WORD", "START", "END"]), len(lines)
    )
    words = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        word = _read_word(line)
        if word.text:
            words.append(word)
    return spoken, tuple(words)


def _read_word(line: str) -> Word:
    try:
        word, start, end = line.split()[:3]
        start_s, end_s = float(start), float(end)
    except ValueError:
        raise ValueError(f"not a row of its table of words (WORD START END): {line!r}") from None
    if not 0 <= start_s <= end_s < math.inf:
        raise ValueError(f"a word from {start_s} to {end_s} s: {line!r}")
    return Word(plain_text(word), start_s, end_s)


# The tiny terms: 0.36 s is frame 9 also where floating point says 8.999... or 9.000...1.
def _start_frame(words: Iterable[Word]) -> int:
    return math.floor(min(word.start_s for word in words) * VIDEO_FPS + 1e-6)


def _end_frame(words: Iterable[Word]) -> int:
    return math.ceil(max(word.end_s for word in words) * VIDEO_FPS - 1e-6)


def _segment(words: Iterable[Word], start: int, end: int, number: int) -> Piece:
    start_s = start / VIDEO_FPS
    moved = tuple(replace(word, start_s=word.start_s - start_s, end_s=word.end_s - start_s) for word in words)
    return Piece(" ".join(word.text for word in moved), moved, start_s, end / VIDEO_FPS, f"_{number:02d}")


def _list_lrs3(tree: _Tree, src: Path, pretrain: bool) -> tuple[list[Source], list[str]]:
    wanted = [name for name in _LRS3_SUBSETS if pretrain or name != "pretrain"]
    present = [name for name in wanted if (tree.root / name).is_dir()]
    sources = [source for name in present for source in tree.walk(name, _LRS3_SUBSETS[name])]
    if not sources:
        raise ValueError(f"{src} has no clips of LRS3; expected are {', '.join(wanted)} with folders of talkers")
    held_out = {
        source.speaker
        for source in sources
        if source.id.startswith("lrs3_trainval_") and stable_percent(f"lrs3/{source.speaker}") < _DEV_PERCENT
    }
    sources = [
        replace(source, split="dev")
        if source.speaker in held_out and source.id.startswith("lrs3_trainval_")
        else source
        for source in sources
    ]
    return sources, [f"there is no subset {name}" for name in wanted if name not in present]


def _list_lrs2(tree: _Tree, src: Path, pretrain: bool) -> tuple[list[Source], list[str]]:
    sources: list[Source] = []
    notes: list[str] = []
    for name, split in _LRS2_LISTS.items():
        if name == "pretrain" and not pretrain:
            continue
        listed = next((path for folder in (src, tree.root) if (path := folder / f"{name}.txt").is_file()), None)
        if listed is not None:
            subset = "pretrain" if name == "pretrain" else "main"
            sources += (
                tree.source(subset, clip.parent.name, clip, split) for clip in _read_list(listed, tree.root / subset)
            )
        elif name == "pretrain" and (tree.root / name).is_dir():
            sources += tree.walk(name, split)
        else:
            notes.append(f"there is no list {name}.txt")
    if not sources:
        raise ValueError(
            f"{src} has no clips of LRS2; expected are mvlrs_v1 with main and pretrain, and the lists train.txt, "
            "val.txt and test.txt"
        )
    return sources, notes


def _read_list(path: Path, folder: Path) -> Iterator[Path]:
    """Clips of a list, in lines of `<programme>/<n>` and further columns."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name = Path(line.split()[0])
        if len(name.parts) != 2 or ".." in name.parts or name.is_absolute():
            raise ValueError(f"{path}, line {number}: expected <programme>/<clip>, got {line!r}")
        yield folder / name.parent / f"{name.name.removesuffix('.mp4')}.mp4"
