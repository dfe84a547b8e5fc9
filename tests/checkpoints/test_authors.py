"""Checkpoints of Llama-AVSR and Omni-AVSR: converted and loaded, they compute what the authors' code computed.

The files are written here in the authors' layout, with the weights of the goldens; then everything goes as for a user.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

import mtsk
from mtsk.checkpoints.authors import Told, _configure, convert
from mtsk.checkpoints.store import read_record
from mtsk.cli import _run
from mtsk.config import AudioEncoderConfig, AvHubertConfig, LoraConfig, ModelConfig, from_dict, to_dict
from mtsk.inference.decoding import greedy
from mtsk.model.adapters import adapter_table
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.scale import Scale, ScaleGrid
from mtsk.types import Features
from tests.goldens import golden_file, golden_module, golden_video, load_golden
from tests.tiny import tiny_whisper

NAMES = ("omni_ms_avgpool", "omni_task_lora", "llama_avsr_stack")
TASKS = {"audio": "a", "video": "v", "audiovisual": "av"}
NUM_ORDINARY = 258  # tokens of the base model; five more are added
TOLERANCE = 2e-5
_CONFIG = {  # of the lip encoder, as fairseq writes it
    "model": {"_name": "av_hubert", "encoder_layers": 3, "encoder_attention_heads": 4, "layer_norm_first": True},
    "task": {"image_crop_size": 88, "image_mean": 0.421, "image_std": 0.165},
}


@dataclass(frozen=True)
class Golden:
    """One of the originals, its parts in files, and ours made of them."""

    meta: dict[str, Any]
    arrays: dict[str, Any]
    state: dict[str, Tensor]
    folder: Path
    bases: dict[str, Path]

    @property
    def options(self) -> list[str]:
        return [text for name, path in self.bases.items() for text in (f"--{name}", str(path))]

    @property
    def told(self) -> Told:
        return Told(str(self.bases["llm"]), str(self.bases["whisper"]), str(self.bases["avhubert"]))

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


def _save_bases(meta: dict[str, Any], state: dict[str, Tensor], folder: Path) -> dict[str, Path]:
    bases = {name: folder / name for name in ("llm", "whisper", "avhubert")}
    llm: Any = LlamaForCausalLM(LlamaConfig(**{**meta["llm_config"], "vocab_size": NUM_ORDINARY}))
    weights = {name.removeprefix("llm."): value for name, value in state.items() if name.startswith("llm.")}
    weights = {n: v[:NUM_ORDINARY] if len(v) == NUM_ORDINARY + 5 else v for n, v in weights.items() if "lora" not in n}
    llm.load_state_dict(weights)
    llm.save_pretrained(bases["llm"])
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(golden_file(f"tokenizer/{name}"), bases["llm"] / name)
    whisper: Any = WhisperModel(WhisperConfig(**meta["whisper_config"]))
    prefix = "audio_encoder."
    whisper.encoder.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    whisper.save_pretrained(bases["whisper"])
    prefix = "video_encoder."
    lips = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix) and "lora" not in n}
    torch.save({"args": None, "cfg": _CONFIG, "model": lips}, folder / "avhubert.pt")
    assert _run(["convert", "avhubert", str(folder / "avhubert.pt"), str(bases["avhubert"])]) == 0
    return bases


def _save_ckpt(state: dict[str, Tensor], args: dict[str, Any], path: Path) -> Path:
    """As Lightning writes it."""
    weights = {f"model.{name}": value for name, value in state.items()}
    content = {"epoch": 9, "global_step": 1, "pytorch-lightning_version": "2.3.3", "state_dict": weights, "loops": {}}
    torch.save({**content, "hparams_name": "args", "hyper_parameters": args}, path)
    return path


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    made: dict[str, Golden] = {}

    def get(name: str) -> Golden:
        if name not in made:
            meta, arrays, state = load_golden(f"{name}.npz")
            folder = tmp_path_factory.mktemp(name)
            one = Golden(meta, arrays, state, folder, _save_bases(meta, state, folder))
            source, target = _save_ckpt(state, meta["args"], folder / "last.ckpt"), folder / "converted"
            kind = "llama-avsr" if name.startswith("llama") else "omni-avsr"
            assert _run(["convert", kind, str(source), str(target), *one.options]) == 0
            made[name] = one
        return made[name]

    return get


@pytest.fixture(scope="module")
def load(golden: Callable[[str], Golden]) -> Callable[[str], AvsrModel]:
    """The converted model. The goldens' waveforms are not normalised, and go in as they are."""
    models: dict[str, AvsrModel] = {}

    def get(name: str) -> AvsrModel:
        if name not in models:
            model = mtsk.load(golden(name).folder / "converted", device="cpu", dtype=torch.float32).model
            assert model.audio_encoder is not None
            model.audio_encoder.normalize = False
            models[name] = model
        return models[name]

    return get


@torch.no_grad()
def _encode(
    model: AvsrModel, meta: dict[str, Any], lengths: list[int] | None = None, row: int | None = None
) -> Encoded:
    """Both rows with lengths that a mask would see, or one row alone. Each is computed once."""
    key = str((lengths, row))
    known: dict[str, Encoded] = model.__dict__.setdefault("encoded_by_test", {})
    if key not in known:
        known[key] = _encode_now(model, meta["video_frames"], lengths, row)
    return known[key]


def _encode_now(model: AvsrModel, frames: list[int], lengths: list[int] | None, row: int | None) -> Encoded:
    pixels_BTHW = golden_video(frames[0])
    waveform_BN = torch.from_numpy(golden_module("make_weights").make_audio(2, frames[0] * 640))[..., 0]
    for i, length in enumerate(frames):
        pixels_BTHW[i, length:] = 0
        waveform_BN[i, 640 * length :] = 0
    if row is not None:
        one = slice(row, row + 1)
        pixels_BTHW, waveform_BN = pixels_BTHW[one, : frames[row]], waveform_BN[one, : 640 * frames[row]]
        lengths = [frames[row]]
    lengths_B = torch.tensor(lengths or frames)
    encoder: Any = model.video_encoder
    assert model.audio_encoder is not None
    audio = model.audio_encoder(waveform_BN, 640 * lengths_B)
    return Encoded(audio, Features(encoder.encode(pixels_BTHW, lengths_B), lengths_B))


@torch.no_grad()
def _prompt_logits(model: AvsrModel, encoded: Encoded, scale: Scale) -> Tensor:
    """Of the last five columns of the prompt: (B, 5, V)."""
    scales = [scale] * len(_lengths(encoded))
    inputs = model.embed(encoded, scales, [[]] * len(scales))
    with model.select(scales):
        options = {"attention_mask": inputs.mask_BS, "position_ids": inputs.positions_BS}
        logits: Tensor = model.llm(inputs_embeds=inputs.embeds_BSE, **options).logits
    return logits[:, -5:]


def _lengths(encoded: Encoded) -> Tensor:
    assert encoded.video is not None
    return encoded.video.lengths_B


@torch.no_grad()
def _taught(model: AvsrModel, one: Golden, encoded: Encoded, scale: Scale) -> tuple[Tensor, float]:
    """Logits (B, L, V + 5) and loss over their whole vocabulary: we have no use for the added tokens as outputs."""
    hidden: list[Tensor] = []
    head = model.llm.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    prediction = model(encoded, [scale] * 2, one.meta["texts"])
    hook.remove()
    added_NV = hidden[0] @ one.state["llm.lm_head.weight"][NUM_ORDINARY:].T  # the head gets all rows as one
    added_BLV = added_NV.view(*prediction.logits_BLV.shape[:2], -1)
    logits_BLV = torch.cat((prediction.logits_BLV, added_BLV), dim=-1)
    loss = functional.cross_entropy(logits_BLV.flatten(0, 1), prediction.labels_BL.flatten(), ignore_index=-100)
    return logits_BLV, float(loss)


def _cases() -> Iterator[tuple[str, str, str]]:
    """Golden, scale, what its arrays are called."""
    for audio in (4, 16):
        for video in (2, 5):
            yield "omni_ms_avgpool", f"a{audio}v{video}", f"_a{audio}_v{video}"
    for audio, video in ((4, 2), (16, 5)):
        for task, letters in TASKS.items():
            scale = ("" if "a" not in letters else f"a{audio}") + ("" if "v" not in letters else f"v{video}")
            yield "omni_task_lora", scale, f"_{task}_a{audio}_v{video}"
    yield "llama_avsr_stack", "a4v2", ""


def _case_losses(one: Golden, scale: Scale, suffix: str) -> float:
    """What the original computed for one scale."""
    if "pair_losses" in one.arrays:
        order = one.meta["train_order_audio_video"]
        return float(one.arrays["pair_losses"][order.index([scale.audio, scale.video])])
    if not suffix:
        return float(one.arrays["loss"])
    _, task, *rates = suffix.split("_")
    return float(one.arrays["losses_raw_" + "_".join(rates)][list(TASKS).index(task)])


CASES = pytest.mark.parametrize(("name", "text", "suffix"), list(_cases()))
Get = Callable[[str], Any]


@CASES
def test_taught_logits_and_loss(golden: Get, load: Get, name: str, text: str, suffix: str) -> None:
    """The original masks nothing, so the shorter row is as long as the other here, with silence and grey at its end."""
    one, model, scale = golden(name), load(name), Scale.parse(text)
    logits_BLV, loss = _taught(model, one, _encode(model, one.meta, [one.meta["video_frames"][0]] * 2), scale)
    expected_BLV = one.array(f"train_logits{suffix}")  # the last five columns, text on the left of the padding
    torch.testing.assert_close(logits_BLV[0, -4:], expected_BLV[0, :4], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits_BLV[1, -2:], expected_BLV[1, :2], atol=TOLERANCE, rtol=0)
    assert loss == pytest.approx(_case_losses(one, scale, suffix), abs=TOLERANCE)


@CASES
def test_prompt_logits_and_greedy_text(golden: Get, load: Get, name: str, text: str, suffix: str) -> None:
    """Alone, as the original evaluates; and ours in a batch too."""
    one, model, scale = golden(name), load(name), Scale.parse(text)
    together = _prompt_logits(model, _encode(model, one.meta), scale)
    for row in (0, 1):
        encoded = _encode(model, one.meta, row=row)
        logits_1LV = _prompt_logits(model, encoded, scale)
        expected = one.arrays.get(f"infer1_logits{suffix}_item{row}")
        if expected is not None:
            expected_1LV = torch.from_numpy(expected)[..., :NUM_ORDINARY]
            torch.testing.assert_close(logits_1LV, expected_1LV, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(together[row], logits_1LV[0], atol=TOLERANCE, rtol=0)
        tokens = list(greedy(model, model.embed(encoded, [scale], [[]]), [scale], [8]).tokens)
        assert tokens == one.arrays[f"generate{suffix}_item{row}"].tolist()
    if f"infer_logits{suffix}" in one.arrays:
        padded = _prompt_logits(model, _encode(model, one.meta, [one.meta["video_frames"][0]] * 2), scale)
        expected_BLV = one.array(f"infer_logits{suffix}")[..., :NUM_ORDINARY]
        torch.testing.assert_close(padded, expected_BLV, atol=TOLERANCE, rtol=0)


# The file.

ALL_PAIRS = ("a4v2", "a16v2", "a4v5", "a16v5")
FLAT = {
    "omni_ms_avgpool": ALL_PAIRS,
    "omni_task_lora": ("a4", "a16", "v2", "v5", *ALL_PAIRS),
    "llama_avsr_stack": (),  # rates of stacked features show in the weights
}


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_file_with_what_it_lacks_gives_the_same(golden: Get, name: str, tmp_path: Path) -> None:
    one = golden(name)
    torch.save(one.state, tmp_path / "flat.pth")
    options = [*one.options, "--alpha", "32", *(["--scales", *FLAT[name]] if FLAT[name] else [])]
    assert _run(["convert", "omni-avsr", str(tmp_path / "flat.pth"), str(tmp_path / "to"), *options]) == 0
    found, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "to", one.folder / "converted")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_folders_that_are_told_relatively_are_found_from_elsewhere(
    golden: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = golden(NAMES[2])
    monkeypatch.chdir(one.folder)
    told = Told("llm", "whisper", "./avhubert")
    assert convert(one.folder / "last.ckpt", tmp_path / "to", told) == read_record(one.folder / "converted").model
    monkeypatch.chdir(tmp_path)
    mtsk.load(tmp_path / "to", device="cpu")


def test_what_a_flat_file_lacks_is_named(golden: Get, tmp_path: Path) -> None:
    torch.save(golden(NAMES[0]).state, tmp_path / "flat.pth")
    with pytest.raises(ValueError, match=r"missing is --llm, --whisper, --avhubert, --alpha, --scales"):
        convert(tmp_path / "flat.pth", tmp_path / "to", Told())
    one_rate = Told("l", "w", "v", ("a4v2", "a4v5"), 32.0)
    with pytest.raises(ValueError, match=r"2 projectors of audio, one for each rate.*; the rates given are 4"):
        convert(tmp_path / "flat.pth", tmp_path / "to", one_rate)


def test_other_files_are_refused(golden: Get, tmp_path: Path) -> None:
    one, path = golden(NAMES[2]), tmp_path / "x.ckpt"
    told = replace(one.told, alpha=32)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no checkpoint of Llama-AVSR or Omni-AVSR"):
        convert(path, tmp_path / "to", told)
    torch.save({**one.state, "audiovisual_proj.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"variant that is not supported.*audiovisual_proj\.0\.weight"):
        convert(path, tmp_path / "to", told)
    _save_ckpt(one.state, {**one.meta["args"], "prompt_audiovisual": "Write it down."}, path)
    with pytest.raises(ValueError, match=r"with the prompt 'Write it down\.'"):
        convert(path, tmp_path / "to", told)


@pytest.mark.parametrize(
    ("weight", "option"),
    [
        ("llm.model.layers.1.mlp.up_proj.weight", "--llm"),
        ("llm.lm_head.weight", "--llm"),
        ("audio_encoder.layers.0.fc1.weight", "--whisper"),
        ("video_encoder.encoder.layers.2.fc2.bias", "--avhubert"),
    ],
)
def test_another_base_model_is_noticed(golden: Get, tmp_path: Path, weight: str, option: str) -> None:
    one, path = golden("llama_avsr_stack"), tmp_path / "x.pth"
    torch.save({**one.state, weight: one.state[weight] * 1.1}, path)
    with pytest.raises(ValueError, match=f"{weight} is not that of the model of {option}"):
        convert(path, tmp_path / "to", replace(one.told, alpha=32))
    assert not (tmp_path / "to").exists()


def test_embeddings_that_averaging_scaled(golden: Get, tmp_path: Path) -> None:
    """Four epochs averaged by the authors' script: tied embeddings come out at 7 / 16. In bfloat16, as released."""
    one, names = golden("omni_ms_avgpool"), ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
    state = {**one.state, **{name: one.state[name] * (7 / 16) for name in names}}
    halved = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    path = _save_ckpt(halved, one.meta["args"], tmp_path / "x.ckpt")
    with pytest.warns(UserWarning, match=r"0\.4375 times those of the base model"):
        config = convert(path, tmp_path / "to", one.told)
    assert config.embedding_scale == pytest.approx(7 / 16, rel=1e-4)
    model = mtsk.load(tmp_path / "to", device="cpu", dtype=torch.float32).model
    expected_VE = state[names[0]][:NUM_ORDINARY]
    torch.testing.assert_close(model.embedding_VE, expected_VE, atol=0, rtol=1e-4)
    assert model.llm.get_output_embeddings().weight is model.embedding_VE
    assert load_file(tmp_path / "to" / "model.safetensors")["fusion.delimiters_4E"].dtype == torch.bfloat16
    assert torch.equal(model.fusion.delimiters_4E, halved[names[0]][-4:].float())


def test_norms_and_shared_projectors_are_what_the_weights_say(golden: Get) -> None:
    one = golden("omni_ms_avgpool")
    state = {n: v for n, v in one.state.items() if not n.startswith("audio_proj.1.") and "video_proj.0.3" not in n}
    state = {n.replace("audio_proj.0.", "audio_proj.", 1): v for n, v in state.items() if "video_proj.1.3" not in n}
    config, rates = _configure(state, one.meta["args"], one.told)
    assert rates == {"audio": [4], "video": [2, 5]}
    assert (config.projector.audio_rates, config.projector.video_rates) == ((4,), None)
    assert (config.projector.has_output_norm("audio"), config.projector.has_output_norm("video")) == (True, False)
    assert list(map(str, config.grid)) == ["a4v2", "a4v5", "a16v2", "a16v5"]
    assert from_dict(ModelConfig, to_dict(config)) == config


def test_a_folder_of_something_else_is_not_written_over(golden: Get, tmp_path: Path) -> None:
    one = golden(NAMES[0])
    with pytest.raises(ValueError, match=r"has a config\.json of something else"):
        convert(one.folder / "last.ckpt", one.bases["llm"], one.told)


# What goes in.


def test_waveforms_are_normalised_and_cut_as_the_authors_do() -> None:
    """`layer_norm` of the whole waveform, then `max(int(N / 16000 * 50), 25)` features; nothing of an absent one."""
    lengths = [12_800, 29 * 320, 1000, 0]  # of 29 features their arithmetic makes 28
    waveform_BN = torch.randn(4, 12_800, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.1
    encoder = WhisperAudioEncoder(tiny_whisper(), "30s", normalize=True, cut="authors")
    features = encoder(waveform_BN, torch.tensor(lengths))
    assert features.lengths_B.tolist() == [40, 28, 25, 0]
    plain = WhisperAudioEncoder(tiny_whisper(), "30s")
    for row, length in enumerate(lengths[:3]):
        own_N = waveform_BN[row, :length]
        padded_1N = functional.pad(functional.layer_norm(own_N, own_N.shape, eps=1e-8), (0, 12_800 - length))[None]
        expected_TD = plain(padded_1N, torch.tensor([12_800])).values_BTD[0]
        kept = int(features.lengths_B[row])
        torch.testing.assert_close(features.values_BTD[row, :kept], expected_TD[:kept], atol=1e-4, rtol=0)


def test_what_the_checkpoint_says_of_its_input(golden: Get) -> None:
    config = read_record(golden("omni_task_lora").folder / "converted").model
    assert config.audio == AudioEncoderConfig(str(golden("omni_task_lora").bases["whisper"]), "30s", True, "authors")
    assert isinstance(config.video, AvHubertConfig)
    assert (config.video.lora_rank, config.video.lora_alpha) == (6, 12.0)
    assert (config.lora.strategy, config.lora.rank, config.lora.delta_scale) == ("st", 4, 2.0)
    assert not config.leading_space


def test_tables_of_tasks() -> None:
    a4, v2, pair, coarse = grid = ScaleGrid(tuple(map(Scale.parse, ("a4", "v2", "a4v2", "a16v5"))))
    assert adapter_table("t", grid) == {a4: (0,), v2: (1,), pair: (2,), coarse: (2,)}
    assert adapter_table("st", grid) == {a4: (0, 1), v2: (0, 2), pair: (0, 3), coarse: (0, 3)}
    with pytest.raises(ValueError, match=r"lora\.variant is 'dora'; allowed is 'lora' with strategy 'mss' or 'st'"):
        LoraConfig("st", variant="dora")
