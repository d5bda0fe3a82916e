"""The rows of what a model is given and returns: how many there are, all of them several times, and some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

_COUNTED = (
    "input_ids",
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    "decoder_input_ids",
    "inputs",
)


def rows_of(named: Mapping[str, Any]) -> int:
    """The number of rows of a batch, 0 where nothing says so."""
    for key in (*_COUNTED, "decoder_inputs_embeds", "hidden_states", "attention_mask"):
        value = named.get(key)
        if isinstance(value, Tensor):
            return len(value)
    return 0


def repeated(named: dict[str, Any], times: int) -> dict[str, Any]:
    """Every argument that has the batch's rows, `times` times one after the other; the same object for once.

    A cache stays: it is that of the repeated rows.
    """
    if times == 1:
        return named
    rows = rows_of(named)

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat(times, *[1] * (tensor.dim() - 1))

    return {key: _each(value, rows, repeat) for key, value in named.items()}


def taken(whole: Any, rows: int, chosen: Sequence[int]) -> Any:
    """The chosen rows of every tensor in `whole` that has `rows` of them; the same object for all in their order."""
    if list(chosen) == list(range(rows)):
        return whole
    first, stop = (chosen[0], chosen[-1] + 1) if chosen else (0, 0)
    one_piece = list(chosen) == list(range(first, stop))

    def take(tensor: Tensor) -> Tensor:
        if one_piece:
            return tensor[first:stop]
        return tensor.index_select(0, torch.tensor(chosen, device=tensor.device))

    if isinstance(whole, Mapping) and not isinstance(whole, ModelOutput):
        return {key: _each(value, rows, take) for key, value in whole.items()}
    return _each(whole, rows, take)


def _each(value: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.dim() and len(value) == rows else value
    if isinstance(value, ModelOutput):
        changed = {key: _each(each, rows, change) for key, each in value.items()}
        return dataclasses.replace(value, **changed) if dataclasses.is_dataclass(value) else type(value)(**changed)
    if isinstance(value, tuple):
        return tuple(_each(each, rows, change) for each in value)
    return value
