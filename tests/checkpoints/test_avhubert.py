"""AV-HuBERT from its authors' file: converted to the same numbers; files that do not fit are refused in words."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsk.checkpoints.avhubert import convert
from mtsk.checkpoints.sources import source_hash
from mtsk.checkpoints.store import build_model, load_model, read_record, save_model
from mtsk.commands.convert import run
from mtsk.config import AvHubertConfig, ModelConfig, from_dict, to_dict
from mtsk.model.avhubert import CONFIG_FILE, WEIGHTS_FILE, AvHubertEncoder
from tests.goldens import golden_file, golden_module, golden_video, load_golden
from tests.tiny import save_tiny_bases, tiny_batch, tiny_config
from tests.tiny_avhubert import POST_NORM, TINY, published

MODEL = {
    "_name": "av_hubert",
    "encoder_layers": TINY.num_layers,
    "encoder_embed_dim": TINY.width,
    "encoder_ffn_embed_dim": TINY.ffn_width,
    "encoder_attention_heads": TINY.num_heads,
    "layer_norm_first": True,
    "conv_pos": TINY.position_kernel,
    "conv_pos_groups": TINY.position_groups,
    "modality_fuse": "concat",
    "resnet_relu_type": "prelu",
    "activation_fn": "gelu",
    "sub_encoder_layers": 0,
    "masking_type": "input",
}
TASK = {"image_crop_size": TINY.crop_px, "image_mean": 0.421, "image_std": 0.165, "normalize": True}
CFG = {"model": MODEL, "task": TASK}
SOUND = {"mask_emb": torch.zeros(104), "feature_extractor_audio.proj.weight": torch.zeros(TINY.width, 104)}


def _write(path: Path, **changes: Any) -> Path:
    """A file laid out as fairseq does, with the changed entries."""
    content = {"args": None, "cfg": CFG, "model": OrderedDict(published(TINY) | SOUND), "task_state": {}, **changes}
    torch.save(content, path)
    return path


def _config(**changes: Any) -> dict[str, Any]:
    """The configuration with changes of its table `model`; None takes a key out."""
    return {"model": {key: value for key, value in (MODEL | changes).items() if value is not None}, "task": TASK}


def _state(folder: Path) -> dict[str, Tensor]:
    return AvHubertEncoder.load(AvHubertConfig(str(folder)), folder).state_dict()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("avhubert") / "checkpoint.pt")


@pytest.fixture(scope="module")
def converted(file: Path) -> Path:
    """The folder that the file becomes."""
    convert(file, file.parent / "converted")
    return file.parent / "converted"


# Conversion.


@pytest.mark.parametrize(("options", "atol"), [({}, 1e-5), ({"half": True, "optimizer": True}, 1e-2)])
def test_a_converted_file_equals_the_original(tmp_path: Path, options: dict[str, bool], atol: float) -> None:
    """Half precision in the file changes what is computed by rounding alone (the original: 2.2e-3)."""
    _, arrays, _ = load_golden("avhubert_small_prenorm.npz")
    path = tmp_path / "file.pt"
    golden_module("fake_fairseq_ckpt").write(path, golden_file("avhubert_small_prenorm.npz"), **options)
    assert run("avhubert", path, tmp_path / "made" / "folder") == 0
    encoder = AvHubertEncoder.load(AvHubertConfig("-"), tmp_path / "made" / "folder")
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32, torch.int64}
    out_BTD = encoder.encode(golden_video(20), torch.tensor([20, 13]))
    torch.testing.assert_close(out_BTD, torch.from_numpy(arrays["out_mask"]), atol=atol, rtol=0)


def test_a_fine_tuned_file_has_the_same_encoder(tmp_path: Path) -> None:
    golden = golden_file("avhubert_small_prenorm.npz")
    for name, options in (("plain", {}), ("tuned", {"finetuned": True})):
        golden_module("fake_fairseq_ckpt").write(tmp_path / f"{name}.pt", golden, **options)
        convert(tmp_path / f"{name}.pt", tmp_path / name)
    plain, tuned = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("plain", "tuned"))
    assert set(plain) == set(tuned)
    assert all(torch.equal(plain[name], tuned[name]) for name in plain)
    texts = {(tmp_path / name / CONFIG_FILE).read_text(encoding="utf-8") for name in ("plain", "tuned")}
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["PRETRAIN_LARGE_VOX_ITER5", "FINETUNE_LARGE_VOX_433H"])
def test_the_published_configurations_are_understood(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    """All keys that they have, but with our few layers and small sizes."""
    cfg = json.loads(json.dumps(getattr(golden_module("fairseq_cfg_example"), name)))
    tuned = "w2v_args" in cfg["model"]
    (cfg["model"]["w2v_args"] if tuned else cfg)["model"].update({k: v for k, v in MODEL.items() if k != "_name"})
    prefix = "encoder.w2v_model." if tuned else ""
    state = {f"{prefix}{key}": value for key, value in published(TINY).items()}
    shape = convert(_write(tmp_path / "file.pt", cfg=cfg, model=state), tmp_path / "out")
    assert shape == replace(TINY, crop_px=88)


@pytest.mark.parametrize("old", ["args", "format"])
def test_older_files(tmp_path: Path, converted: Path, old: str) -> None:
    """The configuration as a namespace in one level; the file format before torch 1.6."""
    path = tmp_path / "old.pt"
    if old == "args":
        _write(path, cfg=None, args=argparse.Namespace(**MODEL, **TASK, arch="av_hubert"))
    else:
        torch.save({"cfg": CFG, "model": published(TINY)}, path, _use_new_zipfile_serialization=False)
    assert convert(path, tmp_path / "out") == TINY
    expected = _state(converted)
    assert all(torch.equal(value, expected[name]) for name, value in _state(tmp_path / "out").items())


def test_order_of_normalisation_is_that_of_the_file(tmp_path: Path) -> None:
    file = _write(tmp_path / "file.pt", cfg=_config(layer_norm_first=False), model=published(POST_NORM))
    assert convert(file, tmp_path / "out") == POST_NORM


def test_missing_and_unknown_keys(tmp_path: Path) -> None:
    """Sizes come from the weights; what they can't tell is taken as fairseq does, which is said."""
    lean = {"colour": "red", "layer_norm_first": True, "encoder_attention_heads": 4}
    assert convert(_write(tmp_path / "lean.pt", cfg={"model": lean, "task": TASK}), tmp_path / "lean") == TINY
    assert convert(_write(tmp_path / "half.pt", cfg={"model": lean}), tmp_path / "half") == replace(TINY, crop_px=88)
    file = _write(tmp_path / "silent.pt", cfg=_config(layer_norm_first=None))
    with pytest.warns(UserWarning, match=r"does not say all; taken as in fairseq: layer_norm_first=False"):
        assert not convert(file, tmp_path / "silent").norm_first


def test_unknown_tensors_are_left_out(tmp_path: Path, converted: Path) -> None:
    file = _write(tmp_path / "file.pt", model=published(TINY) | {"extra.weight": torch.ones(2)})
    with pytest.warns(UserWarning, match=r"1 unknown tensors are left out, such as extra\.weight"):
        convert(file, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / WEIGHTS_FILE)) == set(load_file(converted / WEIGHTS_FILE))


# Files that do not fit.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "is no fairseq checkpoint: it holds a list, not a table"),
        (torch.zeros(2), "is no fairseq checkpoint: it holds a Tensor"),
        ({"a.weight": torch.zeros(2)}, r"no table of weights \(model\); it has a\.weight"),
        ({"model": {}, "cfg": None, "args": None}, r"no configuration \(cfg or args\)"),
        ({"model": {"a": 1}, "cfg": CFG}, "'a' among its weights is no tensor"),
        ({"model": {"a": torch.zeros(2)}, "cfg": CFG}, r"not the weights of AV-HuBERT: there is no feature_extractor"),
        ({"model": {"encoder.w2v_model.a": torch.zeros(2)}, "cfg": CFG}, "is fine-tuned, but has no configuration"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt.*{said}"):
        convert(tmp_path / "other.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modality_fuse": "add"}, "says modality_fuse='add'; only 'concat' is supported"),
        ({"encoder_layers": 12}, "says encoder_layers=12, but the weights have 2"),
        ({"conv_pos_groups": 16}, "says conv_pos_groups=16, but the weights have 4"),
        ({"encoder_attention_heads": 5}, "num_heads is 5; allowed are divisors of the width 32"),
        ({"encoder_attention_heads": "many"}, "a value of type int is needed"),
        ({"layer_norm_first": "yes"}, "a value of type bool is needed"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"file\.pt: .*{said}"):
        convert(_write(tmp_path / "file.pt", cfg=_config(**changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    state = dict(published(TINY))
    del state["encoder.layers.1.fc2.bias"]
    with pytest.raises(ValueError, match=r"file\.pt: 1 tensors are missing .* such as encoder\.layers\.1\.fc2\.bias"):
        convert(_write(tmp_path / "file.pt", model=state), tmp_path / "out")


def test_only_an_earlier_conversion_is_replaced(tmp_path: Path, file: Path) -> None:
    assert convert(file, tmp_path / "out") == convert(file, tmp_path / "out") == TINY
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    (tmp_path / "out" / CONFIG_FILE).write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"out has a config\.json of something else; give a new folder"):
        convert(file, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is a file; a folder to write into is needed"):
        convert(file, file)


def test_unknown_kind_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ValueError, match="kind 'whisper' given; allowed: avhubert"):
        run("whisper", file, tmp_path / "out")


# The folder, and checkpoints that stand on it.


def test_folder_of_something_else_is_refused(tmp_path: Path, converted: Path) -> None:
    config = AvHubertConfig(str(tmp_path))
    with pytest.raises(ValueError, match=r"config\.json can't be read"):
        AvHubertEncoder.load(config, tmp_path)
    (tmp_path / CONFIG_FILE).write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json has model_type 'llama'; converted AV-HuBERT weights have"):
        AvHubertEncoder.load(config, tmp_path)
    (tmp_path / CONFIG_FILE).write_text((converted / CONFIG_FILE).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        AvHubertEncoder.load(config, tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit its config\.json"):
        AvHubertEncoder.load(config, tmp_path)


def _lips_config(folder: Path, sources: tuple[str, str], rank: int | None) -> ModelConfig:
    return replace(tiny_config(sources=sources, scales=("v2", "a4v2")), video=AvHubertConfig(str(folder), rank, 6.0))


@pytest.mark.parametrize("rank", [None, 3])
def test_a_checkpoint_names_the_encoder_and_stores_its_adapters(
    tmp_path: Path, converted: Path, rank: int | None
) -> None:
    config = _lips_config(converted, save_tiny_bases(tmp_path), rank)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
    model = build_model(config)
    encoder = model.video_encoder
    assert isinstance(encoder, AvHubertEncoder)
    adapters = encoder.trained_parameters()
    with torch.no_grad():
        for weight in adapters.values():
            weight.copy_(torch.randn_like(weight).mul(0.1).half())
    save_model(model, tmp_path / "checkpoint")
    stored = {name for name in load_file(tmp_path / "checkpoint" / WEIGHTS_FILE) if name.startswith("video_encoder.")}
    assert stored == {f"video_encoder.{name}" for name in adapters}
    assert bool(stored) == (rank is not None)
    assert read_record(tmp_path / "checkpoint").base[str(converted)] == source_hash(str(converted))
    batch = tiny_batch(num_frames=(4, 3, 5))
    again = load_model(tmp_path / "checkpoint")
    features, loaded = (one.encode(batch, config.scales).video for one in (model, again))
    assert features is not None
    assert loaded is not None
    assert features.values_BTD.shape == (3, 5, TINY.width)
    assert torch.equal(features.values_BTD, loaded.values_BTD)


def test_other_encoder_weights_are_refused(tmp_path: Path) -> None:
    sources, folder = save_tiny_bases(tmp_path), tmp_path / "avhubert"
    convert(_write(tmp_path / "a.pt"), folder)
    save_model(build_model(_lips_config(folder, sources, None)), tmp_path / "checkpoint")
    convert(_write(tmp_path / "b.pt", model=published(TINY, seed=1)), folder)
    with pytest.raises(ValueError, match=r"was trained on .*avhubert with hash \w{16}, but the one here has \w{16}"):
        load_model(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"source": "a", "width": 3}, r"width.*\$\.video"),
        ({"source": 3}, r"\$\.video\.source"),
        ({"source": "a", "lora_rank": 0}, "lora_rank is 0; allowed is 1 or more, or null"),
        ({"lora_rank": 3}, r"lora_rank.*\$\.video"),
        ({"widht": 3}, r"widht.*\$\.video"),
        ("text", r"\$\.video"),
    ],
)
def test_the_two_lip_encoders_are_told_apart_strictly(video: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_dict(ModelConfig, {"scales": ["v2"], "video": video})
