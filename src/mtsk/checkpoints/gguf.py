"""A Llama model out of a GGUF file: config, weights and tokenizer in the form that transformers loads.

GGUF stores the rows of the query and key projections in the order of interleaved rotary pairs; transformers rotates
halves, so the rows are put back. Quantised tensors are dequantised once, here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # token type of `<|im_start|>` and the like
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class LlamaGguf:
    """A Llama model in a GGUF file.

    Args:
        path: the file.

    Raises:
        ValueError: the file holds another architecture, or a tokenizer this reader does not know.
    """

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        architecture, model = self._field("general.architecture"), self._field("tokenizer.ggml.model")
        pre = self._field("tokenizer.ggml.pre")
        if architecture != "llama" or (model, pre) != ("gpt2", "smollm"):
            raise ValueError(f"{architecture} with tokenizer {model}/{pre} given; allowed is llama with gpt2/smollm")

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise ValueError(f"the GGUF file has no field {key}")
        return field.contents()

    def config(self) -> dict[str, Any]:
        """The keyword arguments of `transformers.LlamaConfig`."""
        num_heads = self._field("llama.attention.head_count")
        return {
            "vocab_size": self._field("llama.vocab_size"),
            "hidden_size": self._field("llama.embedding_length"),
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_hidden_layers": self._field("llama.block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._field("llama.attention.head_count_kv"),
            "head_dim": self._field("llama.embedding_length") // num_heads,
            "max_position_embeddings": self._field("llama.context_length"),
            # GGUF keeps float32: 1e-5 comes back as 9.999999747378752e-06.
            "rms_norm_eps": float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_parameters": {"rope_type": "default", "rope_theta": self._field("llama.rope.freq_base")},
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            "bos_token_id": self._field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._field("tokenizer.ggml.padding_token_id"),
        }

    def state_dict(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """The weights under the names of `transformers.LlamaForCausalLM`.

        Raises:
            ValueError: a tensor that a Llama model does not have.
        """
        num_heads = {
            "attn_q": self._field("llama.attention.head_count"),
            "attn_k": self._field("llama.attention.head_count_kv"),
        }
        state = {}
        for tensor in self._reader.tensors:
            parts = tensor.name.removesuffix(".weight").split(".")
            weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            if len(parts) == 1 and parts[0] in _TOP_NAMES:
                name = _TOP_NAMES[parts[0]]
            elif len(parts) == 3 and parts[2] in _NAMES:
                name = f"model.layers.{parts[1]}.{_NAMES[parts[2]]}"
                if parts[2] in num_heads:
                    weight = _pairs_to_halves(weight, num_heads[parts[2]])
            else:
                raise ValueError(f"tensor {tensor.name} in the GGUF file belongs to no Llama model")
            state[f"{name}.weight"] = weight.to(dtype).contiguous()
        return state

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE tokenizer; every digit is a token of its own."""
        tokens, types = self._field("tokenizer.ggml.tokens"), self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [
                AddedToken(token, normalized=False, special=True)
                for token, kind in zip(tokens, types, strict=True)
                if kind == _CONTROL
            ]
        )
        return tokenizer

    def tokenizer_config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says beside `tokenizer.json`: special tokens, length, chat template."""
        tokens = self._field("tokenizer.ggml.tokens")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self._field("llama.context_length"),
            "clean_up_tokenization_spaces": False,
            "chat_template": self._field("tokenizer.chat_template"),
            **{name: tokens[self._field(f"tokenizer.ggml.{key}_token_id")] for name, key in _SPECIAL_TOKENS.items()},
        }


def _pairs_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from (0, d/2, 1, d/2 + 1, ...) to (0, 1, ..., d - 1)."""
    num_rows, num_columns = weight.shape
    paired = weight.view(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return paired.transpose(1, 2).reshape(num_rows, num_columns)
