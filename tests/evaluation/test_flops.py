"""Whisper's closed form against the operations that PyTorch counts; ours with the character heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration

from mtsk.config import CtcConfig
from mtsk.evaluation.flops import RequestFlops, WhisperShape
from mtsk.model.audio_encoder import FFT_SIZE
from mtsk.model.cost import CostModel
from mtsk.scale import Scale
from mtsk.types import Example
from tests.tiny import tiny_model

PROMPT, NUM_WRITTEN = 4, 3


def _tiny() -> Any:
    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=96,
        num_mel_bins=80,
        vocab_size=50,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
    )
    model: Any = WhisperForConditionalGeneration
    return model(config).eval()


def test_whisper_costs_what_pytorch_counts() -> None:
    model = _tiny()
    shape = WhisperShape.of(model.config)
    mel = torch.zeros(1, 80, 3000)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            states = model.get_encoder()(mel)
        mel_filters = 2 * 3000 * 80 * (1 + FFT_SIZE // 2)
        assert shape.encoder_flops == counter.get_total_flops() + mel_filters
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with FlopCounterMode(display=False) as counter:
            for length in (PROMPT, *[1] * NUM_WRITTEN):
                ids = torch.ones(1, length, dtype=torch.long)
                model(encoder_outputs=states, decoder_input_ids=ids, cache=cache)
    assert shape.decoder_flops(PROMPT, NUM_WRITTEN) == counter.get_total_flops()


def test_beams_share_the_window_and_the_prompt() -> None:
    shape = WhisperShape.of(_tiny().config)
    alone, prompt = shape.decoder_flops(PROMPT, NUM_WRITTEN), shape.decoder_flops(PROMPT, 0)
    assert shape.decoder_flops(PROMPT, NUM_WRITTEN, 5) == prompt + 5 * (alone - prompt)


def test_a_request_costs_what_it_hears_and_writes_and_its_heads() -> None:
    model = tiny_model()
    example = Example("x", np.zeros(32_000, np.float32), np.zeros((50, 96, 96), np.uint8))
    text, num_text_tokens = "bin blue", len(model.prompts.target("bin blue")) - 1
    cost = CostModel.of_model(model)
    plain = RequestFlops(model, cost)
    model.add_ctc(CtcConfig(hidden=8, num_layers=2, kernel=3))
    with_heads = RequestFlops(model, cost)
    # Of each feature: to 8 channels, twice 3 x 8 x 8, and to the classes; a feature of lips has two steps of them.
    num_classes = len(CtcConfig().alphabet) + 1
    of_sound = 100 * 2 * (64 * 8 + 2 * 3 * 8 * 8 + 8 * num_classes)
    of_lips = 50 * 2 * (cost.encoders["v"].dim * 8 + 2 * 3 * 8 * 8 + 8 * 2 * num_classes)
    for name, of_heads in (("a4", of_sound), ("v2", of_lips), ("a4v2", of_sound + of_lips)):
        scale = Scale.parse(name)
        expected = cost.cost(scale, 2.0, num_text_tokens=num_text_tokens).total_flops
        assert plain(example, scale, text) == expected
        assert with_heads(example, scale, text) == expected + of_heads
