"""Other words for the tiny models: a tokenizer, embeddings that copy the common ones, and inputs in its ids."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

MASKED, CAUSAL, SEQ2SEQ = hf.AutoModelForMaskedLM, hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM
WITH_HEAD = [
    ("bert", MASKED),
    ("electra", MASKED),
    ("albert", MASKED),
    ("gpt2", CAUSAL),
    ("llama", CAUSAL),  # whose output embedding is its own
    ("gemma2", CAUSAL),  # whose lookup is scaled
    ("bart", SEQ2SEQ),  # which adds a bias behind the output embedding
    ("marian", SEQ2SEQ),
    ("t5", SEQ2SEQ),
]
headed = pytest.mark.parametrize(("arch", "auto"), WITH_HEAD, ids=[arch for arch, _ in WITH_HEAD])


@cache
def tokenizer(words: int, shift: int = 0) -> hf.PreTrainedTokenizerFast:
    """Words w0, w1, …, whose ids begin at `shift` places further on."""
    vocabulary = {f"w{index}": (index + shift) % words for index in range(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", pad_token="w1")


OLD = tokenizer(100)
"""Of the tiny models."""


def like(model: Any, name: str = "copy", words: int = 100, shift: int = 0) -> Any:
    """Embeddings whose common words are copied."""
    model.add_embeddings(name, tokenizer(words, shift), "default", OLD)
    return model


def moved(inputs: dict[str, torch.Tensor], words: int, shift: int) -> dict[str, torch.Tensor]:
    """The same words, in the other tokenizer's ids."""
    keys = [key for key in inputs if key.endswith("input_ids")]
    return inputs | {key: (inputs[key] + shift) % words for key in keys}
