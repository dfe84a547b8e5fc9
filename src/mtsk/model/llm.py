"""Any causal language model of transformers: its weights, tokenizer and the few numbers that we need of it.

There is no list of known models. What is computed here in place of the model's own code (the embedding of tokens, the
head, padding on the left, the cache) is compared with that code once when a model is loaded; one that has more to it
is refused.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Cache, DynamicCache

from mtsk.device import best_device, has_bf16
from mtsk.model.fusion import LlmInput
from mtsk.model.prompt import PromptBuilder, Vocabulary
from mtsk.model.rows_cache import PLACES, RowsCache

# Largest difference of logits, as a share of their standard deviation. Rounding to float32 makes 1e-5, to 4 bits 0.1,
# to 8 bits 0.4 (there the rounding of a position depends on the others), and a forgotten factor several.
_TOLERANCE, _ROUGH_TOLERANCE = 0.01, 1.0
_LOG = logging.getLogger(__name__)
_NUM_PADDING, _NUM_TOKENS = 2, 6  # of the sequence that is compared


@dataclass(frozen=True)
class Llm:
    """A frozen causal language model and its tokenizer."""

    model: Any  # a transformers *ForCausalLM
    prompts: PromptBuilder

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, bits: Literal[4, 8] | None = None) -> Llm:
        """Reads model and tokenizer from a folder in transformers' layout.

        Args:
            dtype: of the weights, of those that are not quantised if `bits` is given.
            bits: quantise the linear layers, all but the head, by bitsandbytes: 4 (NF4) or 8 (LLM.int8).

        Raises:
            ValueError: if the folder has no causal language model with a tokenizer that fits, the model can't be read
                by embeddings alone, or this machine can't quantise.
        """
        quantized = {} if bits is None else {"quantization_config": _quantization(bits)}
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **quantized)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (ImportError, OSError, RuntimeError) as error:  # a package, a file, or a device is missing
            raise ValueError(f"the language model in {folder} can't be loaded: {error}") from error
        for module in model.modules():
            # On some processors its 4-bit layers repack themselves at the first call without gradients, for good, and
            # then return no gradients when they are trained through.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                vars(module)["support_avx512bf16_for_cpu"] = False
        llm = cls.build(model, tokenizer)
        _check_tokenizer(tokenizer, llm)
        _check_reading(llm)
        return llm

    @classmethod
    def build(cls, model: Any, tokenizer: Any) -> Llm:
        """Wraps a loaded model; begin and end of sequence come from the tokenizer.

        Raises:
            ValueError: if the tokenizer has no end-of-sequence token, or the model no output head.
        """
        name = model.config.model_type
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has no end-of-sequence token")
        if model.get_output_embeddings() is None:
            raise ValueError(f"{name} has no output head; a causal language model is needed")
        model.requires_grad_(False).eval()
        _fold_scale(model)
        size, eos = model.get_input_embeddings().num_embeddings, tokenizer.eos_token_id
        vocabulary = Vocabulary(size, tokenizer.bos_token_id, eos, _other_ends(model, eos))
        return cls(model, PromptBuilder(tokenizer, vocabulary))

    @property
    def embedding_VE(self) -> Tensor:
        """The input embeddings, as the first layer gets them."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the input embeddings; 1 on the meta device, where there are no values."""
        return 1.0 if self.embedding_VE.is_meta else float(self.embedding_VE.float().std())

    @functools.cached_property
    def reads_rows(self) -> bool:
        """Whether the model reads rows of unlike length side by side as it does alone: measured, as it is a matter of
        how it treats masks and positions."""
        table_VE = self.embedding_VE
        ids_BS = torch.linspace(0, len(table_VE) - 1, 2 * (PLACES + 6), device=table_VE.device).long().view(2, -1)
        name = type(self.model).__name__
        try:
            difference = self._difference_of_rows(ids_BS)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            _LOG.info("%s is read row by row: it can't read rows side by side (%s)", name, error)
            return False
        if not difference <= self.tolerance:
            _LOG.info("%s is read row by row: side by side its logits differ by %.2g deviations", name, difference)
        return difference <= self.tolerance

    @property
    def tolerance(self) -> float:
        """By how many standard deviations logits may differ that should be the same."""
        exact = self.embedding_VE.dtype == torch.float32 and not getattr(self.model, "is_quantized", False)
        return _TOLERANCE if exact else _ROUGH_TOLERANCE

    @torch.no_grad()
    def _difference_of_rows(self, ids_BS: Tensor) -> float:
        """Of the logits of the last column of rows, the second two columns shorter, in standard deviations."""
        num, device, cache = ids_BS.shape[1], ids_BS.device, RowsCache()
        last_B1 = torch.tensor([[num - 1], [num - 3]], device=device)
        wholes = [row_S[None, : last + 1] for row_S, last in zip(ids_BS, last_B1[:, 0].tolist(), strict=True)]
        expected_BV = torch.stack([self.model(input_ids=whole_1S).logits[0, -1] for whole_1S in wholes])
        wrong_BS = ids_BS.clone()
        wrong_BS[1, num - 3 :] = ids_BS[0, :3]  # what is written over, or never seen
        for its_BS, places_BS in ((wrong_BS, torch.arange(num - 1, device=device).expand(2, -1)), (ids_BS, last_B1)):
            embeds_BSE = self.embedding_VE[its_BS.gather(1, places_BS)]
            hidden_BSE = self.read(LlmInput(embeds_BSE, torch.ones_like(places_BS), places_BS), cache)
        return float((self.logits(hidden_BSE[:, -1]) - expected_BV).abs().max() / expected_BV.std())

    def read(self, inputs: LlmInput, cache: Cache) -> Tensor:
        """(B, S, E) last hidden states, by the model's own code.

        Args:
            inputs: the columns that the cache has not seen.
            cache: a `RowsCache`, or another one, with one row and without padding.
        """
        mask = None
        if isinstance(cache, RowsCache):
            cache.places.set(inputs.positions_BS)
            visible_B1ST = cache.places.visible()[:, None]
            mask = inputs.embeds_BSE.new_zeros(visible_B1ST.shape)
            mask.masked_fill_(~visible_B1ST, torch.finfo(mask.dtype).min)
        hidden_BSE: Tensor = self.decoder(
            inputs_embeds=inputs.embeds_BSE,
            attention_mask=mask,
            position_ids=inputs.positions_BS,
            cache=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_BSE

    @property
    def decoder(self) -> nn.Module:
        """The layers without the output head."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    def logits(self, hidden: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Output head, its own if no other is given, on chosen hidden states: (..., E) -> (..., V)."""
        # One product of all: of a slice torch would make one per row, each with its own copy of the head.
        flat_NE = hidden.reshape(-1, hidden.shape[-1])
        logits: Tensor = (head or self.model.get_output_embeddings())(flat_NE).view(*hidden.shape[:-1], -1)
        config = self.model.config.get_text_config(decoder=True)
        # Cohere multiplies, Granite divides, Gemma bends: each by the name that transformers has for it.
        if (factor := getattr(config, "logit_scale", None)) is not None:
            logits = logits * factor
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = (logits / cap).tanh() * cap
        return logits


def _other_ends(model: Any, eos: int) -> tuple[int, ...]:
    """Tokens by which the model ends a text or a turn, as its generation config says, beside the tokenizer's own."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [ends] if isinstance(ends, int) else ends or []
    return tuple(sorted({int(end) for end in listed} - {eos}))


@torch.no_grad()
def _fold_scale(model: Any) -> None:
    """Gives a model that scales its embeddings by a module (Gemma) a plain table of scaled ones. Models that scale
    within, whatever embeddings they are given (Granite), keep theirs."""
    module = model.get_input_embeddings()
    if type(module) is nn.Embedding or not isinstance(module, nn.Embedding) or module.weight.is_meta:
        return
    # The head keeps the unscaled table, which until now may have been the same.
    num_tokens, table_VE = module.num_embeddings, torch.empty_like(module.weight)
    for first in range(0, num_tokens, 8192):
        ids = torch.arange(first, min(first + 8192, num_tokens), device=table_VE.device)
        table_VE[ids] = module(ids)
    model.set_input_embeddings(nn.Embedding(num_tokens, table_VE.shape[1], _weight=table_VE, _freeze=True))


def _quantization(bits: int) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"llm_bits is {bits}; that needs the package bitsandbytes, which is not installed")
    if bits == 8:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else every layer says that it rounds, at every call
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if has_bf16(best_device()) else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _check_tokenizer(tokenizer: Any, llm: Llm) -> None:
    """Numbers beyond the table would be taken for delimiters. Padding and the like may lie there: they are not used."""
    vocabulary = llm.prompts.vocabulary
    added = set(tokenizer.added_tokens_decoder) - {vocabulary.bos, vocabulary.eos}
    largest = max(number for number in tokenizer.get_vocab().values() if number not in added)
    if largest >= vocabulary.size:
        raise ValueError(
            f"the tokenizer has token {largest}, but the {llm.model.config.model_type} beside it has embeddings for "
            f"{vocabulary.size} tokens: they do not belong together"
        )


@torch.no_grad()
def _check_reading(llm: Llm) -> None:
    """Compares our way of reading, by embeddings, padded on the left and with a cache, with the model's own.

    Raises:
        ValueError: if the logits differ, or the model can't be called this way.
    """
    model, table_VE = llm.model, llm.embedding_VE
    name, device = type(model).__name__, table_VE.device
    ids_S = torch.linspace(0, len(table_VE) - 1, _NUM_TOKENS + 2, device=device).long()[1:-1]
    embeds_SE = torch.cat((table_VE.new_zeros(_NUM_PADDING, table_VE.shape[1]), table_VE[ids_S]))
    mask_1S = (torch.arange(len(embeds_SE), device=device) >= _NUM_PADDING).long()[None]
    positions_1S = (mask_1S.cumsum(dim=1) - 1).clamp(min=0)
    first, last = slice(None, -1), slice(-1, None)
    try:
        expected_V = model(input_ids=ids_S[None]).logits[0, -1].float()
        cache = DynamicCache(config=model.config)
        for part, seen in ((first, first), (last, slice(None))):
            hidden_1SE = llm.decoder(
                inputs_embeds=embeds_SE[None, part],
                attention_mask=mask_1S[:, seen],
                position_ids=positions_1S[:, part],
                cache=cache,
                use_cache=True,
            ).last_hidden_state
        found_V = llm.logits(hidden_1SE[0, -1]).float()
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} can't be used: it does not read embeddings with a cache ({error})") from error
    difference = float((found_V - expected_V).abs().max() / expected_V.std())
    if not difference <= llm.tolerance:  # not a number is refused too
        raise ValueError(
            f"{name} can't be used: it does more with embeddings, padding or logits than is known here (its logits "
            f"differ by {difference:.2g} standard deviations)"
        )
