"""Families of language models, each a tiny random one of its real class, read from a folder as a user's would be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from mtsk.checkpoints.store import build_model, load_model, save_model
from mtsk.config import LoraConfig, ModelConfig, from_dict, to_dict
from mtsk.inference.decoding import greedy
from mtsk.model import llm as llm_module
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.llm import Llm
from mtsk.model.rows_cache import RowsCache
from mtsk.scale import Scale
from tests.tiny import (
    TEXTS,
    randomize_adapters,
    row_of,
    tiny_batch,
    tiny_config,
    tiny_tokenizer,
    tiny_whisper,
)

SCALES = [Scale.parse(text) for text in ("a4", "v2", "a16v5")]  # of three rows of one batch
WINDOW = {"sliding_window": 32}  # shorter than every prompt, and two layers reach its beginning
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT_NEO: dict[str, Any] = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
GPT_NEO |= {"window_size": 32}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True)
class Family:
    """How a tiny one is made."""

    name: str
    changes: dict[str, Any]
    model: str | None = None
    bos: bool = True
    targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")

    def save(self, folder: Path) -> Path:
        """Writes model and tokenizer."""
        tokenizer = tiny_tokenizer(bos=self.bos)
        tokens = {
            "vocab_size": len(tokenizer) + 5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = getattr(transformers, f"{self.name}Config")(**{**SHAPE, **tokens, **self.changes})
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = getattr(transformers, self.model or f"{self.name}ForCausalLM")(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


FAMILIES = {
    "llama-2": Family("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama-3.1": Family("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "llama-3.2": Family("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 24}),
    "qwen2.5": Family("Qwen2", {"tie_word_embeddings": True}, bos=False),
    "qwen3": Family("Qwen3", {"head_dim": 24}, bos=False),
    "mistral": Family("Mistral", WINDOW),
    "gemma": Family("Gemma", {"head_dim": 24}),
    "gemma-2": Family("Gemma2", {"head_dim": 24, "final_logit_softcapping": 20.0, **MIXED}),
    "gemma-3": Family("Gemma3Text", {"head_dim": 24, **MIXED}, "Gemma3ForCausalLM"),
    "gemma-3, longer": Family("Gemma3Text", {"head_dim": 24, **MIXED, "sliding_window": 128}, "Gemma3ForCausalLM"),
    "granite": Family("Granite", {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.3}),
    "cohere-2": Family("Cohere2", {"logit_scale": 0.25, **MIXED}),
    "olmo-2": Family("Olmo2", {}),
    "phi-3": Family("Phi3", {}, targets=("qkv_proj", "down_proj")),
    "smollm3": Family("SmolLM3", {"no_rope_layers": [1, 0]}),
    "gpt-neo": Family("GPTNeo", GPT_NEO, targets=("q_proj", "v_proj")),
    "bloom": Family("Bloom", {"n_head": 4, "n_layer": 2}, targets=("query_key_value",)),
}
# Read row by row: always, or where a text outgrows a window that is long enough to be tried.
BY_ROW = {"mistral": 0, "gemma-2": 0, "gemma-3": 0, "cohere-2": 0, "gpt-neo": 0, "bloom": 0, "gemma-3, longer": 128}


@dataclass(frozen=True)
class Made:
    """A model of ours, and transformers' own of the same folder."""

    ours: AvsrModel
    plain: Any
    encoded: Encoded


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


@pytest.fixture(scope="module", autouse=True)
def _cleanup() -> Iterator[None]:
    yield
    _made.cache_clear()
    _folder().cleanup()
    _folder.cache_clear()


@cache
def _made(name: str) -> Made:
    family, root = FAMILIES[name], Path(_folder().name)
    whisper = root / "whisper"
    if not whisper.exists():
        tiny_whisper().save_pretrained(whisper)
    folder = family.save(root / name)
    config = tiny_config(scales=SCALES, sources=(str(folder), str(whisper)))
    config = replace(config, lora=LoraConfig(strategy="ss", rank=4, targets=family.targets))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        ours = build_model(config)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Made(ours, plain, ours.encode(tiny_batch(), SCALES))


@torch.no_grad()
def _logits(model: AvsrModel, encoded: Encoded, scales: list[Scale], texts: tuple[str, ...]) -> Tensor:
    logits: Tensor = model(encoded, scales, texts).logits_BLV
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_is_that_of_transformers(name: str) -> None:
    made, texts = _made(name), TEXTS[:3]
    found_BLV = _logits(made.ours, made.encoded, SCALES, texts)
    for row, (scale, text) in enumerate(zip(SCALES, texts, strict=True)):
        target = made.ours.prompts.target(text)
        inputs = made.ours.embed(made.encoded.rows([row]), [scale], [target[:-1]])
        with torch.no_grad():
            # The text's embeddings are those that the model itself looks up, scaled or not.
            own_SE = made.plain.get_input_embeddings()(torch.tensor(target[:-1]))
            torch.testing.assert_close(inputs.embeds_BSE[0, -len(own_SE) :], own_SE)
            expected_LV = made.plain(inputs_embeds=inputs.embeds_BSE).logits[0, -len(target) :]
        error = (found_BLV[row, -len(target) :] - expected_LV).abs().max() / expected_LV.std()
        assert error < 1e-4, f"row {row}"


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_generate(name: str) -> None:
    made = _made(name)
    inputs = made.ours.embed(made.encoded, SCALES, [[]] * 3)
    found = greedy(made.ours, inputs, SCALES, [9] * 3).tokens
    vocabulary = made.ours.prompts.vocabulary
    for row, tokens in enumerate(found):
        real = inputs.mask_BS[row].bool()
        generated = made.plain.generate(
            inputs_embeds=inputs.embeds_BSE[row, real][None],
            max_new_tokens=9,
            do_sample=False,
            pad_token_id=vocabulary.eos,
        )
        expected = generated[0].tolist()
        ends = [i for i, token in enumerate(expected) if token in vocabulary.ends]
        assert tokens == expected[: min(ends, default=None)], f"row {row}"


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_read_side_by_side_where_that_is_right(name: str) -> None:
    model, longest = _made(name).ours, BY_ROW.get(name, 512)
    assert isinstance(model.new_cache(longest), DynamicCache if name in BY_ROW else RowsCache)
    assert isinstance(model.new_cache(longest - 1), RowsCache if longest else DynamicCache)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapted_rows_are_as_alone_learn_and_are_saved(name: str, tmp_path: Path) -> None:
    made, texts = _made(name), TEXTS[:3]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build_model(made.ours.config)
        randomize_adapters(model)
    fresh_BLV = _logits(made.ours, made.encoded, SCALES, texts)
    together_BLV = model(model.encode(tiny_batch(), SCALES), SCALES, texts).logits_BLV
    assert (together_BLV - fresh_BLV).abs().max() > 0.1 * fresh_BLV.std()
    for row, scale in enumerate(SCALES):
        one = row_of(tiny_batch(), row)
        alone_1LV = _logits(model, model.encode(one, [scale]), [scale], one.texts)
        own_LV = together_BLV[row, -alone_1LV.shape[1] :]
        assert (own_LV - alone_1LV[0]).abs().max() < 1e-4 * fresh_BLV.std(), f"row {row}"
    together_BLV.logsumexp(dim=-1).sum().backward()
    for where, weight in model.trained_parameters().items():
        if "video_encoder" not in where:
            assert weight.grad is not None, where
            assert weight.grad.abs().sum() > 0, where
    assert all(weight.grad is None for weight in model.llm.parameters() if not weight.requires_grad)
    with torch.no_grad():  # a checkpoint has half precision
        for weight in model.trained_parameters().values():
            weight.copy_(weight.half())
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    video = model.video_encoder
    assert video is not None
    assert loaded.video_encoder is not None
    loaded.video_encoder.load_state_dict(video.state_dict())  # its batch statistics were not rounded above
    torch.testing.assert_close(
        _logits(loaded, loaded.encode(tiny_batch(), SCALES), SCALES, texts),
        _logits(model, model.encode(tiny_batch(), SCALES), SCALES, texts),
    )


REFUSED = {
    "embeds per layer": (
        Family("Gemma4Text", {"head_dim": 16, "vocab_size_per_layer_input": 300}, "Gemma4ForCausalLM"),
        "does not read embeddings",
    ),
    "recurrent": (Family("Mamba", {}), "its logits differ"),
    "reads both ways": (Family("Bert", {}, "BertLMHeadModel"), "its logits differ"),
    "multiplies in the head": (Family("FalconH1", {"lm_head_multiplier": 0.5}), "its logits differ"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_does_more_is_refused(what: str, tmp_path: Path) -> None:
    family, message = REFUSED[what]
    with pytest.raises(ValueError, match=f"can't be used: .*{message}"):
        Llm.load(family.save(tmp_path))


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    family = Family("T5", {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1}, "T5ForConditionalGeneration")
    with pytest.raises(ValueError, match="T5Config"):
        Llm.load(family.save(tmp_path))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    FAMILIES["llama-2"].save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="can't be loaded"):
        Llm.load(tmp_path)


def test_a_tokenizer_larger_than_the_table_is_refused(tmp_path: Path) -> None:
    """Its numbers would be read as delimiters and slots."""
    family = Family("Llama", {"vocab_size": len(tiny_tokenizer()) - 1})
    with pytest.raises(ValueError, match="do not belong together"):
        Llm.load(family.save(tmp_path))


def test_a_padding_token_beyond_the_table_is_no_matter(tmp_path: Path) -> None:
    Family("Llama", {"vocab_size": len(tiny_tokenizer())}).save(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    llm = Llm.load(tmp_path)
    assert llm.prompts.decode(llm.prompts.target(TEXTS[0])) == TEXTS[0]


def test_the_end_is_the_tokenizers(tmp_path: Path) -> None:
    """The model's own configuration may name others, and several."""
    Family("Llama", {"eos_token_id": [3, 4, 5]}).save(tmp_path)
    assert Llm.load(tmp_path).prompts.vocabulary.eos == tiny_tokenizer().eos_token_id


# Quantised weights.


def test_bits_are_part_of_the_configuration() -> None:
    config = tiny_config()
    assert config.llm_bits is None
    for bits in (4, 8):
        values = to_dict(replace(config, llm_bits=bits))
        assert values["llm_bits"] == bits
        assert from_dict(ModelConfig, values).llm_bits == bits
    with pytest.raises(ValueError, match="llm_bits"):
        from_dict(ModelConfig, to_dict(config) | {"llm_bits": 3})
    with pytest.raises(ValueError, match=r"llm_bits is 4; allowed is null with lora\.variant 'dora'"):
        replace(config, llm_bits=4, lora=LoraConfig(variant="dora"))


def test_bits_without_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="llm_bits is 4; that needs the package bitsandbytes"):
        Llm.load(tmp_path, bits=4)


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_quantised_layers(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="an optional package that is not installed")
    made = _made("llama-3.2")
    config = replace(made.ours.config, llm_bits=bits)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = build_model(config)
    texts = TEXTS[:3]
    assert not any(layer.base.weight.is_floating_point() for layer in model.adapters.layers.values())
    plain_BLV = _logits(made.ours, made.encoded, SCALES, texts)
    close = (_logits(model, made.encoded, SCALES, texts) - plain_BLV).std() / plain_BLV.std()
    assert 0 < close < {4: 0.9, 8: 0.1}[bits]  # of unlike models it is 1.4
    model(made.encoded, SCALES, texts).logits_BLV.logsumexp(dim=-1).sum().backward()
    for layer in model.adapters.layers.values():
        assert layer.up_AOR.grad is not None
        assert layer.up_AOR.grad.abs().sum() > 0
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).to(torch.bfloat16)
    inputs = loaded.embed(loaded.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    assert all(len(tokens) <= 5 for tokens in greedy(loaded, inputs, SCALES, [5] * 3).tokens)
