"""The CTranslate2 reader: a tiny Whisper written here byte by byte comes back tensor by tensor."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mtsk.checkpoints.ctranslate2 import read_variables, whisper_config, whisper_state_dict

_CODES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}


def _string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _write(
    variables: Mapping[str, np.ndarray], aliases: Mapping[str, str], spec: str = "WhisperSpec", revision: int = 3
) -> bytes:
    data = struct.pack("<I", 6) + _string(spec) + struct.pack("<II", revision, len(variables))
    for name, value in variables.items():
        data += _string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", _CODES[str(value.dtype)], value.nbytes) + value.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(_string(alias) + _string(name) for alias, name in aliases.items())


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=11,
        d_model=8,
        num_mel_bins=5,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=12,
        decoder_ffn_dim=16,
        max_source_positions=6,
        max_target_positions=7,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    model = WhisperForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter).to(torch.float16)
    return model


def _fused(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The tensors of a transformers model as CTranslate2 keeps them."""
    state: dict[str, Tensor] = model.state_dict()
    variables: dict[str, np.ndarray] = {
        "decoder/activation": np.array(3, np.int8),
        "decoder/scale_embeddings": np.array(0, np.int8),
        "encoder/num_heads": np.array(model.config.encoder_attention_heads, np.int16),
        "decoder/num_heads": np.array(model.config.decoder_attention_heads, np.int16),
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"].numpy(),
    }

    def copy(target: str, *sources: str, norm: bool = False) -> None:
        names = ("gamma", "beta") if norm else ("weight", "bias")
        for name, kind in zip(names, ("weight", "bias"), strict=True):
            rows = [
                state.get(f"model.{s}.{kind}", torch.zeros(model.config.d_model, dtype=torch.float16)) for s in sources
            ]
            variables[f"{target}/{name}"] = torch.cat(rows).numpy()

    for stack, num_layers in (("encoder", model.config.encoder_layers), ("decoder", model.config.decoder_layers)):
        variables[f"{stack}/position_encodings/encodings"] = state[f"model.{stack}.embed_positions.weight"].numpy()
        copy(f"{stack}/layer_norm", f"{stack}.layer_norm", norm=True)
        for i in range(num_layers):
            ours, theirs = f"{stack}/layer_{i}", f"{stack}.layers.{i}"
            copy(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm", norm=True)
            copy(f"{ours}/self_attention/linear_0", *(f"{theirs}.self_attn.{part}_proj" for part in "qkv"))
            copy(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
            copy(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm", norm=True)
            copy(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            copy(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
    ours, theirs = "decoder/layer_0/attention", "decoder.layers.0.encoder_attn"
    copy(f"{ours}/layer_norm", f"{theirs}_layer_norm", norm=True)
    copy(f"{ours}/linear_0", f"{theirs}.q_proj")
    copy(f"{ours}/linear_1", f"{theirs}.k_proj", f"{theirs}.v_proj")
    copy(f"{ours}/linear_2", f"{theirs}.out_proj")
    copy("encoder/conv1", "encoder.conv1")
    copy("encoder/conv2", "encoder.conv2")
    return variables


def test_round_trip(model: WhisperForConditionalGeneration) -> None:
    data = _write(_fused(model), {"decoder/projection/weight": "decoder/embeddings/weight"})
    variables = read_variables(data)
    assert variables["decoder/projection/weight"] is variables["decoder/embeddings/weight"]

    config = whisper_config(variables)
    assert {name: getattr(model.config, name) for name in config} == config
    expected = {name: value for name, value in model.state_dict().items() if name != "proj_out.weight"}
    found = whisper_state_dict(variables)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float16
        assert torch.equal(found[name], value), name


def test_a_key_bias_is_refused(model: WhisperForConditionalGeneration) -> None:
    variables = _fused(model)
    variables["encoder/layer_1/self_attention/linear_0/bias"][8] = 1.0  # the first row of the key
    with pytest.raises(ValueError, match="key bias of encoder/layer_1"):
        whisper_state_dict(variables)


def test_another_activation_is_refused(model: WhisperForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="GELU"):
        whisper_config({**_fused(model), "decoder/activation": np.array(0, np.int8)})


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="TransformerSpec revision 7 given; allowed is WhisperSpec revision 3"):
        read_variables(_write({}, {}, spec="TransformerSpec", revision=7))
    with pytest.raises(ValueError, match="binary version 1179993927"):
        read_variables(b"GGUF" + bytes(20))


def test_an_unknown_number_format_is_refused() -> None:
    data = bytearray(_write({"a": np.zeros(2, np.float32)}, {}))
    data[data.index(b"a\0") + 2 + 1 + 4] = 5
    with pytest.raises(ValueError, match="number format 5 in a"):
        read_variables(bytes(data))


def test_every_cut_and_any_surplus_is_noticed() -> None:
    data = _write({"a": np.arange(3, dtype=np.float32)}, {"b": "a"})
    assert set(read_variables(data)) == {"a", "b"}
    for length in range(len(data)):
        with pytest.raises(ValueError, match="cut off"):
            read_variables(data[:length])
    with pytest.raises(ValueError, match="after its last record"):
        read_variables(data + b"\0")
