"""How many numbers each method trains on a model, from the model's config alone: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adaptrain.adapter import Adapter
from adaptrain.auto import AutoAdapterModel
from adaptrain.config.schema import ModelConfig
from adaptrain.errors import AdaptrainError
from adaptrain.methods import config_from_dict
from adaptrain.training.base_model import read_config


def parameter_counts(
    model: ModelConfig, adapters: Mapping[str, Mapping[str, Any]]
) -> tuple[int, dict[str, int | AdaptrainError]]:
    """The base model's parameters, and the trained ones of every adapter config; an error where the two do not go
    together.

    Raises:
        ModelError: the model's config cannot be had.
        UnsupportedError: adaptrain has no table for the model type.
    """
    config = read_config(model)
    with torch.device("meta"):
        base = AutoAdapterModel.from_config(config)
    total = base.base_model.num_parameters()
    counts: dict[str, int | AdaptrainError] = {}
    for name, values in adapters.items():
        try:
            method = config_from_dict(values)
            adapter = Adapter("a", method, base.sites, fresh=False)
            counts[name] = total if method.trains_base else adapter.parameter_count()
        except AdaptrainError as error:
            counts[name] = error
    return total, counts
