"""The rows of what a model is given: how many there are, and all of them several times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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
    return {key: _repeat(value, rows, times) for key, value in named.items()}


def _repeat(value: Any, rows: int, times: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat(times, *[1] * (value.dim() - 1)) if value.dim() and len(value) == rows else value
    if isinstance(value, ModelOutput):
        changed = {key: _repeat(each, rows, times) for key, each in value.items()}
        return dataclasses.replace(value, **changed) if dataclasses.is_dataclass(value) else type(value)(**changed)
    if isinstance(value, tuple):
        return tuple(_repeat(each, rows, times) for each in value)
    return value
