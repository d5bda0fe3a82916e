"""The rows of what a model is given and returns: how many there are, all of them several times, and some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from adaptrain.errors import CompositionError, listed

_COUNTED = (
    "input_ids",
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    "decoder_input_ids",
    "inputs",
    "decoder_inputs_embeds",
    "hidden_states",
    "attention_mask",
    "labels",
)


_SHARED = ("logits_to_keep", "cache_position")
"""Tensors over positions, which may happen to have as many of them as the batch has rows."""


def rows_of(named: Mapping[str, Any]) -> int:
    """The number of rows of a batch, 0 where nothing says so."""
    found = _counted(named)
    if found is None and (encoded := named.get("encoder_outputs")) is not None:
        found = encoded[0]
    return 0 if found is None else found.shape[0]  # not len(), which a compiled graph would take for a constant


def _counted(named: Mapping[str, Any]) -> Tensor | None:
    """What says how many rows there are; what an encoder has said may be repeated for Parallel already."""
    return next((value for key in _COUNTED if isinstance(value := named.get(key), Tensor)), None)


def repeated(named: dict[str, Any], times: int) -> dict[str, Any]:
    """Every argument that has the batch's rows, `times` times one after the other; the same object for once.

    A cache stays: it is that of the repeated rows. So does what an encoder has said of them.

    Raises:
        CompositionError: nothing says how many rows there are.
    """
    if times == 1:
        return named
    rows = rows_of(named)
    if _counted(named) is None:
        raise CompositionError(
            f"The active composition repeats the rows of its inputs {times} times, and nothing among "
            f"{listed(key for key, value in named.items() if value is not None)} says how many there "
            "are; give the text, or its attention_mask"
        )

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat(times, *[1] * (tensor.dim() - 1))

    return {key: value if key in _SHARED else _each(value, rows, repeat) for key, value in named.items()}


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
        return {key: value if key in _SHARED else _each(value, rows, take) for key, value in whole.items()}
    return _each(whole, rows, take)


def _each(value: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.dim() and value.shape[0] == rows else value
    if isinstance(value, ModelOutput):
        changed = {key: _each(each, rows, change) for key, each in value.items()}
        return dataclasses.replace(value, **changed) if dataclasses.is_dataclass(value) else type(value)(**changed)
    if isinstance(value, dict):  # a mask a kind of layer
        return {key: _each(each, rows, change) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(each, rows, change) for each in value)
    return value
