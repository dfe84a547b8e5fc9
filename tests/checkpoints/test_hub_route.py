"""What comes with a model from the hub: tokenizers of every making, and Whispers of every size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from mtsk.config import AudioEncoderConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.prompt import PromptBuilder, Vocabulary
from tests.tiny import TEXTS, tiny_tokenizer

UNSEEN = "öl 's zebra . \N{SNOWMAN}"  # bytes, and what some tokenizers join when they decode
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _bpe_model() -> models.BPE:
    """As SentencePiece's BPE in transformers' form: words begin with a mark, what is unknown is written as bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator([f" {text}" for text in TEXTS], trainers.BpeTrainer(vocab_size=90, show_progress=False))
    known = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    names = [*SPECIAL.values(), *_BYTES, *(name for name, _ in known)]
    vocabulary = {name: number for number, name in enumerate(names)}
    # Every pair that makes a known token, shorter ones first: enough for a deterministic tokenizer.
    pairs = [(a[:i], a[i:]) for a, _ in known for i in range(1, len(a)) if {a[:i], a[i:]} <= vocabulary.keys()]
    return models.BPE(vocabulary, pairs, byte_fallback=True, unk_token="<unk>", fuse_unk=True)


def _sentencepiece() -> Tokenizer:
    """The layout of the files of Llama 2 and TinyLlama: a mark goes in front of any text."""
    tokenizer = Tokenizer(_bpe_model())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _gemma() -> Tokenizer:
    """No mark in front of a text."""
    tokenizer = Tokenizer(_bpe_model())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(SPECIAL.values()), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, UNSEEN], trainer)
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> Any:
    wrap: Any = PreTrainedTokenizerFast  # has no annotations
    return wrap(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True, **SPECIAL)


def _llama_class(*, legacy: bool) -> Any:
    trained = Tokenizer(_bpe_model())
    llama: Any = LlamaTokenizer
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return llama(vocab=trained.get_vocab(), merges=merges, legacy=legacy, **SPECIAL)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": tiny_tokenizer,
    "byte-level without begin": lambda: tiny_tokenizer(bos=False),
    "sentencepiece": lambda: _wrap(_sentencepiece()),
    "sentencepiece, class": lambda: _llama_class(legacy=False),
    "sentencepiece, legacy class": lambda: _llama_class(legacy=True),
    "gemma": lambda: _wrap(_gemma()),
    "unigram": lambda: _wrap(_unigram()),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    """With a tokenizer that was written to a folder and read."""
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZERS[request.param]().save_pretrained(folder)
    LlamaConfig().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return PromptBuilder(tokenizer, Vocabulary(1000, tokenizer.bos_token_id, tokenizer.eos_token_id))


@pytest.mark.parametrize("leading_space", [True, False])
@pytest.mark.parametrize("text", [*TEXTS, UNSEEN, "a", ""])
def test_a_text_comes_back(builder: PromptBuilder, text: str, leading_space: bool) -> None:
    builder = builder.writing(leading_space=leading_space)
    assert builder.decode(builder.target(text)) == text


@pytest.mark.parametrize("text", [*TEXTS, UNSEEN])
def test_a_word_is_the_same_tokens_wherever_it_stands(builder: PromptBuilder, text: str) -> None:
    words = [token for word in text.split() for token in builder.word_ids(word)]
    assert builder.target(text) == [*words, builder.vocabulary.eos]


def test_one_begin_at_most(builder: PromptBuilder) -> None:
    """Also where the tokenizer adds its own."""
    bos, prefix = builder.vocabulary.bos, builder.prefix(3, 2)
    assert prefix.count(bos) == (bos is not None)  # type: ignore[arg-type]
    assert bos is None or prefix[0] == bos
    assert builder.vocabulary.eos not in prefix


# name -> width, layers, heads, mel bands, vocabulary: what the encoders of the real ones differ in, made small. That of
# large-v3-turbo is large-v3's.
WHISPERS = {
    "tiny.en": (48, 2, 3, 80, 51),
    "large-v3": (40, 3, 5, 128, 67),
    "distil": (32, 2, 4, 80, 66),
}


@pytest.mark.parametrize(
    ("name", "window"), [*((name, "real") for name in WHISPERS), ("tiny.en", "30s"), ("large-v3", "30s")]
)
def test_any_whisper(name: str, window: Any, tmp_path: Path) -> None:
    """From a folder in half precision, as the large ones come, with the decoder that is not used."""
    width, layers, heads, num_bands, vocabulary = WHISPERS[name]
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=heads,
        decoder_ffn_dim=32,
        num_mel_bins=num_bands,
        vocab_size=vocabulary,
        init_std=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    torch.manual_seed(0)
    model: Any = WhisperForConditionalGeneration(config).half().eval()
    model.save_pretrained(tmp_path)
    encoder = WhisperAudioEncoder.load(AudioEncoderConfig(str(tmp_path), window=window), tmp_path)
    assert (encoder.dim, encoder.num_bands, encoder.encoder.conv1.weight.dtype) == (width, num_bands, torch.float32)
    waveform_BN = 0.1 * torch.randn(2, 480_000 if window == "30s" else 16_000)
    num_samples_B = torch.tensor([waveform_BN.shape[1], 8_333])
    waveform_BN[1, 8_333:] = 0
    features = encoder(waveform_BN, num_samples_B)
    assert features.lengths_B.tolist() == [waveform_BN.shape[1] // 320, 26]
    alone = encoder(waveform_BN[1:, :8_333], num_samples_B[1:])
    torch.testing.assert_close(features.values_BTD[1, :26], alone.values_BTD[0], atol=1e-4, rtol=1e-4)
    if window == "30s":
        extract = WhisperFeatureExtractor(feature_size=num_bands)
        mel_BMF = extract(list(waveform_BN.numpy()), sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            expected_BTD = model.float().get_encoder()(mel_BMF).last_hidden_state
        torch.testing.assert_close(features.values_BTD[0], expected_BTD[0], atol=2e-3, rtol=1e-3)
