"""The page's modules that need no browser, run by Node.js against what Python says."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from mtsk.scale import AUDIO_FEATURE_RATE_HZ, VIDEO_FEATURE_RATE_HZ, Scale, ScaleGrid

PAGE = Path(str(files("mtsk.serving"))) / "page"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")

GRID = ScaleGrid.joint((4, 16), (2, 5))


def run(script: str, given: Any = None) -> Any:
    """What a script's `answer` is; it has `given`, and imports modules of the page by `load`."""
    head = (
        f"const given = {json.dumps(given)}; let answer;\nconst load = (name) => import('{PAGE.as_uri()}/' + name);\n"
    )
    source = f"{head}{script}\nconsole.log(JSON.stringify(answer));"
    command = [str(NODE), "--input-type=module", "--no-warnings", "-e", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_scales_mean_what_they_mean_in_python() -> None:
    names = [str(scale) for scale in GRID]
    script = """const { FEATURES_PER_SECOND, parseScale, scalesOfModels, scalesOfClip } = await load("scales.js");
    const models = [{ id: "mtsk" }, ...given.map((name) => ({ id: `mtsk@${name}` })), { id: `mtsk@${given[0]}` }];
    const ofClip = (clip) => scalesOfClip(scalesOfModels(models), clip).map((scale) => scale.name);
    answer = {
      rates: FEATURES_PER_SECOND,
      perSecond: given.map((name) => parseScale(name).tokensPerSecond),
      wrong: ["", "b4", "a0", "a4v", "best", "v2a4"].map(parseScale),
      order: ofClip(null),
      sound: ofClip({ hasSound: null, hasPictures: false }),
      lips: ofClip({ hasSound: false, hasPictures: true }),
    };"""
    answer = run(script, names)
    assert answer["rates"] == {"audio": AUDIO_FEATURE_RATE_HZ, "video": VIDEO_FEATURE_RATE_HZ}
    assert answer["perSecond"] == [scale.tokens_per_second for scale in GRID]
    assert answer["wrong"] == [None] * 6
    assert sorted(answer["order"]) == sorted(names)
    rates = [Scale.parse(name).tokens_per_second for name in answer["order"]]
    assert rates == sorted(rates)
    assert answer["sound"] == ["a16", "a4"]
    assert answer["lips"] == ["v5", "v2"]


def test_the_ruler_shows_the_tokens_that_the_model_gets() -> None:
    lengths_s = [0.1, 1.0, 2.98, 3.0, 7.32]
    script = """const { tokenSpans } = await load("ruler.js");
    answer = given.map(([rate, perSecond, length]) => tokenSpans(rate, perSecond, [[1, 1 + length]]));"""
    cases = [(scale, kind, s) for scale in GRID for kind in ("audio", "video") for s in lengths_s]
    per_second = {"audio": AUDIO_FEATURE_RATE_HZ, "video": VIDEO_FEATURE_RATE_HZ}
    spans = run(script, [[getattr(scale, kind), per_second[kind], s] for scale, kind, s in cases])
    for (scale, kind, length_s), found in zip(cases, spans, strict=True):
        counts = {f"num_{kind}_features": int(length_s * per_second[kind] + 1e-6)}
        assert len(found) == scale.num_tokens(**counts), (scale, kind, length_s)
        assert all(1 <= start < end <= 1 + length_s + 1e-6 for start, end in found)


def test_differences_are_as_few_as_can_be_and_rebuild_both_texts() -> None:
    rng = np.random.default_rng(0)
    words = ["bin", "blue", "at", "f", "two", "now"]
    pairs = [[" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(2)] for _ in range(60)]
    pairs.append(["Bin blue, at F!", "bin blue at f"])
    script = """const { differences } = await load("words.js");
    answer = given.map(([text, reference]) => differences(text, reference));"""
    for (text, reference), steps in zip(pairs, run(script, pairs), strict=True):
        ours = [step["word"] for step in steps if step["kind"] != "missing"]
        assert ours == text.split()
        num_edits = sum(step["kind"] != "same" for step in steps)
        if text.islower() or not text:
            theirs = {"same": "word", "other": "instead", "missing": "word"}
            assert [step[theirs[step["kind"]]] for step in steps if step["kind"] in theirs] == reference.split()
            expected = len(text.split())
            if reference:
                found = jiwer.process_words(reference, text)
                expected = found.substitutions + found.insertions + found.deletions
            assert num_edits == expected, (text, reference)
        else:
            assert num_edits == 0  # capitals and punctuation are no difference


def test_the_majority_is_the_text_that_most_have() -> None:
    script = """const { majority } = await load("words.js"); answer = given.map(majority);"""
    assert run(script, [["a b", "a c", "A c."], ["x", "y"], [""]]) == ["a c", "x", ""]


SERVER = """
globalThis.setTimeout = (then, ms) => (waits.push(ms), queueMicrotask(then), 0);
const waits = [], asked = [], texts = [], keys = [];
const { Api } = await load("api.js");
const utf8 = new TextEncoder();
const stream = (text, size) => new ReadableStream({
  start(sink) {
    const bytes = utf8.encode(text);
    for (let at = 0; at < bytes.length; at += size) sink.enqueue(bytes.slice(at, at + size));
    sink.close();
  },
});
globalThis.fetch = async (path, { headers, body }) => {
  const fields = Object.fromEntries([...body].filter(([name]) => name !== "file"));
  asked.push([path, headers.Authorization ?? null, fields]);
  const next = given.answers.shift();
  const content = next.chunk ? stream(next.body, next.chunk) : next.body;
  return new Response(content, { status: next.status, headers: next.headers ?? {} });
};
const api = new Api(async (wasRefused) => (keys.push(wasRefused), given.keys.shift() ?? null));
const onText = (text) => texts.push(text);
try {
  answer = await api.transcribe(new Blob(["clip"]), "clip.webm", given.choice, { onText });
} catch (error) {
  answer = { error: error.message, status: error.status };
}
answer = { answer, waits, asked, texts, keys };
"""
_EVENTS = [
    {"type": "transcript.text.delta", "delta": "bin bl\u00fce"},
    {"type": "transcript.text.delta", "delta": " now"},
    {"type": "transcript.text.done", "text": "bin bl\u00fce now", "words": [], "mtsk": {"scale": "a4"}},
]
STREAM = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in _EVENTS)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_text_arrives_as_it_is_streamed(chunk: int) -> None:
    found = run(SERVER, {"answers": [{"status": 200, "body": STREAM, "chunk": chunk}], "keys": [], "choice": "a4"})
    assert found["answer"] == {"text": "bin blüe now", "words": [], "mtsk": {"scale": "a4"}}
    assert found["texts"] == ["bin blüe", "bin blüe now"]
    ((path, key, form),) = found["asked"]
    assert (path, key) == ("/v1/audio/transcriptions", None)
    assert form["scale"] == "a4"
    assert "policy" not in form
    assert form["stream"] == "true"


def test_a_busy_server_is_asked_again_when_it_says_and_a_key_is_asked_for() -> None:
    refusal = json.dumps({"error": {"message": "file: too busy"}})
    answers = [
        {"status": 429, "headers": {"Retry-After": "3"}, "body": refusal},
        {"status": 401, "body": refusal},
        {"status": 401, "body": refusal},
        {"status": 200, "body": STREAM},
    ]
    found = run(SERVER, {"answers": answers, "keys": ["wrong", "right"], "choice": "auto"})
    assert found["answer"]["text"] == "bin blüe now"
    assert found["waits"] == [3000]
    assert found["keys"] == [False, True]
    assert [key for _, key, _ in found["asked"]] == [None, None, "Bearer wrong", "Bearer right"]
    assert found["asked"][0][2]["policy"] == "auto"
    assert "scale" not in found["asked"][0][2]


def test_errors_say_what_the_server_said() -> None:
    refusal = json.dumps({"error": {"message": "file: no sound", "code": "no_sound"}})

    def told(*answers: dict[str, Any]) -> str:
        return str(run(SERVER, {"answers": list(answers), "keys": [], "choice": "a4"})["answer"]["error"])

    assert told({"status": 400, "body": refusal}) == "No sound."
    assert told({"status": 413, "body": refusal}) == "The clip is too large for this server. No sound."
    assert told({"status": 500, "body": "<h1>"}) == "The server answered with status 500."
    assert "key" in told({"status": 401, "body": refusal})
    assert "busy" in told(*[{"status": 429, "headers": {"Retry-After": "1"}, "body": refusal}] * 6)
    failed = {"type": "error", "error": {"message": "timed out"}}
    assert told({"status": 200, "body": f"data: {json.dumps(failed)}\n\n"}) == "Timed out."
    assert "stopped" in told({"status": 200, "body": STREAM.partition("\n\n")[0] + "\n\n"})
