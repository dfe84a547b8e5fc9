"""Checkpoints: what is written is read back, base weights are told apart, and broken folders are refused in words."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsk.checkpoints.sources import source_hash
from mtsk.checkpoints.store import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    base_sources,
    build_model,
    load_lips,
    load_model,
    read_record,
    save_model,
)
from mtsk.model.avsr import AvsrModel
from mtsk.model.video_encoder import CompactVideoEncoder
from mtsk.scale import Scale
from tests.tiny import VIDEO_CONFIG, randomize_adapters, save_tiny_bases, tiny_batch, tiny_config, tiny_model

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def saved(tmp_path: Path, sources: tuple[str, str]) -> Path:
    """A checkpoint folder."""
    folder = tmp_path / "checkpoint"
    save_model(tiny_model("mss", sources=sources), folder, training={"steps": 3})
    return folder


@torch.no_grad()
def _logits(model: AvsrModel) -> Tensor:
    batch = tiny_batch()
    logits: Tensor = model(model.encode(batch, SCALES), SCALES, batch.texts).logits_BLV
    return logits


def _halve(model: AvsrModel) -> AvsrModel:
    """Rounds what a checkpoint stores to half precision, in place."""
    trained = list(model.trained_parameters().values())
    assert model.video_encoder is not None
    buffers = [buffer for buffer in model.video_encoder.buffers() if buffer.is_floating_point()]
    with torch.no_grad():
        for value in (*trained, *buffers):
            value.copy_(value.half())
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("compression", ["average", "stack"])
@pytest.mark.parametrize(("strategy", "window"), [("ms", "real"), ("ss", "30s"), ("mss", "real")])
def test_round_trip(tmp_path: Path, kind: str, compression: str, strategy: str, window: str) -> None:
    sources = save_tiny_bases(tmp_path, kind)
    model = tiny_model(strategy, compression, kind=kind, window=window, sources=sources)
    exact = _logits(model)
    save_model(model, tmp_path / "made" / "checkpoint")
    loaded = load_model(tmp_path / "made" / "checkpoint")
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(_logits(model), exact), "saving changed the model"
    torch.testing.assert_close(_logits(loaded), _logits(_halve(model)), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(_logits(loaded), exact, atol=0.05, rtol=0.01)


def test_a_fresh_model_has_the_base_weights_and_no_delta(sources: tuple[str, str]) -> None:
    """`build_model` reads the language model and the sound encoder that the sources name."""
    built = build_model(tiny_config(sources=sources))
    whole = tiny_model(sources=sources)
    assert built.audio_encoder is not None
    assert whole.audio_encoder is not None
    trained = set(built.trained_parameters())
    for name, weight in whole.named_parameters():
        if name not in trained:
            torch.testing.assert_close(dict(built.named_parameters())[name], weight)
    before = _logits(built)
    randomize_adapters(built)
    assert not torch.equal(_logits(built), before)
    assert not built.training


def test_one_modality_needs_no_other_base(tmp_path: Path, sources: tuple[str, str]) -> None:
    model = tiny_model(scales=("v2", "v5"), sources=sources)
    assert base_sources(model.config) == (sources[0],)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.audio_encoder is None
    assert set(read_record(tmp_path).base) == {sources[0]}


def test_the_record_says_what_the_model_is(saved: Path, sources: tuple[str, str]) -> None:
    record = json.loads((saved / CONFIG_FILE).read_text(encoding="utf-8"))
    assert record["format"] == 1
    assert record["model"]["scales"] == ["a4", "a16", "v2", "v5", "a4v2", "a16v5"]
    assert record["model"]["lora"]["strategy"] == "mss"
    assert record["base"] == {source: source_hash(source) for source in sources}
    assert set(record["versions"]) == {"mtsk", "torch", "transformers"}
    assert record["training"] == {"steps": 3}


def test_only_what_was_trained_is_stored(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    model = tiny_model("mss")
    assert model.video_encoder is not None
    buffers = {f"video_encoder.{name}" for name, _ in model.video_encoder.named_buffers()}
    assert set(tensors) == set(model.trained_parameters()) | buffers
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.int64}
    assert not any("base" in name or "embed_tokens" in name for name in tensors)
    moved = [name for name in buffers if name.endswith("running_mean")]
    assert moved
    assert all(bool(tensors[name].any()) for name in moved)


def test_saving_again_replaces(saved: Path, sources: tuple[str, str]) -> None:
    save_model(tiny_model("ms", "stack", sources=sources), saved)
    assert load_model(saved).config.lora.strategy == "ms"


# The lip encoder of another model.


def _lips(model: AvsrModel) -> dict[str, Tensor]:
    assert model.video_encoder is not None
    return {name: value.clone() for name, value in model.video_encoder.state_dict().items()}


def test_lips_of_a_checkpoint_are_taken_and_nothing_else(saved: Path) -> None:
    model = tiny_model("ms", "stack", seed=5)  # of another strategy and compression; only the lips have to fit
    before, others = _lips(model), {n: p.clone() for n, p in model.named_parameters() if not n.startswith("video_")}
    load_lips(model, saved)
    expected, found = _lips(_halve(tiny_model("mss"))), _lips(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], before[name]) for name in before if "running_mean" in name)
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others)


def test_a_model_without_lips_takes_none(saved: Path) -> None:
    model = tiny_model(scales=("a4", "a16"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_lips(model, saved)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_without_lips_is_refused(tmp_path: Path, sources: tuple[str, str]) -> None:
    save_model(tiny_model(scales=("a4",), sources=sources), tmp_path)
    model = tiny_model()
    before = _lips(model)
    with pytest.raises(ValueError, match="has no lip encoder of this shape"):
        load_lips(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in _lips(model).items())


@pytest.mark.parametrize("change", [{"width": 16}, {"channels": (4, 6, 10)}, {"dilations": (1, 2, 4)}])
def test_lips_of_another_shape_are_refused(saved: Path, change: dict[str, Any]) -> None:
    model = tiny_model()
    config = replace(VIDEO_CONFIG, **change)
    model.video_encoder = CompactVideoEncoder(config)
    with pytest.raises(ValueError, match="has no lip encoder of this shape"):
        load_lips(model, saved)


def test_lips_of_no_checkpoint_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_lips(tiny_model(), tmp_path / "nowhere")
    (saved / WEIGHTS_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        load_lips(tiny_model(), saved)


# Refusals.


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / CONFIG_FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_other_base_weights_are_refused(tmp_path: Path) -> None:
    sources = save_tiny_bases(tmp_path, seed=0)
    save_model(tiny_model(sources=sources), tmp_path / "checkpoint")
    load_model(tmp_path / "checkpoint")
    save_tiny_bases(tmp_path, seed=1)  # same folders, same shapes, other weights
    with pytest.raises(ValueError, match=r"was trained on .*tiny-llama with hash \w{16}, but the one here has \w{16}"):
        load_model(tmp_path / "checkpoint")


def test_missing_base_weights_are_refused(saved: Path) -> None:
    _edit(saved, lambda record: record["model"].update(llm="./nowhere"))
    with pytest.raises(ValueError, match=r"source './nowhere' given"):
        load_model(saved)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ((CONFIG_FILE,), r"is no checkpoint: it has no config\.json$"),
        ((WEIGHTS_FILE,), r"is no checkpoint: it has no model\.safetensors$"),
        ((CONFIG_FILE, WEIGHTS_FILE), r"is no checkpoint: it has no config\.json and no model\.safetensors$"),
    ],
)
def test_incomplete_folder_is_refused(saved: Path, missing: tuple[str, ...], said: str) -> None:
    for name in missing:
        (saved / name).unlink()
    with pytest.raises(ValueError, match=said):
        load_model(saved)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "", "\udcff"])
def test_broken_json_is_refused(saved: Path, text: str) -> None:
    (saved / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_model(saved)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"architectures": ["LlamaForCausalLM"]}', '{"format": "1"}'])
def test_json_that_is_no_record_is_refused(saved: Path, text: str) -> None:
    (saved / CONFIG_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json has format .*this version of mtsk reads format 1"):
        read_record(saved)


def test_newer_format_is_refused(saved: Path) -> None:
    _edit(saved, lambda record: record.update(format=2))
    with pytest.raises(ValueError, match="has format 2; this version of mtsk reads format 1"):
        load_model(saved)


@pytest.mark.parametrize("key", ["model", "base"])
def test_record_without_a_part_is_refused(saved: Path, key: str) -> None:
    _edit(saved, lambda record: record.pop(key))
    with pytest.raises(ValueError, match=rf"config\.json has no table {key!r}"):
        load_model(saved)


def test_unknown_setting_is_refused_with_its_place(saved: Path) -> None:
    _edit(saved, lambda record: record["model"]["lora"].update(colour=1))
    with pytest.raises(ValueError, match=r"colour.*\$\.lora"):
        load_model(saved)


def test_weights_that_lack_a_tensor_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    tensors.pop("fusion.delimiters_4E")
    save_file(tensors, saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"does not fit its config\.json: 1 tensors, such as fusion\.delimiters_4E"):
        load_model(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    tensors["fusion.delimiters_4E"] = tensors["fusion.delimiters_4E"][:1].clone()  # would broadcast
    save_file(tensors, saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"does not fit its config\.json: 1 tensors, such as fusion\.delimiters_4E"):
        load_model(saved)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_broken_weights_are_refused(saved: Path, content: bytes) -> None:
    (saved / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        load_model(saved)


def test_cut_weights_are_refused(saved: Path) -> None:
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        load_model(saved)
