"""Any causal language model of transformers: its weights, tokenizer and the few numbers that we need of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtsk.model.prompt import PromptBuilder, Vocabulary


@dataclass(frozen=True)
class Llm:
    """A frozen causal language model and its tokenizer."""

    model: Any  # a transformers *ForCausalLM
    prompts: PromptBuilder

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Llm:
        """Reads model and tokenizer from a folder in transformers' layout."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return cls.build(model, AutoTokenizer.from_pretrained(folder))

    @classmethod
    def build(cls, model: Any, tokenizer: Any) -> Llm:
        """Wraps a loaded model; begin and end of sequence come from the tokenizer.

        Raises:
            ValueError: if the tokenizer has no end-of-sequence token.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {model.config.model_type} has no end-of-sequence token")
        model.requires_grad_(False).eval()
        vocabulary = Vocabulary(
            model.get_input_embeddings().num_embeddings, tokenizer.bos_token_id, tokenizer.eos_token_id
        )
        return cls(model, PromptBuilder(tokenizer, vocabulary))

    @property
    def embedding_VE(self) -> Tensor:
        """The input embeddings."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the input embeddings; 1 on the meta device, where there are no values."""
        return 1.0 if self.embedding_VE.is_meta else float(self.embedding_VE.float().std())

    @property
    def decoder(self) -> nn.Module:
        """The layers without the output head."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    def logits(self, hidden: Tensor) -> Tensor:
        """Output head on chosen hidden states: (..., E) -> (..., V)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits
