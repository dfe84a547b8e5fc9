"""VoxCeleb2: clips with the text of a table."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtsk.data.corpora import Piece, vox2
from mtsk.data.dataset import load_cuts
from mtsk.data.prepare import Settings, prepare
from mtsk.types import SAMPLE_RATE_HZ
from tests.data.conftest import tone, write_clip

CLIP = "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4"
ENGLISH = "dev/id00012/21Uxsk56VDQ/00002"  # as lists of English clips write it


def write_table(path: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = ("file", "transcript")) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in (columns, *rows)))
    return path


def test_clips_talkers_and_texts(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.tsv", (CLIP, "Well, hello!"), (ENGLISH, "It\u2019s"), ("test/id1/v/00001.mp4", "..")
    )
    corpus = vox2.list_sources(tmp_path, table)
    first, second = corpus.sources
    assert (first.id, first.path) == ("vox2_dev_id00012_21Uxsk56VDQ_00001", tmp_path / CLIP)
    assert (first.pieces, first.speaker, first.split) == ((Piece("well hello"),), "id00012", "train")
    assert second.path == tmp_path / "dev/mp4/id00012/21Uxsk56VDQ/00002.mp4"
    assert second.pieces == (Piece("it's"),)
    assert corpus.notes == ("1 rows have no text and were left out",)
    (tmp_path / "en.id").write_text(f"{ENGLISH}\ndev/id9/x/1\n")
    english = vox2.list_sources(tmp_path, table, only=tmp_path / "en.id")
    assert english.sources == (second,)
    assert "2 rows are of clips that" in english.notes[0]


@pytest.mark.parametrize("name", ["", "a.mp4", "dev/../../x/1", "train/mp4/id1/v/1.mp4", "dev/id1/1.mp4"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    table = write_table(tmp_path / "t.tsv", (CLIP, "a"), (name, "a"))
    with pytest.raises(ValueError, match=r"t\.tsv, line 3: .* is no clip of VoxCeleb2"):
        vox2.list_sources(tmp_path, table)


def test_what_a_list_leaves_out_later_is_no_longer_trained_on(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.tsv", (CLIP, "one"), (ENGLISH, "two"))
    (tmp_path / CLIP).parent.mkdir(parents=True)
    for number in (1, 2):
        write_clip((tmp_path / CLIP).with_name(f"0000{number}.mp4"))
    (tmp_path / "en.id").write_text(ENGLISH)
    for only in (None, tmp_path / "en.id"):
        corpus = vox2.list_sources(tmp_path, table, only=only)
        prepare(corpus, tmp_path / "dst", Settings(None), num_workers=0, progress=False)
    assert [cut.id for cut in load_cuts(tmp_path / "dst", "train")] == ["vox2_dev_id00012_21Uxsk56VDQ_00002"]


def test_pieces_of_a_clip_whose_sound_lies_apart(tmp_path: Path) -> None:
    columns = ("file", "transcript", "start", "end")
    table = write_table(
        tmp_path / "t.tsv", (CLIP, "one", "", "0.4"), (CLIP, "two", "0.4", ""), (ENGLISH, "x", "", ""), columns=columns
    )
    (tmp_path / CLIP).parent.mkdir(parents=True)
    write_clip(tmp_path / CLIP, num_frames=30, sound=False)
    sound = tmp_path / "dev/aac/id00012/21Uxsk56VDQ/00001.wav"
    sound.parent.mkdir(parents=True)
    soundfile.write(sound, tone(1.2), SAMPLE_RATE_HZ)
    corpus = vox2.list_sources(tmp_path, table)
    summary = prepare(corpus, tmp_path / "dst", Settings(None), num_workers=0, progress=False)
    assert "00002.mp4" in summary.refused["vox2_dev_id00012_21Uxsk56VDQ_00002"]
    cuts = load_cuts(tmp_path / "dst", "train")
    name = "vox2_dev_id00012_21Uxsk56VDQ_00001"
    assert {cut.id: (cut.supervisions[0].text, round(cut.duration, 4)) for cut in cuts} == {
        f"{name}_00": ("one", 0.4),
        f"{name}_01": ("two", 0.8),
    }
    np.testing.assert_allclose(cuts[f"{name}_01"].load_audio()[0], tone(1.2)[6400:], atol=1 / 2**14)


def test_times_that_make_no_piece_are_refused(tmp_path: Path) -> None:
    columns = ("file", "transcript", "start", "end")
    for start, end in (("2", "1"), ("x", "1"), ("-1", "1"), ("nan", "1")):
        table = write_table(tmp_path / "t.tsv", (CLIP, "a", start, end), columns=columns)
        with pytest.raises(ValueError, match="line 2: a piece from"):
            vox2.list_sources(tmp_path, table)
    table = write_table(tmp_path / "t.tsv", (CLIP, "a"), (CLIP, "b"))
    with pytest.raises(ValueError, match="several rows without start and end"):
        vox2.list_sources(tmp_path, table)
    with pytest.raises(ValueError, match="lists no clips with text"):
        vox2.list_sources(tmp_path, write_table(tmp_path / "t.tsv"))
