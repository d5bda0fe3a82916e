"""Points: what a table names, found in a live model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain.errors import UnsupportedError, nearest


@dataclass(frozen=True)
class Point:
    """A site as methods see it; the fields are those of `methods.PointLike`."""

    kind: str
    stack: str
    layer: int
    sublayer: str
    role: str
    name: str
    hidden_size: int
    in_features: int
    out_features: int
    heads: int
    head_dim: int
    encoder_decoder: bool


def entrances(model: PreTrainedModel) -> list[nn.Module]:
    """The modules through which a caller, or `generate`, enters: the model, its base, and an encoder or decoder."""
    base = model.base_model
    candidates = [model, base, getattr(base, "encoder", None), getattr(base, "decoder", None)]
    return list(dict.fromkeys(module for module in candidates if isinstance(module, nn.Module)))


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map; transformers' Conv1D keeps its weight the other way round."""
    if hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    first, second = module.weight.shape  # type: ignore[misc]
    return int(second), int(first)


def module_at(module: nn.Module, path: str, place: str) -> Any:
    """The module at a dotted path below another.

    Raises:
        UnsupportedError: there is none; names path, place and the nearest module.
    """
    for step in path.split(".") if path else []:
        found = getattr(module, step, None)
        if not isinstance(found, nn.Module):
            known = [name for name, _ in module.named_children()]
            raise UnsupportedError(f"There is no module '{path}' in {place}: '{step}' is missing{nearest(step, known)}")
        module = found
    return module
