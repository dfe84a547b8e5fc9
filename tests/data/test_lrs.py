"""LRS2 and LRS3: miniature trees of the layout in which they are distributed."""

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsk.checkpoints.sources import face_models, is_cached
from mtsk.commands.prepare import refuse_options_of_others
from mtsk.commands.prepare import run as run_command
from mtsk.data.corpora import Corpus, Piece, Source, grid, lrs, stable_percent
from mtsk.data.dataset import UtteranceDataset, load_cuts, splits
from mtsk.data.prepare import Settings, Summary, prepare
from mtsk.types import Word
from tests.data.conftest import write_clip

DEV, OTHERS = "t44", ("t00", "t01")  # by the hash of their names


def script(text: str, words: Sequence[tuple[str, float, float]] = (), *, boxes: bool = True) -> str:
    """A .txt as in LRS3; LRS2 has no boxes."""
    lines = [f"Text:  {text}", "Conf:  4"]
    if boxes:
        lines += ["Ref:   00j9bKdiOjk", "", "FRAME \tX \tY \tW \tH ", "000001 \t0.359 \t0.193 \t0.233 \t0.415 "]
    if words:
        lines += ["", "WORD START END ASDSCORE", *(f"{word} {start:.2f} {end:.2f} 7.3" for word, start, end in words)]
    return "\n".join(lines) + "\n"


def spaced(num: int, every_s: float = 1.0, length_s: float = 0.4) -> list[tuple[str, float, float]]:
    return [(f"W{n}", n * every_s, n * every_s + length_s) for n in range(num)]


def add(folder: Path, name: str, content: str, *, num_frames: int = 10, clip: Path | None = None) -> Path:
    path = folder / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    if clip is None:
        write_clip(path, num_frames=num_frames)
    else:
        shutil.copy(clip, path)
    path.with_suffix(".txt").write_text(content)
    return path


def write_lrs3(root: Path) -> Path:
    add(root, "pretrain/t00/00001", script("X", spaced(18)), num_frames=450)
    add(root, f"pretrain/{DEV}/00001", script("X", spaced(2)))
    add(root, "pretrain/test0/00001", script("X", spaced(2)))
    for talker in (DEV, *OTHERS):
        add(root, f"trainval/{talker}/50001", script("HELLO THERE", [("HELLO", 0.0, 0.2), ("THERE", 0.2, 0.4)]))
    add(root, "test/test0/00001", script("GOOD BYE {NS}"))
    return root


def run(corpus: Corpus, dst: Path, **options: Any) -> Summary:
    return prepare(corpus, dst, Settings(None), num_workers=0, progress=False, **options)


def by_split(corpus: Corpus) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for source in corpus.sources:
        names.setdefault(source.split, []).append(source.id)
    return names


# Text and segments.


def test_script_of_lrs3() -> None:
    words = [("IT'S", 0.1, 0.32), ("{NS}", 0.4, 0.5), ("20", 0.6, 0.9)]
    spoken, read = lrs.read_script(script("IT'S {NS} 20", words))
    assert spoken == "IT'S {NS} 20"
    assert read == (Word("it's", 0.1, 0.32), Word("20", 0.6, 0.9))
    (piece,) = lrs.parse_clip(script("IT'S {NS} 20", words))
    assert piece == Piece("it's 20", read)


def test_words_that_are_not_those_of_the_text_have_no_times() -> None:
    (piece,) = lrs.parse_clip(script("IT IS", [("IT'S", 0.1, 0.3)]))
    assert piece == Piece("it is")
    assert lrs.parse_clip("Text:  YES\r\nConf:  3\r\n") == (Piece("yes"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Conf: 3\n", "no line `Text"),
        (script("A", [("A", 0.5, 0.2)]), "a word from 0.5 to 0.2 s"),
        (script("A", [("A", 0, float("nan"))]), "a word from 0.0 to nan"),
        ("Text:  A\n\nWORD START END ASDSCORE\nA 0.1\n", "not a row of its table of words .*'A 0.1'"),
        ("Text:  A\n\nWORD START END ASDSCORE\nA x y 1\n", "not a row"),
        (script("A"), "no word with its times"),
        (script("A", [("A", 1.0, 17.5)]), "word 'a' lasts from 1.0 to 17.5 s; allowed: 16 s"),
    ],
)
def test_scripts_of_another_form_are_refused(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrs.parse_long(content)


def test_what_fits_is_not_cut() -> None:
    (piece,) = lrs.parse_long(script("X", [("A", 1.0, 2.0), ("B", 15.0, 16.0)]))
    assert piece == Piece("a b", (Word("a", 1.0, 2.0), Word("b", 15.0, 16.0)), 0.0, 16.0, "_00")


def test_segments_begin_and_end_with_words() -> None:
    first, second, third = lrs.parse_long(script("X", spaced(33)))
    assert first.text.split() == [f"w{n}" for n in range(16)]
    assert (first.start_s, first.end_s, first.suffix) == (0.0, 15.4, "_00")
    assert (second.start_s, second.end_s, second.suffix) == (16.0, 31.4, "_01")
    assert second.words[1].text == "w17"
    assert (second.words[1].start_s, second.words[1].end_s) == pytest.approx((1.0, 1.4))
    assert third.text == "w32"


@given(
    st.lists(st.tuples(st.floats(0, 4), st.floats(0.01, 3)), min_size=1, max_size=80),
)
def test_segments_hold_all_words_in_order_within_16_s(gaps: list[tuple[float, float]]) -> None:
    words, now_s = [], 0.0
    for number, (pause_s, length_s) in enumerate(gaps):
        words.append((f"W{number}", round(now_s + pause_s, 2), round(now_s + pause_s + length_s, 2)))
        now_s = words[-1][2]
    pieces = lrs.parse_long(script("X", words))
    heard = [(w.text.upper(), w.start_s + p.start_s, w.end_s + p.start_s) for p in pieces for w in p.words]
    assert [word for word, *_ in heard] == [word for word, *_ in words]
    np.testing.assert_allclose([times for _, *times in heard], [times for _, *times in words], atol=1e-6)
    for piece in pieces:
        assert piece.end_s - piece.start_s <= 16 + 1e-9
        assert piece.text == " ".join(word.text for word in piece.words)
        assert all(word.start_s >= -1e-9 and word.end_s <= piece.end_s - piece.start_s + 1e-5 for word in piece.words)
        assert (piece.start_s * 25) == pytest.approx(round(piece.start_s * 25), abs=1e-6)
    assert all(a.end_s <= b.start_s + 0.04 + 1e-9 for a, b in pairwise(pieces))


# Listing.


def test_lrs3_keeps_talkers_apart(tmp_path: Path) -> None:
    assert stable_percent(f"lrs3/{DEV}") < 2 <= min(stable_percent(f"lrs3/{name}") for name in OTHERS)
    corpus = lrs.list_sources("lrs3", write_lrs3(tmp_path))
    assert by_split(corpus) == {
        "train": ["lrs3_pretrain_t00_00001", "lrs3_trainval_t00_50001", "lrs3_trainval_t01_50001"],
        "dev": [f"lrs3_trainval_{DEV}_50001"],
        "test": ["lrs3_test_test0_00001"],
    }
    talkers = {split: {s.speaker for s in corpus.sources if s.split == split} for split in ("train", "dev", "test")}
    assert not talkers["train"] & (talkers["dev"] | talkers["test"])
    assert "2 files of train were left out" in " ".join(corpus.notes)
    assert "1 clips of 1 talkers of trainval" in " ".join(corpus.notes)
    short = lrs.list_sources("lrs3", tmp_path, pretrain=False)
    assert by_split(short)["train"] == ["lrs3_trainval_t00_50001", "lrs3_trainval_t01_50001"]
    shutil.rmtree(tmp_path / "test")
    assert "there is no subset test" in lrs.list_sources("lrs3", tmp_path).notes


def write_lrs2(root: Path) -> Path:
    for name in ("5535415699068794046/00001", "5536038039829982468/00001", "6330311066473698535/00011"):
        add(root / "mvlrs_v1" / "main", name, script("WHEN YOU'RE COOKING", boxes=False))
    add(root / "mvlrs_v1" / "pretrain", "5535415699068794046/00002", script("X", spaced(3, 0.1, 0.1), boxes=False))
    (root / "train.txt").write_text("5535415699068794046/00001\n")
    (root / "val.txt").write_text("5536038039829982468/00001\n")
    (root / "test.txt").write_text("6330311066473698535/00011 NF\n6330311066473698535/00012 MV\n")
    (root / "pretrain.txt").write_text("5535415699068794046/00002\n")
    return root


def test_lrs2_lists_decide(tmp_path: Path) -> None:
    corpus = lrs.list_sources("lrs2", write_lrs2(tmp_path / "src"))
    listed = by_split(corpus)
    assert listed == {
        "train": ["lrs2_pretrain_5535415699068794046_00002", "lrs2_main_5535415699068794046_00001"],
        "dev": ["lrs2_main_5536038039829982468_00001"],
        "test": ["lrs2_main_6330311066473698535_00011", "lrs2_main_6330311066473698535_00012"],
    }
    summary = run(corpus, tmp_path / "dst")
    assert summary.num_utterances == {"train": 2, "dev": 1, "test": 1}
    assert "00012.txt" in summary.refused["lrs2_main_6330311066473698535_00012"]
    cuts = load_cuts(tmp_path / "dst", "dev")
    assert cuts["lrs2_main_5536038039829982468_00001"].supervisions[0].text == "when you're cooking"
    assert by_split(lrs.list_sources("lrs2", tmp_path / "src", pretrain=False))["train"] == listed["train"][1:]
    (tmp_path / "src" / "pretrain.txt").unlink()  # then all that is there
    assert by_split(lrs.list_sources("lrs2", tmp_path / "src")) == listed


def test_trees_of_another_form_are_refused(tmp_path: Path) -> None:
    names: tuple[Literal["lrs2", "lrs3"], ...] = ("lrs2", "lrs3")
    for corpus in names:
        with pytest.raises(ValueError, match=f"has no clips of {corpus.upper()}; expected"):
            lrs.list_sources(corpus, tmp_path)
    write_lrs2(tmp_path)
    for line in ("../../x", "only", "/a/b"):
        (tmp_path / "val.txt").write_text(f"5536038039829982468/00001\n{line}\n")
        with pytest.raises(ValueError, match=r"val\.txt, line 2"):
            lrs.list_sources("lrs2", tmp_path)


# Preparing.


def test_segments_are_cut_from_sound_and_lips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtsk.data import prepare as module
    from mtsk.media import MouthTrack, load_media

    def with_face(path: Path, *, tracker: object) -> Any:
        media = load_media(path, tracker=None)
        assert media.waveform is not None
        num = round(len(media.waveform) / 640)
        crops = np.broadcast_to(np.arange(num, dtype=np.uint16)[:, None, None] % 256, (num, 96, 96)).astype(np.uint8)
        return dataclasses.replace(media, mouth=MouthTrack(crops, num, 0, 0, 1))

    monkeypatch.setattr(module, "load_media", with_face)
    monkeypatch.setattr(module, "_tracker", lambda settings: object())
    path = add(tmp_path / "src", "trainval/t00/0", script("X", spaced(18)), num_frames=450)
    late = script("X", [*spaced(18), ("LATE", 40.0, 41.0)])
    source = Source("long", path, script=path.with_suffix(".txt"), parse=lrs.parse_long)
    path.with_suffix(".txt").write_text(late)
    summary = run(Corpus((source,)), tmp_path / "dst")
    assert summary.num_utterances == {"train": 2}
    assert "ends before its utterance _02 at 40.00 s" in summary.warnings["long"][-1]
    whole = load_media(path, tracker=None).waveform
    dataset = UtteranceDataset(load_cuts(tmp_path / "dst", "train"))
    for id, first, num, num_words in (("long_00", 0, 385, 16), ("long_01", 400, 35, 2)):
        example = dataset[id, 0]
        assert whole is not None
        assert example.waveform is not None
        assert example.mouth is not None
        np.testing.assert_allclose(example.waveform, whole[first * 640 : (first + num) * 640], atol=1 / 2**15)
        np.testing.assert_array_equal(example.mouth[:, 0, 0], np.arange(first, first + num) % 256)
        assert len(example.words) == num_words
        assert example.words[1].start_s == pytest.approx(1.0)


def test_preparing_lrs3_goes_on_and_names_bad_files(tmp_path: Path) -> None:
    root = write_lrs3(tmp_path / "src")
    bad_text = add(root, "trainval/t00/50002", "Conf: 3\n").with_suffix(".txt")
    bad_clip = add(root, "trainval/t00/50003", script("HELLO"))
    bad_clip.write_bytes(b"no film")
    first = run(lrs.list_sources("lrs3", root), tmp_path / "dst")
    assert first.num_utterances == {"dev": 1, "test": 1, "train": 4}
    assert str(bad_text) in first.refused["lrs3_trainval_t00_50002"]
    assert str(bad_clip) in first.refused["lrs3_trainval_t00_50003"]
    assert load_cuts(tmp_path / "dst", "test")["lrs3_test_test0_00001"].supervisions[0].text == "good bye"
    long = load_cuts(tmp_path / "dst", "train")["lrs3_pretrain_t00_00001_01"].supervisions[0]
    assert (long.text, long.speaker, len(long.alignment["word"])) == ("w16 w17", "t00", 2)

    assert run(lrs.list_sources("lrs3", root), tmp_path / "dst").num_new == 0
    bad_text.write_text(script("NOW IT IS"))  # only the text has changed
    (root / "pretrain" / "t00" / "00001.txt").write_text(script("X", spaced(2)))
    again = run(lrs.list_sources("lrs3", root), tmp_path / "dst")
    assert again.num_new == 2
    assert list(again.refused) == ["lrs3_trainval_t00_50003"]
    assert sorted(cut.id for cut in load_cuts(tmp_path / "dst", "train"))[0] == "lrs3_pretrain_t00_00001_00"
    assert again.num_utterances["train"] == 4
    assert splits(tmp_path / "dst") == ("dev", "test", "train")


def in_manifests(dst: Path) -> dict[str, list[str]]:
    return {split: [cut.id for cut in load_cuts(dst, split)] for split in splits(dst)}


def test_what_later_runs_leave_out_is_in_no_manifest(tmp_path: Path) -> None:
    """The subset pretrain first, when nobody is held out; then all of it, of which talkers are."""
    root, dst = write_lrs3(tmp_path / "src"), tmp_path / "dst"
    mine = (Source("mine", root / "pretrain" / DEV / "00001.mp4", "text"), Source("lrs30_x", tmp_path / "no", "text"))
    run(Corpus(mine), dst)
    for name in ("trainval", "test"):
        (root / name).rename(tmp_path / name)
    early = run(lrs.list_sources("lrs3", root), dst)
    assert early.num_utterances == {"train": 5}
    for name in ("trainval", "test"):
        (tmp_path / name).rename(root / name)
    whole = lrs.list_sources("lrs3", root)
    late = run(whole, dst)
    train = ["lrs3_pretrain_t00_00001_00", "lrs3_pretrain_t00_00001_01"]
    held_out = {"dev": [f"lrs3_trainval_{DEV}_50001"], "test": ["lrs3_test_test0_00001"]}
    short = ["lrs3_trainval_t00_50001", "lrs3_trainval_t01_50001", "mine"]
    assert in_manifests(dst) == {"train": [*train, *short], **held_out}
    assert late.num_utterances == {"train": 5, "dev": 1, "test": 1}
    assert "2 files that were prepared earlier are in no split" in str(late)
    assert list(late.refused) == ["lrs30_x"]

    # Nothing is read, and yet the manifests change; another corpus's run changes nothing of that; and back again.
    assert run(lrs.list_sources("lrs3", root, pretrain=False), dst).num_new == 0
    assert in_manifests(dst) == {"train": short, **held_out}
    run(Corpus((*mine, Source("more", mine[0].path, "text"))), dst)
    assert in_manifests(dst) == {"train": sorted([*short, "more"]), **held_out}
    assert run(whole, dst).num_new == 0
    assert in_manifests(dst) == {"train": sorted([*train, *short, "more"]), **held_out}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_lrs3(tmp_path / "src")
    options: dict[str, Any] = {
        "split": "",
        "table": None,
        "workers": 0,
        "sheets": 0,
        "face": 0,
        "lips": False,
        "mix": 8,
    }
    assert run_command("lrs3", root, tmp_path / "dst", **options, pretrain=False) == 0
    assert "train: 2 utterances" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--landmarks is for lrs2, lrs3, vox2, not for grid"):
        refuse_options_of_others("grid", ["--landmarks"])
    with pytest.raises(ValueError, match="--no-pretrain is for lrs2, lrs3, not for vox2"):
        refuse_options_of_others("vox2", ["--no-pretrain"])
    with pytest.raises(ValueError, match="--table"):
        run_command("vox2", root, tmp_path / "dst", **options)


@pytest.mark.weights
def test_a_clip_of_grid_in_the_layout_of_lrs3(grid_dir: Path, tmp_path: Path) -> None:
    if not is_cached("face"):
        pytest.skip("needs the face models in the cache (make weights)")
    source = next(source for source in grid.list_sources(grid_dir).sources if source.words)
    words = [(word.text.upper(), word.start_s, word.end_s) for word in source.words]
    add(tmp_path / "src", "pretrain/s1/00001", script(source.text.upper(), words), clip=source.path)
    corpus = lrs.list_sources("lrs3", tmp_path / "src")
    summary = prepare(corpus, tmp_path / "dst", Settings(face_models()), num_workers=0, progress=False)
    assert (summary.num_utterances, summary.num_without_lips) == ({"train": 1}, 0)
    example = UtteranceDataset(load_cuts(tmp_path / "dst", "train"))["lrs3_pretrain_s1_00001_00", 0]
    assert example.mouth is not None
    assert example.mouth.shape == (75, 96, 96)
    assert example.text == source.text
    assert [word.text for word in example.words] == [word.text for word in source.words]
    np.testing.assert_allclose([w.start_s for w in example.words], [w.start_s for w in source.words], atol=0.006)
