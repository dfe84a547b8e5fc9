"""Preparation: what lands in the folder, what is refused, and going on after an interruption."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from mtsk.checkpoints.sources import face_models, is_cached
from mtsk.data import prepare as prepare_module
from mtsk.data.corpora import Corpus, Source, folder, grid
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.prepare import Settings, Summary, prepare
from mtsk.data.workers import Died
from mtsk.media import Media, MediaError, MouthTrack, load_media
from tests.data.conftest import write_clip, write_tones

SOUND_ALONE = Settings(None)


def run(corpus: Corpus, dst: Path, **options: Any) -> Summary:
    return prepare(corpus, dst, SOUND_ALONE, **{"num_workers": 0, "progress": False, **options})


@pytest.mark.weights
def test_four_grid_clips(grid_dir, tmp_path):
    if not is_cached("face"):
        pytest.skip("needs the face models in the cache (make weights)")
    listed = grid.list_sources(grid_dir).sources
    corpus = Corpus((*listed[:3], listed[-1]))
    summary = prepare(corpus, tmp_path / "first", Settings(face_models()), num_workers=2, num_sheets=2, progress=False)
    assert sum(summary.num_utterances.values()) == 4
    assert not summary.refused
    assert not summary.num_without_lips
    assert len(list((tmp_path / "first" / "sheets").glob("*.png"))) == 2

    shutil.move(tmp_path / "first", tmp_path / "moved")  # paths inside are relative
    for source in corpus.sources:
        cuts = load_cuts(tmp_path / "moved", source.split)
        example = UtteranceDataset(cuts)[source.id, 0]
        direct = load_media(source.path, tracker=None)
        assert direct.waveform is not None
        assert example.waveform is not None
        assert example.mouth is not None
        np.testing.assert_allclose(example.waveform, direct.waveform, atol=1.0 / 2**15)
        assert example.mouth.shape == (75, 96, 96)
        assert example.mouth.std() > 5
        assert example.text == source.text
        assert [word.text for word in example.words] == [word.text for word in source.words]
        for word, expected in zip(example.words, source.words, strict=True):
            assert (word.start_s, word.end_s) == pytest.approx((expected.start_s, expected.end_s))
        cut = cuts[source.id]
        assert cut.supervisions[0].speaker == source.speaker
        by_lhotse = cut.load_mouth()  # which ends with the sound
        assert len(by_lhotse) >= 74
        np.testing.assert_array_equal(by_lhotse, example.mouth[: len(by_lhotse)])


def test_sound_lips_and_neither(tmp_path, monkeypatch):
    """The face is put in place of the tracker's, as the models are not always there."""
    crops = np.full((10, 96, 96), 7, np.uint8)

    def with_face(path: Path, *, tracker: object) -> Media:
        media = load_media(path, tracker=None)
        num_detected = 0 if path.stem == "no_face" else 10
        mouth = None if path.suffix == ".wav" else MouthTrack(crops, num_detected, 0, 10 - num_detected, num_detected)
        warnings = () if num_detected else ("no face was found in the video",)
        return dataclasses.replace(media, mouth=mouth, warnings=warnings)

    def without_sound(path: Path, *, tracker: object) -> Media:
        media = with_face(path, tracker=tracker)
        return dataclasses.replace(media, waveform=None) if path.stem in ("silent", "no_face") else media

    src = write_tones(tmp_path / "src", 1)
    both, silent, no_face = (write_clip(src / f"{name}.mp4") for name in ("both", "silent", "no_face"))
    corpus = Corpus(
        tuple(Source(path.stem, path, "A  Word", split="dev") for path in (src / "u00.wav", both, silent, no_face))
    )
    monkeypatch.setattr(prepare_module, "load_media", without_sound)
    monkeypatch.setattr(prepare_module, "_tracker", lambda settings: object())
    summary = run(corpus, tmp_path / "dst")
    assert list(summary.refused) == ["no_face"]
    assert "no sound nor a face" in summary.refused["no_face"]
    assert (summary.num_without_lips, summary.num_without_sound) == (1, 1)
    dataset = UtteranceDataset(load_cuts(tmp_path / "dst", "dev"))
    by_id = {id: dataset[id, 0] for id in dataset.ids}
    assert by_id["u00"].mouth is None
    assert by_id["u00"].waveform is not None
    assert by_id["silent"].waveform is None
    np.testing.assert_array_equal(by_id["silent"].mouth, crops)
    assert by_id["both"].waveform is not None
    assert by_id["both"].mouth is not None
    assert by_id["both"].text == "a word"


def test_unusable_files_are_refused_with_reasons_and_stop_nothing(tmp_path):
    src = write_tones(tmp_path / "src", 2)
    (src / "garbage.mp4").write_bytes(b"not a film" * 100)
    clip = write_clip(src / "mute.mp4", sound=False)
    sources = [
        Source("garbage", src / "garbage.mp4", "text"),
        Source("absent", src / "absent.wav", "text"),
        Source("mute", clip, "text"),
        Source("empty", src / "u00.wav", "  "),
        Source("good", src / "u01.wav", "text"),
    ]
    summary = run(Corpus(tuple(sources)), tmp_path / "dst", num_workers=1)
    assert set(summary.refused) == {"garbage", "absent", "mute", "empty"}
    assert summary.refused["empty"] == "it has no text"
    assert all(summary.refused.values())
    assert summary.num_utterances == {"train": 1}
    saved = json.loads((tmp_path / "dst" / "prepare.json").read_text())
    assert saved["refused"] == summary.refused
    assert "refused: 4" in str(summary)


def test_second_run_reads_nothing_and_changed_files_are_read_again(tmp_path, monkeypatch):
    src = write_tones(tmp_path / "src", 3)
    first = run(folder.list_sources(src, "train"), tmp_path / "dst")
    read: list[str] = []

    def counting(path, *, tracker):
        read.append(path.stem)
        return load_media(path, tracker=tracker)

    monkeypatch.setattr(prepare_module, "load_media", counting)
    again = run(folder.list_sources(src, "train"), tmp_path / "dst")
    assert read == []
    assert again == dataclasses.replace(first, num_new=0)
    (src / "u01.txt").write_text("other words")
    soundfile.write(src / "u02.wav", np.ones(8000) * 0.1, 16_000)
    assert run(folder.list_sources(src, "train"), tmp_path / "dst").num_new == 2
    assert sorted(read) == ["u01", "u02"]
    cuts = load_cuts(tmp_path / "dst", "train")
    assert cuts["u01"].supervisions[0].text == "other words"
    assert cuts["u02"].duration == 0.5


def test_another_pipeline_makes_everything_anew(tmp_path, monkeypatch):
    src = write_tones(tmp_path / "src", 2)
    run(folder.list_sources(src, "train"), tmp_path / "dst")
    monkeypatch.setattr(prepare_module, "PIPELINE_VERSION", prepare_module.PIPELINE_VERSION + 1)
    assert run(folder.list_sources(src, "train"), tmp_path / "dst").num_new == 2
    assert run(folder.list_sources(src, "train"), tmp_path / "dst").num_new == 0


def test_a_text_in_another_encoding_is_refused_alone(tmp_path):
    src = write_tones(tmp_path / "src", 3)
    (src / "u00.txt").write_bytes("\ufeffgrün".encode())
    (src / "u01.txt").write_bytes("grün".encode("latin-1"))
    summary = run(folder.list_sources(src, "train"), tmp_path / "dst")
    assert list(summary.refused) == ["u01"]
    assert "u01.txt is not in UTF-8" in summary.refused["u01"]
    assert load_cuts(tmp_path / "dst", "train")["u00"].supervisions[0].text == "grün"
    (src / "u01.txt").write_text("grün", encoding="utf-8")
    assert run(folder.list_sources(src, "train"), tmp_path / "dst").num_utterances == {"train": 3}


def test_moving_to_another_split_leaves_no_copy_behind(tmp_path):
    src = write_tones(tmp_path / "src", 2)
    run(folder.list_sources(src, "train"), tmp_path / "dst")
    summary = run(folder.list_sources(src, "test"), tmp_path / "dst")
    assert summary.num_utterances == {"test": 2}
    assert "2 utterances moved from split train to test" in str(summary)
    with pytest.raises(ValueError, match="it has test"):
        load_cuts(tmp_path / "dst", "train")


def test_a_second_corpus_joins_the_first(tmp_path):
    run(folder.list_sources(write_tones(tmp_path / "src", 2), "train"), tmp_path / "dst")
    other = write_tones(tmp_path / "other" / "x", 3)
    summary = run(folder.list_sources(other.parent, "dev"), tmp_path / "dst")
    assert summary.num_utterances == {"dev": 3, "train": 2}


_SLOW_RUN = """
import sys, time
from pathlib import Path
from mtsk.data import prepare as module
from mtsk.data.corpora import folder
load = module.load_media
def slow(path, *, tracker):
    time.sleep(0.1)
    return load(path, tracker=tracker)
module.load_media = slow
module.prepare(folder.list_sources(Path(sys.argv[1]), "train"), Path(sys.argv[2]), module.Settings(None),
               num_workers=0, progress=False)
"""


def test_going_on_after_a_kill(tmp_path):
    src = write_tones(tmp_path / "src", 30)
    log = tmp_path / "killed" / "prepare_log.jsonl"
    with subprocess.Popen([sys.executable, "-c", _SLOW_RUN, src, tmp_path / "killed"]) as process:
        for _ in range(600):
            if log.exists() and log.read_text().count("\n") >= 5:
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    num_done = log.read_text().count("\n")
    assert 5 <= num_done < 30
    with log.open("a") as file:
        file.write('{"id": "u29", "spl')  # as if killed while writing
    assert not list((tmp_path / "killed").glob("cuts_*"))

    summary = run(folder.list_sources(src, "train"), tmp_path / "killed", num_workers=1)
    assert summary.num_new == 30 - num_done
    straight = run(folder.list_sources(src, "train"), tmp_path / "straight")
    assert dataclasses.replace(summary, num_new=30) == straight
    manifests = [CutSet.from_file(tmp_path / name / "cuts_train.jsonl.gz") for name in ("killed", "straight")]
    assert list(manifests[0]) == list(manifests[1])
    for path in sorted((tmp_path / "straight" / "audio").iterdir()):
        np.testing.assert_array_equal(
            soundfile.read(path)[0], soundfile.read(tmp_path / "killed" / "audio" / path.name)[0]
        )


def test_manifests_are_written_again_if_the_run_ended_just_before(tmp_path, monkeypatch):
    src = write_tones(tmp_path / "src", 2)
    run(folder.list_sources(src, "train"), tmp_path / "dst")
    (src / "u00.txt").write_text("new words")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(prepare_module, "_write_manifests", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder.list_sources(src, "train"), tmp_path / "dst")
    run(folder.list_sources(src, "train"), tmp_path / "dst")
    assert load_cuts(tmp_path / "dst", "train")["u00"].supervisions[0].text == "new words"


def test_a_full_disk_is_no_reason_to_refuse_files(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(soundfile, "write", full)
    source = Source("u00", write_clip(tmp_path / "u00.mp4"), "text")
    with pytest.raises(OSError, match="No space left"):
        run(Corpus((source,)), tmp_path / "dst")


def test_a_file_whose_process_died_is_refused_and_tried_again_next_time(tmp_path, monkeypatch):
    src = write_tones(tmp_path / "src", 3)

    def first_dies(function, items, num_workers):
        yield Died(items[0])
        yield from map(function, items[1:])

    with monkeypatch.context() as context:
        context.setattr(prepare_module, "map_unordered", first_dies)
        summary = run(folder.list_sources(src, "train"), tmp_path / "dst")
    assert list(summary.refused) == ["u00"]
    assert "died" in summary.refused["u00"]
    summary = run(folder.list_sources(src, "train"), tmp_path / "dst")
    assert summary.num_new == 1
    assert summary.num_utterances == {"train": 3}


def test_media_errors_are_value_errors():
    assert issubclass(MediaError, ValueError)
