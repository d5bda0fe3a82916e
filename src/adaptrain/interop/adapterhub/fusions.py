"""The library's fusion folders.

adapter_fusion_config.json     {"config": …, "adapter_names", "name", "model_type", "version", …}
model_adapter_fusion.safetensors     or pytorch_model_adapter_fusion.bin
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptrain.errors import AdaptrainError, CheckpointError, listed
from adaptrain.files import read_json
from adaptrain.interop.adapterhub.families import family_of
from adaptrain.interop.adapterhub.family import Family
from adaptrain.interop.adapterhub.folders import check_model
from adaptrain.interop.adapterhub.weights import read_weights
from adaptrain.methods import AdapterFusionConfig, read_fusion

FUSION_CONFIG = "adapter_fusion_config.json"
_WEIGHTS = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")


@dataclass(frozen=True)
class ForeignFusion:
    """A fusion folder in our terms.

    Attributes:
        name: of the fusion.
        members: the adapters that it is over.
    """

    name: str
    members: tuple[str, ...]
    config: AdapterFusionConfig
    tensors: dict[str, Tensor]


def recognises_fusion(folder: Path) -> bool:
    """Whether the folder holds one of the library's fusions."""
    return (folder / FUSION_CONFIG).exists()


def read_fusion_folder(folder: Path, model: PreTrainedModel) -> ForeignFusion:
    """Read a fusion for a model.

    The temperature is not in the files: it is 1, where a long training ends.

    Raises:
        CheckpointError: unreadable, made for another model, or something in it that cannot be computed as the library
            did.
    """
    file = folder / FUSION_CONFIG
    values = read_json(file)
    check_model(file, values, model)
    names = values.get("adapter_names")
    name = values.get("name") or (",".join(names) if isinstance(names, list) else names)
    if not isinstance(name, str) or "config" not in values:
        raise CheckpointError(
            f"{file} does not say its name and its config, so it is not a folder as AdapterHub writes it"
        )
    members = tuple(map(str, names)) if isinstance(names, list) else tuple(str(names or name).split(","))
    family = family_of(model)
    tensors, places = _sorted(folder, read_weights(folder, _WEIGHTS), name, family)
    try:
        config = _config(values["config"], model).replace(
            sublayers=tuple(dict.fromkeys(sublayer for _, sublayer in places))
        )
        if config.temperature:
            tensors["temperature.fusion.T"] = torch.tensor(1.0)
    except (AdaptrainError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    return ForeignFusion(name, members, config, tensors)


def _config(values: Any, model: PreTrainedModel) -> AdapterFusionConfig:
    if not isinstance(values, str):
        values = {key: value for key, value in dict(values).items() if key != "value_before_softmax"}  # W_v is linear
        if not values.get("value"):
            values |= {"regularization": False, "value_initialized": False}
        values["value_initialized"] = bool(values.get("value_initialized"))
    config = read_fusion(values)
    own = getattr(model.config, "attention_probs_dropout_prob", None)
    return config.replace(dropout_prob=config.dropout_prob or own or 0.0)


def _sorted(
    folder: Path, tensors: Mapping[str, Tensor], name: str, family: Family
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The fusion's tensors under canonical names, and the layers and sublayers that have one.

    The library also writes the fusions whose names begin with this one's (`a,b,c` beside `a,b`), and a map of nothing
    (`dense`) where there is neither query, key nor value.
    """
    layers = "|".join(re.escape(path) for path in family.layers)
    inner = rf"\.{re.escape(family.inner)}\.(?P<member>\d+)" if family.inner else ""
    place = re.compile(
        rf"(?:\w+\.)?(?P<layers>{layers})\.(?P<index>\d+){inner}\.(?P<path>.+?)\.adapter_fusion_layer\."
        rf"(?P<name>{re.escape(name)}.*)\.(?P<part>query|key|value|dense)\.(?P<leaf>weight|bias)"
    )
    found: dict[str, Tensor] = {}
    places: list[tuple[str, str]] = []
    strange = []
    for key, tensor in tensors.items():
        match = place.fullmatch(key)
        layer = sublayer = None
        if match is not None:
            index = int(match["index"]) * family.width + (int(match["member"]) if family.inner else 0)
            layer = f"{family.layers[match['layers']]}.{index}"
            sublayer = family.sublayer(layer, match["path"])
        if match is None or layer is None or sublayer is None:
            strange.append(key)
        elif match["name"] == name:
            places.append((layer, sublayer))
            if match["part"] != "dense":
                found[f"{layer}.{sublayer}.fusion.{match['part']}.{match['leaf']}"] = tensor
    if strange:
        raise CheckpointError(f"{folder} holds tensors that have no place here: {listed(strange[:5])}")
    if not places:
        raise CheckpointError(f"{folder} holds no tensor of the fusion '{name}'")
    return found, places
