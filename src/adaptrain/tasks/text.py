"""Texts as tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from adaptrain.config.schema import DataConfig
from adaptrain.errors import ConfigError
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Ragged, text_keys
from adaptrain.tasks.positions import Half, positions_of
from adaptrain.tasks.reading import Reader

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows


def prepare_tokenizer(tokenizer: Any) -> None:
    """Undo what a tokenizer file may have baked in, and see that there is something to pad with."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    if tokenizer.pad_token is None:  # GPT-2 and LLaMA: any token does, the mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token


@dataclass(frozen=True)
class TextReader(Reader):
    """Rows of one text, or of two that are read together, with one label each, or none."""

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        texts = (rows.texts,) if rows.pairs is None else (rows.texts, rows.pairs)
        keys = [name for name in self.collate.keys if name != "labels"]
        encoded = tokenised(self.processor, texts, keys, self.max_length)
        if "label" not in rows.columns:
            return encoded
        return replace(encoded, features={**encoded.features, "labels": np.asarray(rows.labels)})


def text_reader(tokenizer: Any, model: nn.Module, data: DataConfig, pair: bool, label_dtype: torch.dtype) -> TextReader:
    """How texts with one label each are read for a base model.

    Raises:
        ConfigError: `data.max_length` leaves no room for text.
    """
    collate = Collator(text_keys(token_keys(tokenizer, model), label_dtype))
    return TextReader(tokenizer, collate, longest_input(tokenizer, model, data.max_length, pair))


def token_keys(tokenizer: Any, model: nn.Module) -> dict[str, int]:
    """What the tokenizer makes and the model takes, and what each is padded with."""
    padding = {"input_ids": int(tokenizer.pad_token_id or 0)}
    # A tokenizer borrowed from BERT makes segment ids that DistilBERT does not take
    if "token_type_ids" in tokenizer.model_input_names and _accepts(model, "token_type_ids"):
        padding["token_type_ids"] = int(tokenizer.pad_token_type_id or 0)
    return padding


def tokenised(tokenizer: Any, texts: Sequence[Sequence[str]], keys: Sequence[str], max_length: int) -> Encoded:
    """Tokenise all rows; those longer than `max_length` are cut (of a pair the longer text first) and counted.

    Args:
        texts: a column, or two that are read together.
        keys: names of what is kept.
    """
    made = tokenizer(*(list(column) for column in texts), truncation=True, max_length=max_length, padding=False)
    ids = made["input_ids"]
    found = {key: list(made[key]) for key in keys}
    for row, tokens in enumerate(ids):
        if not tokens:  # GPT-2 adds no token of its own, so an empty text has none at all
            for key in keys:
                found[key][row] = [0]
            found["input_ids"][row] = [int(tokenizer.bos_token_id or tokenizer.eos_token_id or tokenizer.pad_token_id)]
    features: dict[str, Feature] = {key: Ragged.of(rows) for key, rows in found.items()}
    lengths = [max(1, len(tokens)) for tokens in ids]
    return Encoded(features, lengths, sum(bool(encoding.overflowing) for encoding in made.encodings))


def longest_input(tokenizer: Any, model: nn.Module, wanted: int, pair: bool = False, half: Half | None = None) -> int:
    """Tokens that a row may have: what is asked for, as far as tokenizer and model can go.

    Args:
        pair: whether a row has two texts.
        half: of an encoder-decoder the one that reads the row; None where both do.

    Raises:
        ConfigError: not even the special tokens would fit.
    """
    limits = [wanted, tokenizer.model_max_length, positions_of(model, half) or wanted]
    longest = int(min(limits))
    added = tokenizer.num_special_tokens_to_add(pair)
    if longest <= added + pair:
        raise ConfigError(
            f"data.max_length={wanted} leaves no room for text: this tokenizer adds {added} tokens of its own to every "
            f"{'pair' if pair else 'text'}"
        )
    return longest


def _accepts(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters
