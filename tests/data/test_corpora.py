"""Corpora: what is listed from a source tree."""

import json

import pytest

from mtsk.data.corpora import Corpus, Source, folder, grid
from mtsk.types import Word
from tests.data.conftest import write_tones


def test_shared_grid_is_listed_whole(grid_dir):
    corpus = grid.list_sources(grid_dir)
    counts: dict[str, int] = {}
    for source in corpus.sources:
        counts[source.split] = counts.get(source.split, 0) + 1
        assert source.path.exists()
        assert len(source.text.split()) == 6
    assert counts == {"train": 750, "dev": 50, "test": 100, "other_talkers": 34}
    assert not corpus.notes
    splits = json.loads((grid_dir / "s1_splits.json").read_text())
    assert {source.id for source in corpus.sources if source.split == "test"} == {
        f"s1_{name}" for name in splits["test"]
    }
    others = [source for source in corpus.sources if source.split == "other_talkers"]
    assert {source.speaker for source in others} == {"s5", "s26", "s31"}


def test_names_of_grid_files_say_what_the_alignments_say(grid_dir):
    for source in grid.list_sources(grid_dir).sources:
        assert source.words or source.split == "other_talkers"
        assert grid.text_from_name(source.path.stem.split("_")[-1]) == source.text


def test_align_is_read_in_seconds_without_silences():
    words = grid.parse_align("0 23750 sil\n23750 29500 bin\n29500 34000 Blue\n34000 35000 sp\n")
    assert words == (Word("bin", 0.95, 1.18), Word("blue", 1.18, 1.36))
    with pytest.raises(ValueError, match="a b bin"):
        grid.parse_align("a b bin")


@pytest.mark.parametrize("place", [".", "s7/align", "align/s7", "alignments/s7"])
def test_original_grid_layout_without_splits(tmp_path, place):
    talker = tmp_path / "s7"
    (talker / "align").mkdir(parents=True)
    names = [f"bba{letter}{digit}n" for letter in "abcdefghijklmnopqrstuvxyz" for digit in "z123456789"]
    for name in names:
        (talker / f"{name}.mpg").touch()
    align = (talker if place == "." else tmp_path / place) / "bbaa1n.align"
    align.parent.mkdir(parents=True, exist_ok=True)
    align.write_text("0 1000 sil\n1000 25000 bin\n")
    corpus = grid.list_sources(tmp_path)
    by_id = {source.id: source for source in corpus.sources}
    assert by_id["s7_bbaa1n"].words == (Word("bin", 0.04, 1.0),)
    assert by_id["s7_bbab2n"].text == "bin blue at b two now"
    shares = {
        split: sum(source.split == split for source in corpus.sources) / len(names)
        for split in ("train", "dev", "test")
    }
    assert sum(shares.values()) == 1
    assert shares == pytest.approx({"train": 0.8, "dev": 0.05, "test": 0.15}, abs=0.06)
    assert "not an official one" in corpus.notes[0]
    assert grid.list_sources(tmp_path) == corpus


def test_files_in_no_split_are_left_out_and_named_twice_refused(tmp_path):
    (tmp_path / "s1").mkdir()
    for name in ("bbaf2n", "bbaf3s"):
        (tmp_path / "s1" / f"{name}.mp4").touch()
    (tmp_path / "s1_splits.json").write_text('{"train": ["bbaf2n"]}')
    corpus = grid.list_sources(tmp_path)
    assert [source.id for source in corpus.sources] == ["s1_bbaf2n"]
    assert "1 files of s1" in corpus.notes[0]
    (tmp_path / "s1_splits.json").write_text('{"train": ["bbaf2n"], "test": ["bbaf2n"]}')
    with pytest.raises(ValueError, match="splits train and test"):
        grid.list_sources(tmp_path)


def test_empty_trees_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no media files"):
        grid.list_sources(tmp_path)
    with pytest.raises(ValueError, match=r"of 0 media files none has a \.txt"):
        folder.list_sources(tmp_path, "train")
    with pytest.raises(ValueError, match="not a folder"):
        folder.list_sources(tmp_path / "absent", "train")


def test_folder_with_texts(tmp_path):
    write_tones(tmp_path / "a", 2)
    write_tones(tmp_path / "b", 1)
    (tmp_path / "a" / "u01.txt").unlink()
    corpus = folder.list_sources(tmp_path, "dev")
    assert [(source.id, source.text, source.split) for source in corpus.sources] == [
        ("a_u00", "Utterance  number 0", "dev"),
        ("b_u00", "Utterance  number 0", "dev"),
    ]
    assert "1 media files have no .txt" in corpus.notes[0]


def test_folder_with_table(tmp_path):
    write_tones(tmp_path, 2)
    table = tmp_path / "list.tsv"
    table.write_text("file\ttranscript\ttalker\tsplit\nu00.wav\tone\tx\ttest\nu01.wav\ttwo\ty\t\n")
    sources = folder.list_sources(tmp_path, "train").sources
    assert sources == (
        Source("u00", tmp_path / "u00.wav", "one", (), "test", "x"),
        Source("u01", tmp_path / "u01.wav", "two", (), "train", "y"),
    )
    assert folder.list_sources(tmp_path, "train", table).sources == sources
    table.write_text("path\ttext\nu00.wav\tone\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        folder.list_sources(tmp_path, "train")
    table.write_text("file\ttranscript\nu00.wav\n")
    with pytest.raises(ValueError, match="line 2"):
        folder.list_sources(tmp_path, "train")


def test_tables_and_alignments_in_other_encodings(tmp_path):
    table = tmp_path / "list.tsv"
    table.write_bytes("\ufefffile\ttranscript\r\nu.wav\tgrün\r\n".encode())
    assert [source.text for source in folder.list_sources(tmp_path, "train").sources] == ["grün"]
    table.write_bytes("file\ttranscript\nu.wav\tgrün\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"list\.tsv is not in UTF-8"):
        folder.list_sources(tmp_path, "train")
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "bbaf2n.mpg").touch()
    align = tmp_path / "s1" / "bbaf2n.align"
    align.write_bytes("\ufeff1000 25000 bin\n".encode())
    assert grid.list_sources(tmp_path).sources[0].words == (Word("bin", 0.04, 1.0),)
    align.write_bytes("1000 25000 grün\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^[^:]*bbaf2n\.align is not in UTF-8"):
        grid.list_sources(tmp_path)


def test_shared_librispeech_table(librispeech_dir):
    sources = folder.list_sources(librispeech_dir, "test", librispeech_dir / "test-other.tsv").sources
    assert len(sources) == 50
    assert all(source.path.exists() and source.speaker for source in sources)


def test_names_are_unique(tmp_path):
    source = Source("a", tmp_path, "text")
    with pytest.raises(ValueError, match="occur twice"):
        Corpus((source, source))
