"""Which vector of a sequence a head reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from adaptrain.errors import UnsupportedError, unknown
from adaptrain.upstream import attribute

if TYPE_CHECKING:
    from adaptrain.sites import Sites

Pooling = Literal["first", "last", "eos", "mean", "pooler"]
"""`first`: the first token that is not padding. `last`: the last one. `eos`: the last `<eos>` of the text that the
model is given; the last token where a row has none. `mean`: over all frames of sound that are not padding. `pooler`:
what the base model's own pooler makes of them."""


def unknown_pooling(name: str) -> str | None:
    """A sentence that refuses an unknown name, None for a known one."""
    return None if name in get_args(Pooling) else unknown("pooling", name, get_args(Pooling), "Known are")


def pooled(kind: Pooling, outputs: Any, inputs: Mapping[str, Any], model: Any, eos: int | None) -> Tensor:
    """One vector a row, (rows, hidden).

    Args:
        outputs: of the base model.
        inputs: what it was given.
        model: the base model; `mean` asks it which frames a mask of samples stands for.
        eos: the id of `<eos>`, for that pooling.

    Raises:
        UnsupportedError: `pooler`, and the base model has none.
    """
    if kind == "pooler":
        found = getattr(outputs, "pooler_output", None)
        if found is None:
            raise UnsupportedError("The head reads the base model's pooler, and this model has none (use_pooler)")
        return found
    hidden: Tensor = outputs.last_hidden_state  # (rows, positions, hidden)
    if kind == "mean":
        seen = _frames(hidden, inputs.get("attention_mask"), model)[..., None]
        return (hidden * seen).sum(1) / seen.sum(1).clamp(min=1)
    if kind == "first":
        return first_token(hidden, inputs)
    marked = mask = visible(inputs, hidden)
    ids = inputs.get("input_ids")
    if kind == "eos" and ids is not None and eos is not None:
        written = inputs.get("decoder_input_ids")
        if written is None or ids.shape == written.shape:  # the decoder reads the text, one position later
            marked = mask = visible({**inputs, "decoder_input_ids": None}, hidden)
        else:
            ids = written
        ends = ids.eq(eos) & mask
        marked = torch.where(ends.any(-1, keepdim=True), ends, mask)
    positions = torch.arange(mask.shape[1], device=mask.device)
    return _at(hidden, (marked * positions).argmax(-1))


def first_token(hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The vector of the first token that is not padding, (rows, hidden)."""
    mask = visible(inputs, hidden)
    # a mask of something else (a prompt that stays in the output) cannot say where the text begins
    return hidden[:, 0] if mask.shape != hidden.shape[:2] else _at(hidden, mask.long().argmax(-1))


def end_of_text(sites: Sites) -> int | None:
    """The id of `<eos>` among the words in force."""
    config: Any = sites.model.config
    own = config.eos_token_id if isinstance(config.eos_token_id, int) else None
    return own if sites.words is None else sites.words.generation().get("eos_token_id", own)


def visible(inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
    """Which positions of `hidden` are not padding, (rows, positions) of booleans; by an encoder-decoder's own decoder
    mask where it has one."""
    key = "decoder_attention_mask" if inputs.get("decoder_input_ids") is not None else "attention_mask"
    mask = inputs.get(key)
    return hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.ne(0)


def _frames(hidden: Tensor, mask: Tensor | None, model: Any) -> Tensor:
    """Which frames are sound, (rows, frames); the mask counts samples."""
    if mask is None:
        return hidden.new_ones(hidden.shape[:2])
    return attribute(model, "_get_feature_vector_attention_mask")(hidden.shape[1], mask).to(hidden.dtype)


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), positions]
