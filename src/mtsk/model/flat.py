"""The layers of a Llama-like LLM in few calls each: what inference reads with, where it can.

The arithmetic is that of transformers. What differs is how often it is called for: projections of one input are one
matrix, an adapter that all rows use is added to its weights once, query heads that share keys are read as more queries,
and the mask is made once per pass. On a small LLM these calls cost more than a third of a step.

In bfloat16 on a processor a column has the same result, to the bit, whatever is read beside it: oneDNN sums each row of
a product alike, however many rows there are, from two rows on, and `attention` is made of products there, if no biases
make its scores large. `exactness` measures it.

An LLM that has more to it is read by its own code: see `FlatDecoder.fits`.

Letters: B rows, S new columns, T places in the cache, E width, H query heads, K heads of keys, D channels of a head,
O outputs of a projection, I inputs, N real columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtsk.model.adapters import AdapterBank, LoraLinear
from mtsk.model.attention import attention
from mtsk.model.fusion import LlmInput
from mtsk.model.rows_cache import RowsCache

FAMILIES = ("llama", "qwen2")  # as transformers calls them; what they may have in addition is looked for

Project = Callable[[Tensor], Tensor]
"""(B, S, I) -> (B, S, O)."""
MakeProject = Callable[[Tensor, Tensor | None], Project]
"""Weights (O, I) and biases (O,) -> a projection."""


def plain(weight_OI: Tensor, bias_O: Tensor | None) -> Project:
    """A projection in the precision of its weights."""
    return partial(functional.linear, weight=weight_OI, bias=bias_O)


@dataclass(frozen=True)
class _Layer:
    """One layer."""

    first_norm: Project
    query_key_value: Project  # side by side
    out: Project
    second_norm: Project
    gate_up: Project  # side by side
    down: Project


class FlatDecoder:
    """Embeddings -> last hidden states, with a cache. Holds the weights as they are when it is made.

    Args:
        llm: a causal language model of transformers that `fits`.
        adapters: of the LLM.
        make: how a projection is computed. The LLM's own weights are given up for what it makes of them.
        dtype: of what goes from layer to layer; default: that of the weights.

    Attributes:
        head: last hidden states -> logits.
    """

    def __init__(
        self, llm: Any, adapters: AdapterBank, make: MakeProject = plain, dtype: torch.dtype | None = None
    ) -> None:
        config = llm.config
        self._dtype: torch.dtype = dtype or llm.dtype
        self._attention_dtype: torch.dtype = llm.dtype
        # A product of a single row may be summed in another order; sums of integers are exact.
        self._least_rows = 2 if make is plain else 1
        self._num_heads: int = config.num_attention_heads
        self._num_key_heads: int = config.num_key_value_heads
        decoder = llm.get_decoder()
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = decoder.rotary_emb
        norm = partial(_norm, dtype=self._dtype)
        self._norm = norm(decoder.norm)
        self._act: Callable[[Tensor], Tensor] = decoder.layers[0].mlp.act_fn
        join = partial(_join, is_shared=adapters.is_shared, make=make)
        # Biases make large scores (Qwen2).
        has_biases = any("k_proj" in name and name.endswith("bias") for name, _ in decoder.named_parameters())
        self._attention = functional.scaled_dot_product_attention if has_biases else attention
        self._layers = [
            _Layer(
                first_norm=norm(layer.input_layernorm),
                query_key_value=join([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                out=join([layer.self_attn.o_proj]),
                second_norm=norm(layer.post_attention_layernorm),
                gate_up=join([layer.mlp.gate_proj, layer.mlp.up_proj]),
                down=join([layer.mlp.down_proj]),
            )
            for layer in decoder.layers
        ]
        # Whether no projection asks which row a column belongs to: then padding can be left out.
        self._is_rowless = not any(
            isinstance(project, partial) and project.func is _side_by_side
            for layer in self._layers
            for project in (layer.query_key_value, layer.out, layer.gate_up, layer.down)
        )
        head = llm.get_output_embeddings()
        self.head = make(head.weight, head.bias)

    @staticmethod
    def fits(llm: Any) -> bool:
        """Whether an LLM is known to have no more to it than what is computed here."""
        config = llm.config
        windowed = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
        quantized = getattr(llm, "is_quantized", False)
        return config.model_type in FAMILIES and not windowed and not quantized

    def __call__(self, inputs: LlmInput, cache: RowsCache) -> Tensor:
        """(B, S, E); what it gives for padding means nothing. Call it within a selection of adapters.

        Args:
            inputs: the columns to be read.
            cache: what was read before; is extended.
        """
        shape_BS = inputs.mask_BS.shape
        hidden = inputs.embeds_BSE.to(self._dtype)
        cos_BSD, sin_BSD = self._rotary(hidden, position_ids=inputs.positions_BS)
        half = cos_BSD.shape[-1] // 2
        # Rolled by half, the channels stand where the rotation wants them, but for the sign.
        signed_BSD = torch.cat((-sin_BSD[..., :half], sin_BSD[..., half:]), dim=-1)
        rotation = cos_BSD[:, None], signed_BSD[:, None]
        cache.places.set(inputs.positions_BS)
        mask = self._mask(cache.places.visible())
        real_N = self._real_columns(inputs)
        if real_N is not None:
            hidden = hidden.flatten(0, 1)[real_N]
        for number, layer in enumerate(self._layers):
            joined = _unpacked(layer.query_key_value(layer.first_norm(hidden)), real_N, shape_BS)
            mixed_BSO = self._attend(number, joined, rotation, mask, cache)
            hidden = hidden + layer.out(mixed_BSO if real_N is None else mixed_BSO.flatten(0, 1)[real_N])
            gate, up = layer.gate_up(layer.second_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.down(self._act(gate) * up)
        return _unpacked(self._norm(hidden), real_N, shape_BS)

    def read_head(self, hidden_NE: Tensor) -> Tensor:
        """(N, V) logits, as `head`."""
        is_doubled = len(hidden_NE) == 1 and self._least_rows == 2
        return self.head(hidden_NE.expand(2, -1))[:1] if is_doubled else self.head(hidden_NE)

    def _mask(self, visible_BST: Tensor) -> Tensor:
        """(B, 1, folds * S, T), for queries of all heads that share keys."""
        mask_BST = visible_BST.new_zeros(visible_BST.shape, dtype=self._attention_dtype)
        mask_BST.masked_fill_(~visible_BST, -torch.inf)
        return mask_BST.repeat(1, self._num_heads // self._num_key_heads, 1)[:, None]

    def _real_columns(self, inputs: LlmInput) -> Tensor | None:
        """(N,) places of the real columns among all new ones, row after row; None if all are, or are treated so."""
        if not self._is_rowless:
            return None
        real_N = inputs.mask_BS.flatten().nonzero()[:, 0]
        if len(real_N) == 1 and self._least_rows == 2:
            return real_N.repeat(2)
        return None if len(real_N) == inputs.mask_BS.numel() else real_N

    def _attend(
        self, number: int, joined: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: RowsCache
    ) -> Tensor:
        num_rows, num_columns = joined.shape[:2]
        num_rotated = self._num_heads + self._num_key_heads
        joined = joined.view(num_rows, num_columns, num_rotated + self._num_key_heads, -1).transpose(1, 2)
        plain_BHSD, value_BKSD = joined[:, :num_rotated], joined[:, num_rotated:].to(self._attention_dtype)
        cos, signed = rotation
        rotated_BHSD = plain_BHSD * cos + plain_BHSD.roll(cos.shape[-1] // 2, dims=-1) * signed
        rotated_BHSD = rotated_BHSD.to(self._attention_dtype)
        query_BHSD, key_BKSD = rotated_BHSD[:, : self._num_heads], rotated_BHSD[:, self._num_heads :]
        key_BKTD, value_BKTD = cache.update(key_BKSD, value_BKSD, number)
        folded = query_BHSD.reshape(num_rows, self._num_key_heads, -1, query_BHSD.shape[-1])
        mixed = self._attention(folded, key_BKTD, value_BKTD, mask)
        return mixed.view(query_BHSD.shape).transpose(1, 2).reshape(num_rows, num_columns, -1)


def _unpacked(packed: Tensor, real_N: Tensor | None, shape_BS: torch.Size) -> Tensor:
    """(N, O) -> (B, S, O), zero at padding; what is not packed stays as it is."""
    if real_N is None:
        return packed
    unpacked = packed.new_zeros(shape_BS.numel(), packed.shape[-1])
    return unpacked.index_copy_(0, real_N, packed).view(*shape_BS, -1)


def _norm(module: Any, dtype: torch.dtype) -> Project:
    weight: Tensor = module.weight.to(dtype)
    return partial(functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.variance_epsilon)


def _join(modules: Sequence[nn.Module], *, is_shared: bool, make: MakeProject) -> Project:
    """One projection that gives the outputs of all modules, side by side."""
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for module in modules:
        merged = module.merged_weight() if isinstance(module, LoraLinear) and is_shared else None
        if isinstance(module, LoraLinear) and merged is None:
            return partial(_side_by_side, modules)
        linear = module.base if isinstance(module, LoraLinear) else module
        assert isinstance(linear, nn.Linear), type(linear)
        weights.append(linear.weight if merged is None else merged)
        biases.append(linear.bias)
    bias_O = None
    if any(bias is not None for bias in biases):
        pairs = zip(weights, biases, strict=True)
        bias_O = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])
    project = make(torch.cat(weights) if len(weights) > 1 else weights[0], bias_O)
    _give_up(modules, project)
    return project


def _give_up(modules: Sequence[nn.Module], project: Project) -> None:
    """Frees weights that are in a projection now; where it has them in their precision, the modules keep a view."""
    joined_OI = project.keywords["weight"] if isinstance(project, partial) else None
    first = 0
    for module in modules:
        linear = module.base if isinstance(module, LoraLinear) else module
        assert isinstance(linear, nn.Linear), type(linear)
        if isinstance(module, LoraLinear) and module.up_AOR.requires_grad:
            first += linear.out_features
            continue  # it may yet be trained or saved
        rows = slice(first, first + linear.out_features)
        linear.weight.data = linear.weight.new_empty(0) if joined_OI is None else joined_OI[rows]
        if isinstance(module, LoraLinear):
            module.up_AOR.data.zero_()  # its delta is in the weights now
        first += linear.out_features


def _side_by_side(modules: Sequence[nn.Module], x_BSI: Tensor) -> Tensor:
    """With the adapters that each row has selected."""
    dtype = next(modules[0].parameters()).dtype
    return torch.cat([module(x_BSI.to(dtype)) for module in modules], dim=-1).to(x_BSI.dtype)
