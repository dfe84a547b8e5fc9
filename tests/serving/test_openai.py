"""The official client, against a server that listens: every format, streamed or not, with every granularity."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
)

from mtsk.inference.engine import Engine

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES: tuple[Any, ...] = (None, ["word"], ["segment"], ["word", "segment"])


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="any", base_url=f"{address}/v1", max_retries=0, _strict_response_validation=True) as it:
        yield it


def options(granularities: Any) -> dict[str, Any]:
    return {} if granularities is None else {"timestamp_granularities": granularities}


@pytest.mark.parametrize(("name", "granularities"), product(FORMATS, GRANULARITIES))
def test_whole(client: openai.OpenAI, engine: Engine, sound: Path, name: Any, granularities: Any) -> None:
    expected = engine.transcribe(sound, "a4")
    with sound.open("rb") as file:
        answer: Any = client.audio.transcriptions.create(
            file=file, model="mtsk@a4", response_format=name, **options(granularities)
        )
    if name == "json":
        assert isinstance(answer, Transcription)
        assert answer.text == expected.text
        assert answer.usage is not None
        assert answer.usage.type == "tokens"
        assert answer.usage.input_tokens == expected.num_tokens
    elif name == "verbose_json":
        assert isinstance(answer, TranscriptionVerbose)
        assert (answer.text, answer.language, answer.duration) == (expected.text, "english", 1.0)
        if granularities is None or "segment" in granularities:
            assert answer.segments is not None
            assert [each.text for each in answer.segments] == [each.text for each in expected.segments]
        else:
            assert answer.segments is None
        if granularities is not None and "word" in granularities:
            assert answer.words is not None
            words = expected.segments[0].words
            assert [(each.word, each.start) for each in answer.words] == [(w.text, round(w.start_s, 3)) for w in words]
        else:
            assert answer.words is None
    else:
        assert isinstance(answer, str)
        assert (
            " ".join(expected.text.split())
            in " ".join(answer.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").split())
            or name == "vtt"
        )
        assert answer.startswith({"text": expected.text, "srt": "1\n00:00:00,", "vtt": "WEBVTT\n\n00:00:00."}[name])


@pytest.mark.parametrize(("name", "granularities"), product(FORMATS, GRANULARITIES))
def test_streamed(client: openai.OpenAI, engine: Engine, sound: Path, name: Any, granularities: Any) -> None:
    expected = engine.transcribe(sound, "a4")
    with sound.open("rb") as file:
        stream: Any = client.audio.transcriptions.create(
            file=file, model="mtsk@a4", response_format=name, stream=True, **options(granularities)
        )
        events = list(stream)
    *deltas, done = events
    assert all(isinstance(each, TranscriptionTextDeltaEvent) for each in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(each.delta for each in deltas) == done.text == expected.text
    assert done.usage is not None
    assert done.usage.input_tokens == expected.num_tokens
    assert done.model_extra is not None
    assert done.model_extra["mtsk"]["scale"] == "a4"


def test_scale_and_extras(client: openai.OpenAI, engine: Engine, sound: Path) -> None:
    with sound.open("rb") as file:
        raw = client.audio.transcriptions.with_raw_response.create(
            file=file, model="whisper-1", extra_body={"scale": "a16"}, language="en", prompt="x", temperature=0
        )
    assert raw.headers["x-mtsk-scale"] == "a16"
    assert raw.parse().text == engine.transcribe(sound, "a16").text


def test_models(client: openai.OpenAI, engine: Engine) -> None:
    names = [each.id for each in client.models.list()]
    assert names == ["mtsk", *(f"mtsk@{scale}" for scale in engine.grid)]
    assert client.models.retrieve("mtsk@a4").owned_by == "mtsk"


def test_errors_are_its_own(client: openai.OpenAI, sound: Path, tmp_path: Path) -> None:
    def create(path: Path, **fields: Any) -> None:
        with path.open("rb") as file:
            client.audio.transcriptions.create(file=file, **{"model": "mtsk", **fields})

    with pytest.raises(openai.NotFoundError) as missing:
        create(sound, model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        create(sound, language="fr")
    assert wrong.value.param == "language"
    assert wrong.value.type == "invalid_request_error"
    (tmp_path / "letter.wav").write_text("dear")
    with pytest.raises(openai.BadRequestError, match="cannot be read as sound or video"):
        create(tmp_path / "letter.wav")
    with pytest.raises(openai.BadRequestError):
        create(tmp_path / "letter.wav", stream=True)
