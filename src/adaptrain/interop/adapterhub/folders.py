"""Reading one of the library's folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from adaptrain.errors import AdaptrainError, CheckpointError
from adaptrain.files import read_json
from adaptrain.heads import Head
from adaptrain.interop.adapterhub.configs import Origin, convert_config
from adaptrain.interop.adapterhub.families import family_of
from adaptrain.interop.adapterhub.heads import read_head
from adaptrain.interop.adapterhub.keys import convert_tensors, sort_tensors
from adaptrain.interop.adapterhub.weights import read_weights
from adaptrain.methods import MethodConfig

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Foreign:
    """An AdapterHub folder in our terms."""

    name: str
    config: MethodConfig
    tensors: dict[str, Tensor]
    head: Head | None


def recognises(folder: Path) -> bool:
    """Whether the folder is AdapterHub's, not our own."""
    values = read_json(folder / CONFIG)
    return "format" not in values and "config" in values and ("model_type" in values or "version" in values)


def read(folder: Path, model: PreTrainedModel, with_head: bool = True) -> Foreign:
    """Read a folder for a model.

    Raises:
        CheckpointError: unreadable, made for another model, or something in it that cannot be computed as the library
            did.
    """
    try:
        return _read(folder, model, with_head)
    except AdaptrainError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a folder as AdapterHub writes it: {error!r}") from None


def _read(folder: Path, model: PreTrainedModel, with_head: bool) -> Foreign:
    values = read_json(folder / CONFIG)
    check_model(folder, values, model)
    family = family_of(model)
    name = str(values.get("name") or folder.name)
    groups, strange = sort_tensors(
        folder, read_weights(folder, ("adapter.safetensors", "pytorch_adapter.bin")), name, family
    )
    origin = Origin(
        family=family,
        version=None if values.get("version") is None else str(values["version"]),
        model_class=str(values.get("model_class", "")),
        is_task=values.get("type") == "text_task",
        inverts=any(group.kind == "invertible_adapters" for group in groups),
        matrices=_matrices(values["config"]),
    )
    try:
        config = convert_config(values["config"], origin)
    except AdaptrainError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    tensors = convert_tensors(folder, groups, strange, name, config, origin)
    return Foreign(name, config, tensors, read_head(folder, model) if with_head else None)


def check_model(folder: Path, values: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse a folder of another model type.

    Raises:
        CheckpointError: names both types.
    """
    model_type = str(model.config.model_type)
    if values.get("model_type", model_type) != model_type:
        raise CheckpointError(f"{folder} was made for a {values['model_type']}, and this model is a {model_type}")


def _matrices(config: Any) -> tuple[str, ...]:
    """Which of q, k, v the config's LoRA adapts; q and v where it does not say."""
    members = config.get("configs", [config]) if isinstance(config, dict) else []
    chosen = {matrix for member in members for matrix in member.get("attn_matrices", "qv")}
    return tuple(matrix for matrix in "qkv" if matrix in chosen)
