"""Anybody's own recordings: media files with their text beside them, or listed in a table."""

from __future__ import annotations

from pathlib import Path

from mtsk.data.corpora import Corpus, Source, media_files, read_text, read_tsv


def list_sources(src: Path, split: str, table: Path | None = None) -> Corpus:
    """The utterances of a folder.

    Args:
        src: folder of media files, searched with the folders below it; each has its text in a `.txt` of the same name.
        split: what to call them, e.g. `train`, `dev`, `test`.
        table: a tab-separated file with a header and the columns `file` (relative to `src`, or to the table) and
            `transcript`, optionally `talker` and `split`. None: the only `.tsv` in `src`, if there is one.

    Raises:
        ValueError: if `src` is no folder, has no media file with a text, or the table is not valid.
    """
    if not src.is_dir():
        raise ValueError(f"{src} is not a folder")
    if table is None:
        tables = sorted(src.glob("*.tsv"))
        if len(tables) > 1:
            raise ValueError(f"{src} has several tables, {[path.name for path in tables]}: name the one to use")
        table = tables[0] if tables else None
    return _from_table(src, split, table) if table is not None else _from_texts(src, split)


def _from_table(src: Path, split: str, table: Path) -> Corpus:
    sources = []
    for row in read_tsv(table, ("file", "transcript")):
        places = (src / row["file"], table.parent / row["file"], table.with_suffix("") / row["file"])
        path = next((place for place in places if place.exists()), places[0])
        id = _id(Path(row["file"]))
        sources.append(Source(id, path, row["transcript"], (), row.get("split") or split, row.get("talker", "")))
    if not sources:
        raise ValueError(f"{table} lists no files")
    return Corpus(tuple(sources))


def _from_texts(src: Path, split: str) -> Corpus:
    folders = [src, *sorted(path for path in src.rglob("*") if path.is_dir())]
    files = [path for folder in folders for path in media_files(folder)]
    with_text = [path for path in files if path.with_suffix(".txt").exists()]
    if not with_text:
        raise ValueError(
            f"{src}: of {len(files)} media files none has a .txt of the same name beside it, and there is no .tsv with "
            "the columns file and transcript"
        )
    sources = tuple(_with_text(src, path, split) for path in with_text)
    without = len(files) - len(with_text)
    return Corpus(sources, (f"{without} media files have no .txt beside them and were left out",) if without else ())


def _with_text(src: Path, path: Path, split: str) -> Source:
    text = refusal = ""
    try:
        text = read_text(path.with_suffix(".txt")).strip()
    except ValueError as error:
        refusal = str(error)
    return Source(_id(path.relative_to(src)), path, text, (), split, refusal=refusal)


def _id(path: Path) -> str:
    """A name that is a file name too."""
    return "_".join(part for part in path.with_suffix("").parts if part not in ("..", "/", "\\"))
