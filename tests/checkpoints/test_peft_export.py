"""Exported adapters, read by peft on the same language model, give our logits; the guide's code gives our input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsk.checkpoints.peft_export import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PARTS_WEIGHTS, export_peft
from mtsk.checkpoints.store import WEIGHTS_FILE, read_record, save_model
from mtsk.config import LoraConfig, ModelConfig, ProjectorConfig
from mtsk.model.adapters import DoraLinear
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.fusion import LlmInput
from mtsk.model.llm import Llm
from mtsk.scale import Scale
from mtsk.types import Features
from tests.tiny import tiny_causal_lm, tiny_config, tiny_tokenizer, tiny_video_encoder, tiny_whisper

SCALES = ("a4", "a16", "v5", "a4v2")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORAS = {
    "ms": LoraConfig("ms", 3, 7.0),
    "ss": LoraConfig("ss", 3, 7.0, targets=ALL),
    "mss": LoraConfig("mss", 3, 7.5, dropout=0.2),
    "t": LoraConfig("t", 3, 7.0),
    "st": LoraConfig("st", 3, 7.0),
    "ms rslora": LoraConfig("ms", 3, 7.0, rank_stabilized=True),
    "mss rslora": LoraConfig("mss", 3, 7.0, targets=ALL, rank_stabilized=True),
    "ms dora": LoraConfig("ms", 3, 7.0, variant="dora"),
    "ss dora rslora": LoraConfig("ss", 3, 7.0, targets=ALL, variant="dora", rank_stabilized=True),
}
# Of logits up to 8. The second is for DoRA on all layers: there peft's own float32 is 1.1e-5 away from its float64.
TOLERANCE, ROUNDING = 1e-5, 2e-5


@torch.no_grad()
def _causal_lm(kind: str) -> Any:
    """A tiny language model; as drawn by transformers, its biases are zero."""
    llm = tiny_causal_lm(kind)
    rng = torch.Generator().manual_seed(4)
    for name, weight in llm.named_parameters():
        if name.endswith("bias"):
            weight.copy_(0.5 * torch.randn(weight.shape, generator=rng))
    return llm


@torch.no_grad()
def _model(config: ModelConfig, kind: str = "llama") -> AvsrModel:
    """A tiny model whose adapters change a lot, in numbers that half precision holds."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ears, eyes = WhisperAudioEncoder(tiny_whisper(), "real"), tiny_video_encoder()
        model = AvsrModel(config, Llm.build(_causal_lm(kind), tiny_tokenizer(bos=kind == "llama")), ears, eyes)
        for layer in model.adapters.layers.values():
            layer.up_AOR.normal_(std=0.1)
            layer.down_ARI.normal_(std=0.1)
            if isinstance(layer, DoraLinear):
                layer.magnitude_AO.mul_(0.7 + 0.6 * torch.rand_like(layer.magnitude_AO))
        for weight in model.trained_parameters().values():
            weight.copy_(weight.half())
    return model


def _config(lora: LoraConfig, compression: str = "average", projector: ProjectorConfig | None = None) -> ModelConfig:
    config = tiny_config("ms", compression, SCALES)
    return replace(config, lora=lora, projector=projector or config.projector)


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[AvsrModel], Path]:
    """Writes a checkpoint; the export reads no base weights, so there are none."""
    monkeypatch.setattr("mtsk.checkpoints.store.source_hash", lambda source: "0" * 16)

    def save(model: AvsrModel) -> Path:
        save_model(model, tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    return save


def _features() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    return torch.randn(70, 64, generator=rng), torch.randn(33, 32, generator=rng)


def _embedded(model: AvsrModel, scale: Scale) -> LlmInput:
    """The language model's input of one utterance, by our projectors and fusion."""
    audio, video = (Features(each[None], torch.tensor([len(each)])) for each in _features())
    return model.embed(Encoded(audio, video), [scale], [[]])


@torch.no_grad()
def _difference(model: AvsrModel, folders: dict[Scale, Path], kind: str) -> float:
    """The largest between our logits and peft's, over all scales and positions."""
    worst = 0.0
    for scale, folder in folders.items():
        embeds = _embedded(model, scale).embeds_BSE
        with model.select([scale]):
            ours = model.llm(inputs_embeds=embeds).logits
        base = _causal_lm(kind)
        plain = base(inputs_embeds=embeds).logits
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()(inputs_embeds=embeds).logits
        assert float((plain - ours).abs().max()) > 0.1, "the adapters change nothing: no test"
        worst = max(worst, float((theirs - ours).abs().max()))
    return worst


# What peft makes of it.


@pytest.mark.parametrize("name", LORAS)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_peft_gives_our_logits(save: Callable[[AvsrModel], Path], tmp_path: Path, name: str, kind: str) -> None:
    model = _model(_config(LORAS[name]), kind)
    folders = export_peft(save(model), tmp_path / "out")
    assert set(folders) == set(model.grid)
    difference = _difference(model, folders, kind)
    assert difference <= (ROUNDING if name == "ss dora rslora" else TOLERANCE)


@pytest.mark.parametrize("name", LORAS)
def test_names_and_settings_are_those_of_peft(save: Callable[[AvsrModel], Path], tmp_path: Path, name: str) -> None:
    """Against what peft itself writes of an adapter of the same settings."""
    lora = LORAS[name]
    folder = export_peft(save(_model(_config(lora))), tmp_path / "out")[Scale.parse("a16")]
    rank = lora.rank * (2 if lora.strategy in ("mss", "st") else 1)
    settings: Any = {"r": rank, "target_modules": list(lora.targets), "lora_dropout": lora.dropout, "bias": "none"}
    flags: Any = {"use_dora": lora.variant == "dora", "use_rslora": lora.rank_stabilized, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(tiny_causal_lm(), peft.LoraConfig(**settings, **flags))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    found, expected = (load_file(path / ADAPTER_WEIGHTS) for path in (folder, tmp_path / "theirs"))
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in found
    config, its_config = (json.loads((path / ADAPTER_CONFIG).read_text()) for path in (folder, tmp_path / "theirs"))
    assert set(config) <= set(its_config)
    for key in {*settings, *flags, "peft_type", "fan_in_fan_out", "inference_mode", "modules_to_save"}:
        mine, its = config[key], its_config[key]
        assert (sorted(mine), sorted(its)) == (sorted(its), sorted(mine)) if isinstance(mine, list) else mine == its
    loaded = peft.PeftModel.from_pretrained(tiny_causal_lm(), folder)
    layer: Any = loaded.get_submodule("base_model.model.model.layers.0.self_attn.v_proj")
    assert layer.scaling["default"] == pytest.approx(lora.delta_scale, rel=1e-12)


def test_folders_of_the_strategies(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    names: dict[str, Callable[[Scale], str]] = {"ms": lambda _: "", "ss": str, "mss": str}
    names |= {"t": lambda scale: scale.task, "st": lambda scale: scale.task}
    for strategy, name in names.items():
        out = tmp_path / strategy
        folders = export_peft(save(_model(_config(LORAS[strategy]))), out)
        assert folders == {scale: out / name(scale) for scale in map(Scale.parse, SCALES)}
        assert {path.parent for path in out.rglob(ADAPTER_WEIGHTS)} == set(folders.values())


def test_chosen_scales(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    source = save(_model(_config(LORAS["ss"])))
    export_peft(source, tmp_path / "all")
    export_peft(source, tmp_path / "some", [Scale.parse("a4v2")])
    assert {path.name for path in (tmp_path / "some").iterdir() if path.is_dir()} == {"a4v2"}
    one, same = (load_file(tmp_path / name / "a4v2" / ADAPTER_WEIGHTS) for name in ("all", "some"))
    assert one.keys() == same.keys()
    assert all(torch.equal(one[key], same[key]) for key in one)


# What goes into the language model.


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("compression", "projector"),
    [
        ("average", None),
        ("stack", None),
        ("average", ProjectorConfig(hidden=48, input_norm=False, output_norm=False)),
        ("average", ProjectorConfig(hidden=48, audio_rates=(2, 8), video_rates=(3,))),  # blended, and beyond
    ],
)
def test_the_code_of_the_guide_gives_our_input(
    save: Callable[[AvsrModel], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    compression: str,
    projector: ProjectorConfig | None,
) -> None:
    model = _model(_config(LORAS["mss"], compression, projector), kind)
    export_peft(save(model), tmp_path / "out")
    guide = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    code = guide.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(code, names)
    features = dict(zip(("audio", "video"), _features(), strict=True))
    llm, tokenizer = _causal_lm(kind), tiny_tokenizer(bos=kind == "llama")
    for scale in model.grid:
        found = names["prompt_embeds"](llm, tokenizer, str(scale), features)
        torch.testing.assert_close(found, _embedded(model, scale).embeds_BSE[0], atol=1e-5, rtol=1e-5)


def test_the_guide_scales_embeddings_as_in_training(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    """With a scale, every token that the language model reads has it: those of the prompt, and its own."""
    source = save(_model(replace(_config(LORAS["ms"]), embedding_scale=0.5)))
    export_peft(source, tmp_path / "out")
    lines = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if "mul_(" in line)
    llm = _causal_lm("llama")
    before = llm.get_input_embeddings().weight.clone()
    exec(line, {"llm": llm})
    torch.testing.assert_close(llm.get_input_embeddings().weight, 0.5 * before)
    torch.testing.assert_close(llm.get_input_embeddings().weight, _model(read_record(source).model).embedding_VE)


def test_the_guide_names_every_scale_and_its_adapter(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    export_peft(save(_model(_config(LORAS["mss"]))), tmp_path / "out")
    guide = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {scale} | `{scale}` |" in guide for scale in SCALES)
    assert 'PeftModel.from_pretrained(llm, "a4")' in guide
    parts = load_file(tmp_path / "out" / PARTS_WEIGHTS)
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in parts if name != "delimiters"} == {
        "audio.4",
        "audio.16",
        "video.2",
        "video.5",
    }
    assert parts["delimiters"].shape == (4, 64)


# Refusals.


def test_a_scale_that_was_not_trained(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a3 was not trained; this model has: a4 a16 v5 a4v2"):
        export_peft(save(_model(_config(LORAS["ms"]))), tmp_path / "out", [Scale.parse("a3")])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    source = save(_model(_config(LORAS["ms"])))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    with pytest.raises(ValueError, match="holds something else than an earlier export"):
        export_peft(source, source)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    export_peft(source, tmp_path / "out")
    export_peft(source, tmp_path / "out")  # over its own files
    assert read_record(source).model.lora == LORAS["ms"]


def test_broken_weights_are_named(save: Callable[[AvsrModel], Path], tmp_path: Path) -> None:
    source = save(_model(_config(LORAS["ms"])))
    (source / WEIGHTS_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        export_peft(source, tmp_path / "out")
    save_file({"fusion.delimiters_4E": torch.zeros(4, 64)}, source / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"model\.safetensors has no adapters of a language model"):
        export_peft(source, tmp_path / "out")
