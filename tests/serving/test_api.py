"""The routes, through a client in the same process."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from mtsk.inference.engine import Engine
from mtsk.serving.app import create_app
from mtsk.serving.errors import overloaded
from mtsk.serving.load import Degrader, LoadRules
from mtsk.serving.settings import Settings
from mtsk.types import FaceModels
from tests.commands.conftest import write_face
from tests.serving.conftest import tiny_engine

ROUTE = "/v1/audio/transcriptions"
CALM: dict[str, Any] = {"default": "best", "target_wait_s": 1e6, "max_wait_s": 1e6}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(tiny_engine(), Settings(**CALM)), raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: Path, route: str = ROUTE, **fields: Any) -> Any:
    with path.open("rb") as file:
        return client.post(route, files={"file": (path.name, file)}, data=fields)


def error_of(answer: Any) -> dict[str, Any]:
    """In OpenAI's shape, and nothing else."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def test_the_text_is_that_of_the_engine(client: TestClient, engine: Engine, sound: Path) -> None:
    expected = engine.transcribe(sound, "a4")
    answer = post(client, sound, response_format="verbose_json", model="mtsk@a4")
    assert answer.status_code == 200
    body = answer.json()
    assert body["text"] == expected.text
    [segment] = body["segments"]
    assert (segment["text"], segment["start"]) == (expected.text, 0.0)
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "english", 1.0)
    assert "words" not in body
    assert body["mtsk"]["scale"] == answer.headers["x-mtsk-scale"] == "a4"
    assert body["mtsk"]["tokens"] == int(answer.headers["x-mtsk-tokens"]) == expected.num_tokens
    assert body["mtsk"]["degraded"] is False
    assert answer.headers["x-mtsk-degraded"] == "false"
    assert float(answer.headers["x-mtsk-tflops"]) == pytest.approx(body["mtsk"]["tflops"]) != 0
    assert engine.model.prompts.decode(segment["tokens"]) == expected.text


def test_a_long_recording(client: TestClient, engine: Engine, long_sound: Path) -> None:
    """In several batches, in the order of time."""
    expected = engine.transcribe(long_sound, "a4")
    assert len(expected.segments) > 2
    body = post(client, long_sound, response_format="verbose_json", scale="a4").json()
    assert body["text"] == expected.text
    assert [each["start"] for each in body["segments"]] == [round(s.start_s, 3) for s in expected.segments]
    assert [each["text"] for each in body["segments"]] == [s.text for s in expected.segments]


def test_auto_is_that_of_the_engine(
    client: TestClient, engine: Engine, tmp_path: Path, face_models: FaceModels, face_frames: list[NDArray[np.uint8]]
) -> None:
    """Sound first, then a look at the lips, by another thread, and a second pass."""
    clip = write_face(tmp_path / "clip.mp4", face_frames)
    expected = engine.transcribe(clip, policy="auto")
    decision = expected.segments[0].decision
    assert decision is not None
    assert list(map(str, decision.tried)) == ["a16", "a4v2"]
    body = post(client, clip, response_format="verbose_json", policy="auto").json()
    assert body["text"] == expected.text
    assert (body["mtsk"]["policy"], body["mtsk"]["scale"]) == ("auto", "a4v2")
    assert body["mtsk"]["tokens"] == expected.num_tokens
    assert body["mtsk"]["tflops"] * 1e12 >= expected.flops  # sound is encoded for both passes


def test_video_lips_and_mouth(
    client: TestClient, engine: Engine, tmp_path: Path, face_models: FaceModels, face_frames: list[NDArray[np.uint8]]
) -> None:
    clip = write_face(tmp_path / "clip.mp4", face_frames)
    for scale in ("v2", "a4v2"):
        assert post(client, clip, scale=scale).json()["text"] == engine.transcribe(clip, scale).text
    assert post(client, clip).headers["x-mtsk-scale"] == "a4v2"
    sheet = post(client, clip, "/v1/mtsk/mouth").json()
    assert (sheet["fps"], sheet["size"], sheet["columns"]) == (25, 96, 25)
    kind, _, data = sheet["image"].partition(",")
    assert kind == "data:image/png;base64"
    picture = Image.open(io.BytesIO(__import__("base64").b64decode(data)))
    assert picture.size == (25 * 96, -(-sheet["num_frames"] // 25) * 96)
    compared = post(client, clip, "/v1/mtsk/compare").json()
    assert [each["scale"] for each in compared["scales"]] == list(map(str, engine.grid))
    for each in compared["scales"]:
        assert each["text"] == engine.transcribe(clip, each["scale"]).text
        assert each["used"] == each["scale"]
        assert each["ms"] >= each["decode_ms"] > 0
        assert each["tflops"] > 0


def test_a_video_without_a_face(client: TestClient, tmp_path: Path, face_models: FaceModels) -> None:
    clip = write_face(tmp_path / "clip.mp4", [np.zeros((120, 160, 3), np.uint8)] * 40)
    answer = post(client, clip, response_format="verbose_json")
    assert answer.headers["x-mtsk-scale"] == "a4"
    assert any("no face" in warning for warning in answer.json()["mtsk"]["warnings"])
    assert "no face" in error_of(post(client, clip, scale="v2"))["message"]
    assert "no face" in error_of(post(client, clip, "/v1/mtsk/mouth"))["message"]


def test_compare_sound_alone(client: TestClient, engine: Engine, sound: Path) -> None:
    body = post(client, sound, "/v1/mtsk/compare").json()
    assert body["duration_s"] == 1.0
    assert [each["scale"] for each in body["scales"]] == ["a4", "a16"]
    for each in body["scales"]:
        expected = engine.transcribe(sound, each["scale"])
        assert (each["text"], each["tokens"]) == (expected.text, expected.num_tokens)
        assert [word["word"] for word in each["words"]] == expected.text.split()
    chosen = post(client, sound, "/v1/mtsk/compare", scales="a16,a4").json()
    assert [each["scale"] for each in chosen["scales"]] == ["a16", "a4"]
    assert error_of(post(client, sound, "/v1/mtsk/compare", scales="a9"))["param"] == "scale"
    assert "no video" in error_of(post(client, sound, "/v1/mtsk/compare", scales="v2"))["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"language": "de"}, 400, "language"),
        ({"temperature": "1.5"}, 400, "temperature"),
        ({"temperature": "nan"}, 400, "temperature"),
        ({"response_format": "xml"}, 400, "response_format"),
        ({"timestamp_granularities[]": "letter"}, 400, "timestamp_granularities[]"),
        ({"stream": "perhaps"}, 400, "stream"),
        ({"model": "gpt-9"}, 404, "model"),
        ({"scale": "a9"}, 400, "scale"),
        ({"budget_ms": "-3"}, 400, "budget_ms"),
        ({"policy": "best"}, 400, "policy"),
        ({"timeout_s": "0"}, 400, "timeout_s"),
    ],
)
def test_fields_that_are_refused(
    client: TestClient, sound: Path, fields: dict[str, str], status: int, param: str
) -> None:
    answer = post(client, sound, **fields)
    assert answer.status_code == status
    assert error_of(answer)["param"] == param


def test_fields_that_are_tolerated(client: TestClient, engine: Engine, sound: Path) -> None:
    answer = post(
        client, sound, model="whisper-1", language="en", prompt="a name", temperature="0", include=["logprobs"],
        chunking_strategy="auto",
    )  # fmt: skip
    assert answer.json()["text"] == engine.transcribe(sound).text


@pytest.mark.parametrize("content", [b"", b"dear", b"RIFF\x00\x00\x00\x00WAVE", bytes(range(256)) * 40])
def test_files_that_are_none(client: TestClient, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.mp4"
    path.write_bytes(content)
    for route in (ROUTE, "/v1/mtsk/compare", "/v1/mtsk/mouth"):
        answer = post(client, path, route)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "file"
        assert str(tmp_path.parent) not in answer.text
        assert "/tmp" not in answer.text


def test_a_missing_file_and_other_bodies(client: TestClient) -> None:
    assert error_of(client.post(ROUTE, data={"model": "mtsk"}))["param"] == "file"
    assert client.post(ROUTE, json={"file": 1}).status_code == 400
    assert (
        client.post(ROUTE, content=b"--x", headers={"content-type": "multipart/form-data; boundary=y"}).status_code
        == 400
    )
    assert client.post(ROUTE, content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert client.post(ROUTE, data={"file": "text"}).status_code == 400


def test_other_routes(client: TestClient) -> None:
    assert error_of(client.get("/nowhere"))["type"] == "not_found_error"
    assert client.get("/nowhere").status_code == 404
    answer = client.put("/v1/models")
    assert (answer.status_code, error_of(answer)["param"]) == (405, None)
    assert error_of(client.get("/page/none.js"))["type"] == "not_found_error"
    assert error_of(client.get("/page/../app.py"))["type"] == "not_found_error"
    assert client.get("/page/..%2fapp.py").status_code == 404


def test_models(client: TestClient, engine: Engine) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [each["id"] for each in body["data"]] == ["mtsk", *(f"mtsk@{scale}" for scale in engine.grid)]
    assert client.get("/v1/models/mtsk@a4v2").json()["object"] == "model"
    assert error_of(client.get("/v1/models/gpt-9"))["code"] == "model_not_found"


def test_operations(client: TestClient, sound: Path) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    post(client, sound)
    text = client.get("/metrics").text
    for name in (
        "requests_total", "requests_running", "requests_waiting", "rejections_total", "degradations_total",
        "time_to_first_text_seconds_count", "latency_seconds_count", "queue_seconds_count", "llm_tokens_total",
        "requests_by_scale_total", "real_time_factor_count",
    ):  # fmt: skip
        assert f"mtsk_{name}" in text
    assert 'mtsk_requests_total{route="/v1/audio/transcriptions",status="200"}' in text
    policy = client.get("/health").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_streams(client: TestClient, engine: Engine, long_sound: Path) -> None:
    expected = engine.transcribe(long_sound, "a16")
    answer = post(client, long_sound, stream="true", scale="a16", response_format="srt")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-mtsk-scale"] == "a16"
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    *deltas, done = events
    assert {each["type"] for each in deltas} == {"transcript.text.delta"}
    assert len(deltas) == sum(bool(segment.text) for segment in expected.segments)
    assert "".join(each["delta"] for each in deltas) == done["text"] == expected.text
    assert done["type"] == "transcript.text.done"
    assert done["mtsk"]["tokens"] == expected.num_tokens
    assert done["document"].startswith("1\n00:00:")


def test_a_stream_of_nothing_readable_has_a_status(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_text("dear")
    assert post(client, tmp_path / "letter.wav", stream="true").status_code == 400


def app_with(**settings: Any) -> FastAPI:
    return create_app(tiny_engine(), Settings(**{**CALM, **settings}))


def test_a_key_is_asked_for(sound: Path) -> None:
    with TestClient(app_with(api_key=("secret", "other"))) as client:
        for route in ("/v1/models", "/ready", "/metrics", "/openapi.json", "/nowhere"):
            answer = client.get(route)
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert post(client, sound).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code != 401
        assert client.get("/page/none.js").status_code == 404
        for key in ("secret", "other"):
            assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Bearer secre"}).status_code == 401


def test_limits(sound: Path, long_sound: Path) -> None:
    with TestClient(app_with(max_upload_mb=0.1, max_duration_s=0.5)) as client:
        answer = post(client, long_sound)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")
        head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

        def unsized() -> Iterator[bytes]:
            yield head
            for _ in range(20):
                yield bytes(10_000)

        kind = {"content-type": "multipart/form-data; boundary=x"}
        answer = client.post(ROUTE, content=unsized(), headers=kind)
        assert (answer.status_code, error_of(answer)["type"]) == (413, "invalid_request_error")
        assert "lasts 1 s; allowed are 0" in error_of(post(client, sound))["message"]
    with TestClient(app_with(requests_per_minute=2.0)) as client:
        assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        answer = client.get("/v1/models")
        assert error_of(answer)["code"] == "rate_limit_exceeded"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert client.get("/ready").status_code == 200


def test_large_pictures_are_refused(tmp_path: Path, face_models: FaceModels) -> None:
    clip = write_face(tmp_path / "clip.mp4", [np.zeros((120, 160, 3), np.uint8)] * 40)
    with TestClient(app_with(max_side_px=100)) as client:
        assert "160 x 120 pixels; at most 100" in error_of(post(client, clip))["message"]


def test_what_takes_too_long(client: TestClient, long_sound: Path) -> None:
    answer = post(client, long_sound, timeout_s="0.001")
    assert (answer.status_code, error_of(answer)["code"]) == (408, "timeout")


def test_a_bug_is_an_answer_too(
    client: TestClient, sound: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    engine = client.app.state.server.engine  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "encode", fail)
        answer = post(client, sound)
    assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
    assert "broken" not in answer.text
    assert "broken" in caplog.text
    assert post(client, sound).status_code == 200  # it goes on


def test_the_log_tells_all_but_what_was_said(client: TestClient, sound: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mtsk.serving")
    text = post(client, sound).json()["text"]
    [record] = [each for each in caplog.records if each.getMessage() == "request"]
    fields = record.mtsk_fields  # type: ignore[attr-defined]
    assert {"id", "path", "status", "seconds", "scale", "degraded", "tokens"} <= set(fields)
    assert text not in json.dumps(fields)
    with TestClient(app_with(log_transcripts=True)) as talkative:
        post(talkative, sound)
    assert caplog.records[-1].mtsk_fields["text"] == text or text in caplog.text  # type: ignore[attr-defined]


def _refuse(*_: object) -> None:
    raise overloaded(3.0)


def test_degraded_is_told(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtsk.serving.plans._MIN_SAVING", 1e-9)  # rates cost a tiny model nearly the same
    app = app_with()
    degrader = Degrader(LoadRules(1e6, 1e6, calm_s=1e9))
    degrader.level = 1
    app.state.server.batcher._desk._degrader = degrader
    with TestClient(app) as client:
        answer = post(client, sound, response_format="verbose_json")
        assert (answer.headers["x-mtsk-scale"], answer.headers["x-mtsk-degraded"]) == ("a16", "true")
        assert (answer.json()["mtsk"]["asked"], answer.json()["mtsk"]["degraded"]) == ("a4", True)
        for fields in ({"scale": "a4"}, {"model": "mtsk@a4"}, {"policy": "fixed"}):
            assert post(client, sound, **fields).headers["x-mtsk-degraded"] == "false"
        assert post(client, sound, stream="true").headers["x-mtsk-degraded"] == "true"


def test_uploads_are_deleted(client: TestClient, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = client.app.state.server.folder  # type: ignore[attr-defined]
    (tmp_path / "letter.wav").write_text("dear")
    for path in (sound, tmp_path / "letter.wav"):
        for route in (ROUTE, "/v1/mtsk/compare", "/v1/mtsk/mouth"):
            post(client, path, route)
    post(client, sound, stream="true")
    post(client, sound, model="gpt-9")
    with monkeypatch.context() as patch:
        patch.setattr(client.app.state.server.batcher, "admit", _refuse)  # type: ignore[attr-defined]
        for stream in ("true", "false"):
            assert post(client, sound, stream=stream).status_code == 429
    assert list(folder.iterdir()) == []


def test_the_schema_names_the_fields(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    body = schema["paths"][ROUTE]["post"]["requestBody"]["content"]
    assert list(body) == ["multipart/form-data"]
    name = body["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    fields = schema["components"]["schemas"][name]["properties"]
    expected = {"file", "model", "language", "prompt", "response_format", "temperature", "stream", "scale"}
    assert {*expected, "timestamp_granularities[]", "budget_ms", "policy"} <= set(fields)
