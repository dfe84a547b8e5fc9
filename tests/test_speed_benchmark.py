"""The pure parts of the benchmark of speed: joining recordings, naming weights, the stopwatch, and the tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from benchmarks.recordings import PAUSES_S, SAMPLE_RATE_HZ, Silence, Utterance, plan, text_of, write_recording
from benchmarks.speed_tables import PARTS, report, speed_ratios
from benchmarks.systems import Stopwatch, openai_name
from benchmarks.workers import Worker, peak_rss_mib


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    made = []
    for index, (duration_s, text) in enumerate(((1.5, "one"), (2.0, "two two"))):
        path = tmp_path / f"{index}.flac"
        sf.write(path, np.full(round(duration_s * SAMPLE_RATE_HZ), 0.25 * (index + 1), np.float32), SAMPLE_RATE_HZ)
        made.append(Utterance(path, duration_s, text))
    return made


def test_plan_fills_the_duration(utterances: list[Utterance]) -> None:
    parts = plan(utterances, 30.0)
    assert sum(part if isinstance(part, float) else part.duration_s for part in parts) == pytest.approx(30.0)
    spoken = [part for part in parts if isinstance(part, Utterance)]
    assert spoken == [utterances[index % 2] for index in range(len(spoken))]
    assert text_of(parts).startswith("one two two one")
    pauses = [part for part in parts[:-1] if isinstance(part, float)]
    assert all(PAUSES_S[0] <= pause <= PAUSES_S[1] for pause in pauses)
    assert len(set(pauses)) > 1


def test_plan_puts_silences_in_their_places(utterances: list[Utterance]) -> None:
    parts = plan(utterances, 60.0, (Silence(0.75, 7.0), Silence(0.25, 5.0)))
    assert [part for part in parts[:-1] if isinstance(part, float) and part > PAUSES_S[1]] == [5.0, 7.0]
    before_s = sum(part if isinstance(part, float) else part.duration_s for part in parts[: parts.index(5.0)])
    assert 15.0 <= before_s <= 15.0 + 2.0 + PAUSES_S[1]
    assert sum(part if isinstance(part, float) else part.duration_s for part in parts) == pytest.approx(60.0)


def test_recording_is_its_parts(tmp_path: Path, utterances: list[Utterance]) -> None:
    path = tmp_path / "joined.flac"
    write_recording(path, [utterances[0], 12.5, utterances[1]])
    samples, rate_hz = sf.read(path, dtype="float32")
    assert (rate_hz, len(samples)) == (SAMPLE_RATE_HZ, 16 * SAMPLE_RATE_HZ)
    ends = np.cumsum([round(each * SAMPLE_RATE_HZ) for each in (1.5, 12.5, 2.0)])
    first, pause, last = samples[: ends[0]], samples[ends[0] : ends[1]], samples[ends[1] :]
    assert first == pytest.approx(0.25, abs=1e-3)
    assert last == pytest.approx(0.5, abs=1e-3)
    assert 1e-4 < pause.std() < 1e-3


def test_stopwatch_counts_nested_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    def spend(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    watch = Stopwatch()

    def outer() -> None:
        spend(1.0)
        watch.call("encode", spend, 2.0)
        watch.call("encode", spend, 4.0)
        spend(8.0)

    watch.call("decode", outer)
    watch.call("decode", spend, 16.0)
    watch.move(5.0, "decode", "media")
    assert watch.lap() == {"encode": 6.0, "decode": 20.0, "media": 5.0}
    assert watch.lap() == {}


def test_stopwatch_times_threads_and_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that is run by another thread counts for itself, and is closed with its reader."""
    now_s = 0.0
    closed: list[bool] = []

    class Source:
        def items(self) -> Generator[int, None, None]:
            nonlocal now_s
            try:
                for item in range(3):
                    now_s += 1.0
                    watch.call("faces", lambda: None)
                    yield item
            finally:
                closed.append(True)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    watch = Stopwatch()
    watch.patch_generator(Source, "items", "media")

    def read_in_thread() -> list[int]:
        read: list[int] = []
        thread = threading.Thread(target=lambda: read.extend(Source().items()))
        thread.start()
        thread.join()
        return read

    assert watch.call("wait", read_in_thread) == [0, 1, 2]
    assert watch.lap() == {"media": 3.0, "faces": 0.0, "wait": 3.0}
    items = Source().items()
    assert next(items) == 0
    items.close()
    assert closed == [True, True]


def test_names_of_openai() -> None:
    names = {
        "model.encoder.conv1.weight": "encoder.conv1.weight",
        "model.encoder.embed_positions.weight": "encoder.positional_embedding",
        "model.encoder.layer_norm.bias": "encoder.ln_post.bias",
        "model.decoder.layers.3.self_attn.q_proj.bias": "decoder.blocks.3.attn.query.bias",
        "model.decoder.layers.3.encoder_attn.out_proj.weight": "decoder.blocks.3.cross_attn.out.weight",
        "model.decoder.layers.3.self_attn_layer_norm.weight": "decoder.blocks.3.attn_ln.weight",
        "model.decoder.layers.3.encoder_attn_layer_norm.weight": "decoder.blocks.3.cross_attn_ln.weight",
        "model.decoder.layers.3.final_layer_norm.weight": "decoder.blocks.3.mlp_ln.weight",
        "model.decoder.layers.3.fc2.weight": "decoder.blocks.3.mlp.2.weight",
        "model.decoder.embed_tokens.weight": "decoder.token_embedding.weight",
        "model.decoder.layer_norm.bias": "decoder.ln.bias",
    }
    assert {name: openai_name(name) for name in names} == names


def test_peak_memory_grows_with_what_is_used() -> None:
    before_mib = peak_rss_mib()
    assert np.ones(300 * 2**20, np.uint8).all()
    assert peak_rss_mib() >= before_mib
    assert 300 < peak_rss_mib() < 2**20


class Upper:
    """A system that writes file names, in capitals if the setting says so."""

    settle_s = 0.0

    def __init__(self, threads: int) -> None:
        self.watch = Stopwatch()

    def transcribe(self, setting: str, paths: Sequence[Path]) -> list[str]:
        if setting not in ("upper", "lower"):
            raise ValueError(f"no setting {setting!r}")
        names = [path.name for path in paths]
        texts: list[str] = self.watch.call("decode", lambda: [getattr(name, setting)() for name in names])
        return texts


def test_worker_is_asked_in_turn() -> None:
    with Worker(Upper, 1) as worker:
        first = worker.run("upper", [Path("a.mp4"), Path("b.mp4")])
        assert (first.texts, list(first.stages)) == (["A.MP4", "B.MP4"], ["decode"])
        assert 0.0 < first.stages["decode"] <= first.seconds
        assert worker.run("lower", [Path("a.mp4")]).texts == ["a.mp4"]
        assert worker.peak_mib() > 10
        assert worker.load_s >= 0.0
        with pytest.raises(RuntimeError, match="no setting 'title'"):
            worker.run("title", [Path("a.mp4")])


def _row(system: str, setting: str, seconds: list[float], batch: int = 1, audio_s: float = 3.0) -> dict[str, Any]:
    stages = [{"media": each / 4, "decode": 3 * each / 4} for each in seconds]
    return {
        "system": system, "setting": setting, "batch": batch, "audio_s": audio_s,
        "seconds": seconds, "stages": stages, "wer": 0.125,
    }  # fmt: skip


def _figures(rows: list[dict[str, Any]], peak_mib: float) -> dict[str, Any]:
    return {
        "model": "grid-s1",
        "settings": {"threads": 2, "silences": [{"share": 0.5, "duration_s": 90.0}]},
        "about": {"hardware": "a machine", "python": "3.11.0", "versions": {"torch": "2.13.0"}},
        "systems": {"mtsk": {"load_s": 1.5, "peak_mib": peak_mib}},
        "rows": rows,
    }


def test_report() -> None:
    """Ratios are of the same rounds, and each figure is held against its limit."""
    clips = [
        _row("mtsk", "a16", [0.1, 0.2, 0.4]),
        _row("mtsk", "a16v5", [0.3, 0.6, 0.9]),
        _row("faster-whisper int8", "greedy", [0.4, 0.7, 1.2]),
        _row("mtsk", "a16", [1.6], batch=8, audio_s=24.0),
        _row("faster-whisper int8", "batched, greedy", [3.2], batch=8, audio_s=24.0),
    ]
    long = [_row("mtsk", "a4", [30.0], 8, 600.0), _row("faster-whisper int8", "batched, greedy", [33.0], 8, 600.0)]
    hour = [_row("mtsk", "a4", [180.0], 8, 3600.0)]
    parts = dict(zip(PARTS, (_figures(clips, 900.0), _figures(long, 2049.0), _figures(hour, 1000.0)), strict=True))
    lines = report(parts).splitlines()
    assert "| clips, a16: times as fast as faster-whisper int8, greedy | at least 3 | 3.50 | yes |" in lines
    assert "| clips, a16v5 with faces: real-time factor | at most 0.15 | 0.200 | no |" in lines
    asked = "ten-minutes, mtsk, a4: real-time factor, against faster-whisper int8, batched"
    assert f"| {asked} | at most 0.055 | 0.050 | yes |" in lines
    assert "| ten-minutes: peak memory, MiB | at most 2048 | 2049 | no |" in lines
    assert "| hour: peak memory, MiB | at most 2048 | 1000 | yes |" in lines
    assert "| mtsk | a16 | 200 | 0.067 | 3.50 (3.00, 4.00) | 50 | 150 | 12.5 % |" in lines
    assert "| mtsk | a16 | 200 | 0.067 | 2.00 (2.00, 2.00) | 50 | 150 | 12.5 % |" in lines
    assert "## A recording of 60 minutes, 1.5 of them silence" in lines
    assert any("a machine, 2 threads on 2 cores; Python 3.11.0, torch 2.13.0." in line for line in lines)
    assert report({"clips": parts["clips"]}).count("## ") == 1


def test_ratios_of_common_rounds() -> None:
    """What ran more often than the peer is compared in the rounds that both were in."""
    assert speed_ratios(_row("mtsk", "a4", [1.0, 2.0]), _row("other", "greedy", [3.0])) == [3.0]
