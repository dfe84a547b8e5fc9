"""Whisper weights out of a CTranslate2 model file (binary versions 4 to 6), by copies and row splits alone.

The file holds little-endian records: a header, named tensors, then aliases that say which names share a tensor.
CTranslate2 stacks the projections that read the same input: query, key and value of self-attention (3 D rows), key and
value of cross-attention (2 D rows). transformers keeps them apart, so the stacks are cut again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Variables = dict[str, NDArray[Any]]

_BINARY_VERSIONS = (4, 5, 6)
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # bfloat16 (5) is unknown to NumPy
_GELU = 3  # number of the activation in CTranslate2


class _Cursor:
    """Reads one record after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def take(self, num_bytes: int) -> memoryview:
        if self._offset + num_bytes > len(self._data):
            raise ValueError(
                f"CTranslate2 model is cut off: {num_bytes} bytes wanted at offset {self._offset} of {len(self._data)}"
            )
        self._offset += num_bytes
        return self._data[self._offset - num_bytes : self._offset]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8")  # the length counts the final zero

    def at_end(self) -> bool:
        return self._offset == len(self._data)


def read_variables(data: bytes, spec: str = "WhisperSpec", revision: int = 3) -> Variables:
    """The named tensors of a CTranslate2 model; aliases are resolved.

    Args:
        data: the whole of `model.bin`.
        spec: name of the model class the file must be of.
        revision: revision of that class the file must have.

    Returns:
        name -> array, as views of `data` where possible.

    Raises:
        ValueError: another class, version or number format, or a file that is cut off or too long.
    """
    cursor = _Cursor(data)
    version = cursor.number("I")
    if version not in _BINARY_VERSIONS:
        raise ValueError(f"CTranslate2 binary version {version} given; allowed are {_BINARY_VERSIONS}")
    found = cursor.string(), cursor.number("I")
    if found != (spec, revision):
        raise ValueError(
            f"CTranslate2 model {found[0]} revision {found[1]} given; allowed is {spec} revision {revision}"
        )
    variables: Variables = {}
    for _ in range(cursor.number("I")):
        name = cursor.string()
        shape = [cursor.number("I") for _ in range(cursor.number("B"))]
        dtype = cursor.number("B")
        if dtype not in _DTYPES:
            raise ValueError(f"CTranslate2 number format {dtype} in {name}; allowed are {sorted(_DTYPES)}")
        variables[name] = np.frombuffer(cursor.take(cursor.number("I")), dtype=_DTYPES[dtype]).reshape(shape)
    for _ in range(cursor.number("I")):
        alias, target = cursor.string(), cursor.string()
        variables[alias] = variables[target]
    if not cursor.at_end():
        raise ValueError("CTranslate2 model has bytes after its last record")
    return variables


def _num_layers(variables: Mapping[str, NDArray[Any]], stack: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{stack}/layer_") and "/ffn/" in name})


def whisper_config(variables: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The keyword arguments of `transformers.WhisperConfig` that the tensors imply.

    Raises:
        ValueError: the activation is not GELU, which Whisper's is.
    """
    if int(variables["decoder/activation"]) != _GELU:
        raise ValueError(f"activation {int(variables['decoder/activation'])} given; Whisper's is GELU ({_GELU})")
    vocab_size, d_model = variables["decoder/embeddings/weight"].shape
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "encoder_layers": _num_layers(variables, "encoder"),
        "decoder_layers": _num_layers(variables, "decoder"),
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "decoder_attention_heads": int(variables["decoder/num_heads"]),
        "encoder_ffn_dim": variables["encoder/layer_0/ffn/linear_0/bias"].shape[0],
        "decoder_ffn_dim": variables["decoder/layer_0/ffn/linear_0/bias"].shape[0],
        "max_source_positions": variables["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": variables["decoder/position_encodings/encodings"].shape[0],
    }


def whisper_state_dict(variables: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The weights under the names of `transformers.WhisperForConditionalGeneration`, in the precision of the file.

    The output projection is the token embedding and is left out, as transformers does when it saves.

    Raises:
        ValueError: a key projection has a bias, which Whisper's has not.
    """
    state: dict[str, Tensor] = {}

    def put(name: str, value: NDArray[Any]) -> None:
        state[f"model.{name}"] = torch.from_numpy(np.ascontiguousarray(value).copy())

    def linear(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"{source}/weight"])
        put(f"{name}.bias", variables[f"{source}/bias"])

    def norm(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"{source}/gamma"])
        put(f"{name}.bias", variables[f"{source}/beta"])

    def projections(name: str, source: str, parts: str) -> None:
        weights = np.split(variables[f"{source}/weight"], len(parts))
        biases = np.split(variables[f"{source}/bias"], len(parts))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            put(f"{name}.{part}_proj.weight", weight)
            if part != "k":
                put(f"{name}.{part}_proj.bias", bias)
            elif np.any(bias):
                raise ValueError(f"the key bias of {source} is not zero; Whisper has none")

    for stack in ("encoder", "decoder"):
        for i in range(_num_layers(variables, stack)):
            name, source = f"{stack}.layers.{i}", f"{stack}/layer_{i}"
            norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            projections(f"{name}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            linear(f"{name}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            if stack == "decoder":
                norm(f"{name}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
                projections(f"{name}.encoder_attn", f"{source}/attention/linear_0", "q")
                projections(f"{name}.encoder_attn", f"{source}/attention/linear_1", "kv")
                linear(f"{name}.encoder_attn.out_proj", f"{source}/attention/linear_2")
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
            linear(f"{name}.fc1", f"{source}/ffn/linear_0")
            linear(f"{name}.fc2", f"{source}/ffn/linear_1")
        put(f"{stack}.embed_positions.weight", variables[f"{stack}/position_encodings/encodings"])
        norm(f"{stack}.layer_norm", f"{stack}/layer_norm")
    linear("encoder.conv1", "encoder/conv1")
    linear("encoder.conv2", "encoder/conv2")
    put("decoder.embed_tokens.weight", variables["decoder/embeddings/weight"])
    return state
