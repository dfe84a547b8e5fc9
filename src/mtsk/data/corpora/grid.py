"""GRID (Cooke, Barker, Cunningham, Shao, JASA 120(5), 2006): six-word commands, 1,000 by each talker.

The corpus has no official split. A file `<talker>_splits.json` beside the talker's folder decides; where there is none,
the split is made from a stable hash of the names, and the notes say so.
"""

from __future__ import annotations

import json
from pathlib import Path

from mtsk.data.corpora import Corpus, Source, media_files, read_text, read_tsv, stable_percent
from mtsk.types import Word

_UNITS_PER_S = 25_000
_SILENCES = frozenset({"sil", "sp"})
_OTHER_TALKERS = "other_talkers"
_TRAIN_PERCENT, _DEV_PERCENT = 80, 5
# A file is named by its sentence: command, colour, preposition, letter, digit, adverb.
_NAME_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    dict(
        zip("z123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
    ),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


def list_sources(src: Path) -> Corpus:
    """The utterances of a GRID tree.

    Expected are folders of talkers with media files, `.align` files beside them or in `<talker>/align/`,
    `align/<talker>/` or `alignments/<talker>/`, and optionally `<talker>_splits.json` (split -> names). A folder
    `other_talkers` with `other_talkers.tsv` (file, talker, transcript) becomes the split `other_talkers`.
    Without `.align` the text is read off the file's name, without word times.

    Raises:
        ValueError: if there is no media file, or a splits file or an alignment is not valid or not in UTF-8.
    """
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder; expected a GRID tree with folders of talkers, such as s1/")
    sources: list[Source] = []
    notes: list[str] = []
    hashed: list[str] = []
    for folder in sorted(path for path in src.iterdir() if path.is_dir() and path.name != _OTHER_TALKERS):
        files = media_files(folder)
        if not files:
            continue
        split_file = src / f"{folder.name}_splits.json"
        if split_file.exists():
            split_of = _read_splits(split_file)
            left_out = sum(path.stem not in split_of for path in files)
            if left_out:
                notes.append(
                    f"{left_out} files of {folder.name} are in no split of {split_file.name} and were left out"
                )
        else:
            split_of = {path.stem: _hash_split(folder.name, path.stem) for path in files}
            hashed.append(folder.name)
        sources += [_source(src, folder.name, path, split_of[path.stem]) for path in files if path.stem in split_of]
    if hashed:
        notes.append(
            f"no splits file for {', '.join(hashed)}: their split was made here, {_TRAIN_PERCENT} % train, "
            f"{_DEV_PERCENT} % dev, the rest test, by a hash of the names; it is not an official one"
        )
    sources += _other_talkers(src)
    if not sources:
        raise ValueError(f"no media files in the folders of {src}; expected a GRID tree with folders of talkers")
    return Corpus(tuple(sources), tuple(notes))


def parse_align(text: str) -> tuple[Word, ...]:
    """Words of an `.align` file: lines of `start end word`, 25,000 units to the second; silences are dropped.

    Raises:
        ValueError: quoting the line that is not of this form.
    """
    words = []
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            start, end, word = line.split()
            start_s, end_s = int(start) / _UNITS_PER_S, int(end) / _UNITS_PER_S
        except ValueError:
            raise ValueError(f"not a line of an alignment (start end word): {line!r}") from None
        if word not in _SILENCES:
            words.append(Word(word.lower(), start_s, end_s))
    return tuple(words)


def text_from_name(name: str) -> str:
    """The sentence that a file's name stands for, e.g. `bbaf2n` -> `bin blue at f two now`; empty if it is none."""
    if len(name) != len(_NAME_WORDS):
        return ""
    words = [table.get(letter, "") for table, letter in zip(_NAME_WORDS, name.lower(), strict=True)]
    return " ".join(words) if all(words) else ""


def _source(src: Path, talker: str, path: Path, split: str) -> Source:
    folders = (path.parent, path.parent / "align", src / "align" / talker, src / "alignments" / talker)
    align = next((file for folder in folders if (file := folder / f"{path.stem}.align").exists()), None)
    lines = "" if align is None else read_text(align)
    try:
        words = parse_align(lines)
    except ValueError as error:
        raise ValueError(f"{align}: {error}") from error
    text = " ".join(word.text for word in words) or text_from_name(path.stem)
    return Source(f"{talker}_{path.stem}", path, text, words, split, talker)


def _other_talkers(src: Path) -> list[Source]:
    table = src / f"{_OTHER_TALKERS}.tsv"
    if not table.exists():
        return []
    folder = src / _OTHER_TALKERS
    return [
        Source(Path(row["file"]).stem, folder / row["file"], row["transcript"], (), _OTHER_TALKERS, row["talker"])
        for row in read_tsv(table, ("file", "talker", "transcript"))
    ]


def _read_splits(path: Path) -> dict[str, str]:
    splits = json.loads(read_text(path))
    split_of: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in split_of:
                raise ValueError(f"{path}: {name} is in the splits {split_of[name]} and {split}; one is allowed")
            split_of[name] = split
    return split_of


def _hash_split(talker: str, name: str) -> str:
    percent = stable_percent(f"{talker}/{name}")
    if percent < _TRAIN_PERCENT:
        return "train"
    return "dev" if percent < _TRAIN_PERCENT + _DEV_PERCENT else "test"
