"""What a model writes after what it has read: how it is asked, and what is kept of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from adaptrain.config.schema import GenerationConfig
from adaptrain.errors import ConfigError
from adaptrain.tasks.reading import Reader

NAMING = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Settings that a checkpoint brings and that are kept: they name tokens. All others are a taste in texts: lengths,
beams, sampling, forced ends."""


@dataclass(frozen=True)
class WritingReader(Reader, ABC):
    """Rows to what a model is asked about, and what it is to write.

    Attributes:
        generation: how it writes.
    """

    generation: GenerationConfig

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Of what is written."""


def write(
    model: Any, inputs: Mapping[str, Tensor], generation: GenerationConfig, tokenizer: Any, **options: Any
) -> list[np.ndarray]:
    """Ask a model to go on, under the active composition, with its cache; the same answer every time.

    Rows of a decoder are moved to the right, so that each goes on where its own text ends.

    Args:
        model: adapted, with an output embedding or a head that writes.
        inputs: of a batch, padded on the right; no labels.
        options: what else the family's `generate` takes.

    Returns:
        Of each row the tokens up to its end, without special ones and without what was read.
    """
    writer = model.writer()
    pair = bool(writer.config.is_encoder_decoder)
    given = dict(inputs) if pair else to_the_right(inputs)
    with _settled(writer, generation, tokenizer) as settings:
        found = model.generate(**given, **options)
        starts, ends = settings.decoder_start_token_id, _ids(settings.eos_token_id)
    first = int(bool((found[:, 0] == starts).all())) if pair else given["input_ids"].shape[1]
    special = np.asarray(tokenizer.all_special_ids)
    return [_until(row, ends, special) for row in found[:, first:].cpu().numpy()]


def texts_of(tokenizer: Any, answers: Sequence[np.ndarray]) -> list[str]:
    """What was written as people read it, without blanks around it."""
    return [tokenizer.decode(ids.astype(np.int64).tolist(), skip_special_tokens=True).strip() for ids in answers]


def to_the_right(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch that is padded on the right, (rows, positions, …) each, padded on the left."""
    mask = inputs["attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device)
    order = (places + mask.sum(1, keepdim=True)) % mask.shape[1]  # the padding comes round to the front
    return {key: value.gather(1, order.to(value.device)) for key, value in inputs.items()}


def check_room(positions: int, read: int, generation: GenerationConfig) -> None:
    """Refuse answers that are longer than a model.

    Args:
        positions: of the model.
        read: of them that are taken already.

    Raises:
        ConfigError: the longest answer does not fit.
    """
    if read + generation.max_new_tokens > positions:
        raise ConfigError(
            f"task.generation.max_new_tokens={generation.max_new_tokens} does not fit behind {read} tokens in a model "
            f"of {positions}; lower it"
        )


def ends_of(tokenizer: Any, model: Any) -> list[int]:
    """The ids with which a text ends, that which the tokenizer writes first."""
    sources = (getattr(model, "generation_config", None), model.config)
    named = [each for source in sources for each in _ids(getattr(source, "eos_token_id", None))]
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    own = own or ([tokenizer.sep_token_id] if tokenizer.sep_token_id is not None else [])  # a BERT that writes
    return list(dict.fromkeys([*own, *named]))


@contextmanager
def _settled(writer: Any, generation: GenerationConfig, tokenizer: Any) -> Iterator[transformers.GenerationConfig]:
    """The writer with our settings in the place of its own: what is not given to `generate` it would take from there,
    so that they cannot be passed beside it."""
    own = writer.generation_config
    made = copy.deepcopy(own)
    for key, value in vars(transformers.GenerationConfig()).items():
        if key not in NAMING:
            setattr(made, key, value)
    made.use_cache, made.do_sample = True, False
    made.max_new_tokens, made.num_beams = generation.max_new_tokens, generation.num_beams
    made.no_repeat_ngram_size = generation.no_repeat_ngram_size
    if generation.num_beams > 1:
        made.length_penalty = generation.length_penalty
    made.eos_token_id = ends_of(tokenizer, writer) or None
    made.pad_token_id = _first(made.pad_token_id, writer.config.pad_token_id, tokenizer.pad_token_id)
    made.decoder_start_token_id = _first(
        made.decoder_start_token_id, getattr(writer.config, "decoder_start_token_id", None)
    )
    writer.generation_config = made
    try:
        yield made
    finally:
        writer.generation_config = own


def _until(row: np.ndarray, ends: Sequence[int], special: np.ndarray) -> np.ndarray:
    found = np.flatnonzero(np.isin(row, ends))
    kept = row[: found[0]] if len(found) else row
    return kept[~np.isin(kept, special)].astype(np.int64)


def _ids(given: int | Sequence[int] | None) -> list[int]:
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def _first(*given: Any) -> Any:
    return next((each for each in given if each is not None), None)
