"""The log of a prepared folder: on disk, not in memory."""

import json
import pickle
from pathlib import Path
from typing import Any

from mtsk.data.prepare_log import Log, Record


def cut(id: str, num_words: int = 3, *, lips: bool = True) -> dict[str, Any]:
    words = [[f"word{n}", 0.1 * n, 0.1, None] for n in range(num_words)]
    custom: dict[str, Any] = {"has_audio": True}
    if lips:
        custom["mouth"] = {"array": {"shape": [50, 96, 96]}}
    return {"id": id, "duration": 2.0, "supervisions": [{"alignment": {"word": words}}], "custom": custom}


def test_records_come_back_and_the_latest_counts(tmp_path: Path) -> None:
    first = Record("a", "train", "key 1", (cut("a_00"), cut("a_01", lips=False)), warnings=("w",))
    second = Record("b", "dev", "key", (), "no text")
    newer = Record("a", "test", "key 2", (cut("a_00"),), retry=True)
    with Log(tmp_path / "log") as log:
        for record in (first, second):
            log.add(record)
        assert list(log.read(["b", "a"])) == [second, first]
        entry = log.entries["a"]
        assert (entry.num_cuts, entry.num_without_lips, entry.num_frames, entry.duration_s) == (2, 1, 50, 4.0)
        assert log.is_done("a", "key 1")
        assert not log.is_done("a", "key 2")
        assert not log.is_done("c", "key")
        log.add(newer)
        assert list(log.read(["a"])) == [newer]
    again = Log(tmp_path / "log")
    assert again.entries == log.entries
    assert list(again.read(sorted(again.entries))) == [newer, second]
    assert not again.is_done("a", "key 2")  # to be tried again


def test_a_line_cut_short_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "log"
    records = [Record(id, "train", "k", (cut(id),)) for id in "abc"]
    with Log(path) as log:
        log.add(records[0])
        log.add(records[1])
    path.write_bytes(path.read_bytes()[:-20])
    with Log(path) as log:
        assert list(log.entries) == ["a"]
        log.add(records[2])
    assert list(Log(path).read("ac")) == [records[0], records[2]]
    assert path.read_bytes().count(b"\n") == 2


def test_logs_with_one_cut_a_file_are_read(tmp_path: Path) -> None:
    """As versions wrote them that knew no pieces: what they prepared is not prepared again."""
    old = {
        "id": "a",
        "split": "train",
        "key": "k",
        "cut": cut("a"),
        "reason": "",
        "warnings": [],
        "num_interpolated": 0,
    }
    refused = {**old, "id": "b", "cut": None, "reason": "no text", "num_missing": 0, "retry": False}
    (tmp_path / "log").write_text(json.dumps(old) + "\n" + json.dumps(refused) + "\n")
    log = Log(tmp_path / "log")
    assert log.is_done("a", "k")
    assert [len(record.cuts) for record in log.read("ab")] == [1, 0]


def test_memory_does_not_hold_the_words(tmp_path: Path) -> None:
    with Log(tmp_path / "log") as log:
        for number in range(50):
            log.add(Record(f"clip{number}", "train", "key" * 1000, (cut("x", 2000),)))
    assert (tmp_path / "log").stat().st_size > 50 * 40_000
    assert len(pickle.dumps(log.entries)) < 50 * 300
