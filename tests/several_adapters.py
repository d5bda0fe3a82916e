"""Models with several adapters of trained-like weights: what each holds, and what a composition of them says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptrain.methods import MethodConfig
from adaptrain.model import AdaptedModel
from matrix import adapted, add, batch, run


def model_with(arch: str = "bert", **configs: MethodConfig) -> AdaptedModel:
    """A model with an adapter of trained-like weights under each name."""
    model = adapted(arch)
    for seed, (name, config) in enumerate(configs.items(), start=2):
        add(model, name, config, seed=seed)
    return model


def said_with(model: AdaptedModel, composition: Any, arch: str = "bert") -> Tensor:
    model.set_active_adapters(composition)
    return run(model, batch(arch))


def tensors(model: AdaptedModel, name: str) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.get_adapter(name).tensors().items()}
