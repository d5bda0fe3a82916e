"""Adapter folders of AdapterHub's library (`adapters` 0.x and 1.x, adapter-transformers).

    adapter_config.json            {"config": …, "model_type", "model_class", "hidden_size", "name", "version"}
    pytorch_adapter.bin            or adapter.safetensors
    head_config.json, pytorch_model_head.bin | model_head.safetensors

Their keys are paths inside the library's own copy of each model; the tables below turn them into canonical names.
Weights are read by torch's weights-only loader.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptrain.errors import AdaptrainError, CheckpointError, listed
from adaptrain.files import read_json, read_tensors
from adaptrain.heads import ClassificationHead, Head
from adaptrain.methods import BnConfig, LoRAConfig, MethodConfig, PrefixTuningConfig


@dataclass(frozen=True)
class Family:
    """How the library names the places of one model family.

    Attributes:
        layers: path of a layer list → stack.
        sublayers: path below the layer → sublayer, for bottlenecks.
        projections: path below the layer → projections, several where it is fused.
        prefixes: location key → canonical location.
        swapped_mlp: `intermediate` means the down- and `output` the up-projection (LLaMA).
    """

    layers: Mapping[str, str]
    sublayers: Mapping[str, str]
    projections: Mapping[str, tuple[str, ...]]
    prefixes: Mapping[str, str]
    swapped_mlp: bool = False


_QKV = ("query", "key", "value")
_PLUGGED = {"attention_adapters": "attention", "output_adapters": "mlp", "cross_attention_adapters": "cross_attention"}

_BERT = Family(
    layers={"encoder.layer": "encoder"},
    sublayers={"attention.output": "attention", "output": "mlp"},
    projections={
        **{f"attention.self.{role}": (f"attention.{role}",) for role in _QKV},
        "intermediate.dense": ("mlp.up",),
        "output.dense": ("mlp.down",),
    },
    prefixes={"self_prefix": "encoder.attention"},
)

_BART = Family(
    layers={"encoder.layers": "encoder", "decoder.layers": "decoder"},
    sublayers=_PLUGGED,
    projections={
        **{f"self_attn.{role[0]}_proj": (f"attention.{role}",) for role in _QKV},
        **{f"encoder_attn.{role[0]}_proj": (f"cross_attention.{role}",) for role in _QKV},
        "fc1": ("mlp.up",),
        "fc2": ("mlp.down",),
    },
    prefixes={
        "encoder_prefix": "encoder.attention",
        "self_prefix": "decoder.attention",
        "cross_prefix": "decoder.cross_attention",
    },
)

_GPT2 = Family(
    layers={"h": "decoder"},
    sublayers=_PLUGGED,
    projections={
        "attn.c_attn": tuple(f"attention.{role}" for role in _QKV),
        "mlp.c_fc": ("mlp.up",),
        "mlp.c_proj": ("mlp.down",),
    },
    prefixes={"self_prefix": "decoder.attention"},
)

_LLAMA = Family(
    layers={"layers": "decoder"},
    sublayers=_PLUGGED,
    projections={
        **{f"self_attn.{role[0]}_proj": (f"attention.{role}",) for role in _QKV},
        "mlp.up_proj": ("mlp.up",),
        "mlp.down_proj": ("mlp.down",),
    },
    prefixes={"self_prefix": "decoder.attention"},
    swapped_mlp=True,
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "bart": _BART,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
}

# What the library calls it → (what we call it, the only value that means the same as leaving it out).
_NEUTRAL_BOTTLENECK = {
    "original_ln_after": True,
    "use_gating": False,
    "phm_layer": False,
    "inv_adapter": None,
}
_NEUTRAL_LORA = {"use_gating": False, "use_dora": False, "composition_mode": "add"}
_NEUTRAL_PREFIX = {"use_gating": False}
_UNUSED = re.compile(
    "architecture|init_weights_seed|inv_adapter_reduction_factor|(shared_|factorized_)?phm_.*|learn_phm|shared_W_phm"
    "|factorized_phm_(W|rule)|hypercomplex_nonlinearity|shared_gating|dtype|vera_[bd]"
)


@dataclass(frozen=True)
class Foreign:
    """An AdapterHub folder in our terms."""

    name: str
    config: MethodConfig
    tensors: dict[str, Tensor]
    head: Head | None


def recognises(folder: Path) -> bool:
    """Whether the folder is AdapterHub's, not our own."""
    values = read_json(folder / "adapter_config.json")
    return "format" not in values and "config" in values and ("model_type" in values or "version" in values)


def read(folder: Path, model: PreTrainedModel, with_head: bool = True) -> Foreign:
    """Read a folder for a model.

    Raises:
        CheckpointError: unreadable, made for another model, or of a method that this version does not have.
    """
    try:
        return _read(folder, model, with_head)
    except AdaptrainError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a folder as AdapterHub writes it: {error!r}") from None


def _read(folder: Path, model: PreTrainedModel, with_head: bool) -> Foreign:
    values = read_json(folder / "adapter_config.json")
    model_type = str(model.config.model_type)
    if values.get("model_type", model_type) != model_type:
        raise CheckpointError(f"{folder} was made for a {values['model_type']}, and this model is a {model_type}")
    if model_type not in FAMILIES:
        raise CheckpointError(f"AdapterHub folders are read for {listed(FAMILIES)}, and this model is a {model_type}")
    family = FAMILIES[model_type]
    name = str(values.get("name") or folder.name)
    try:
        config = _config(dict(values["config"] or {}), family, str(values.get("version", "")))
    except AdaptrainError as error:
        raise CheckpointError(f"{folder / 'adapter_config.json'}: {error}") from None
    tensors = _tensors(folder, ("adapter.safetensors", "pytorch_adapter.bin"))
    head = _head(folder, model) if with_head else None
    return Foreign(name, config, _convert(folder, tensors, name, config, family), head)


def _config(values: dict[str, Any], family: Family, version: str) -> MethodConfig:
    kind = values.get("architecture")
    neutral = {None: _NEUTRAL_BOTTLENECK, "lora": _NEUTRAL_LORA, "prefix_tuning": _NEUTRAL_PREFIX}.get(kind)
    if neutral is None:
        raise CheckpointError(f"the method '{kind}' cannot be read by this version")
    for key, value in neutral.items():
        if values.pop(key, value) != value:
            raise CheckpointError(f"'{key}' other than {value} cannot be read by this version")
    values = {key: value for key, value in values.items() if not _UNUSED.fullmatch(key)}
    if kind == "prefix_tuning":
        return PrefixTuningConfig.from_dict(values)
    if kind is None:
        if isinstance(values.get("scaling"), int):
            values["scaling"] = float(values["scaling"])
        return BnConfig.from_dict(values)
    if re.match(r"adapters\.(0\.|1\.0)", version):
        values["alpha"] = values["r"]  # those versions trained with a scaling of 1, whatever alpha said
    if family.swapped_mlp:
        values["intermediate_lora"], values["output_lora"] = values["output_lora"], values["intermediate_lora"]
    return LoRAConfig.from_dict(values)


def _tensors(folder: Path, names: tuple[str, str]) -> dict[str, Tensor]:
    safe, pickled = (folder / name for name in names)
    if safe.exists():
        return read_tensors(safe)
    if not pickled.exists():
        raise CheckpointError(f"{folder} has neither {safe.name} nor {pickled.name}")
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"Cannot read {pickled} with the weights-only loader: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{pickled} is not a dictionary of tensors")
    return tensors


def _convert(
    folder: Path, tensors: dict[str, Tensor], name: str, config: MethodConfig, family: Family
) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        for ours, part in _places(key, tensor, name, config, family).items():
            if ours in converted and not torch.equal(converted[ours], part):
                raise CheckpointError(f"{folder} holds '{key}' twice with different values")
            converted[ours] = part
    unknown = [key for key, tensor in tensors.items() if not _places(key, tensor, name, config, family)]
    if unknown:
        raise CheckpointError(f"{folder} holds tensors that this version cannot place: {', '.join(unknown[:5])}")
    return converted


def _places(key: str, tensor: Tensor, name: str, config: MethodConfig, family: Family) -> dict[str, Tensor]:
    """Canonical names for one of the library's keys; empty where there is none."""
    if isinstance(config, PrefixTuningConfig):
        match = re.search(rf"prefix_tunings\.{re.escape(name)}\.(\w+?)\.(.+)$", key)
        if match is None or match[1] not in family.prefixes:
            return {}
        return _prefix(f"{family.prefixes[match[1]]}.prefix_tuning", match[2], tensor, config)
    layers = "|".join(re.escape(path) for path in family.layers)
    match = re.match(rf"^(?:\w+\.)?({layers})\.(\d+)\.(.+?)\.(?:adapters|loras)\.{re.escape(name)}\.(.+)$", key)
    if match is None:
        return {}
    layer, path, leaf = f"{family.layers[match[1]]}.{match[2]}", match[3], match[4]
    if isinstance(config, BnConfig):
        return _bottleneck(f"{layer}.{family.sublayers.get(path)}.bottleneck", leaf, tensor, config)
    return _lora(layer, family.projections.get(path, ()), leaf, tensor, config)


def _bottleneck(place: str, leaf: str, tensor: Tensor, config: BnConfig) -> dict[str, Tensor]:
    down = "adapter_down.1" if config.ln_before else "adapter_down.0"
    renames = {
        down: "down",
        "adapter_up": "up",
        "adapter_norm_before": "norm_before",
        "adapter_norm_after": "norm_after",
    } | ({"adapter_down.0": "norm_before"} if config.ln_before else {})
    if leaf == "scaling":
        return {f"{place}.scaling": tensor}
    module, _, parameter = leaf.rpartition(".")
    return {f"{place}.{renames[module]}.{parameter}": tensor} if module in renames else {}


def _lora(
    layer: str, projections: tuple[str, ...], leaf: str, tensor: Tensor, config: MethodConfig
) -> dict[str, Tensor]:
    assert isinstance(config, LoRAConfig)
    letter = {"lora_A": "A", "lora_B": "B"}.get(leaf)
    if letter is None:
        return {}
    if len(projections) > 1:  # fused: the parts of the adapted ones lie one after the other
        wanted = {"q": "query", "k": "key", "v": "value"}
        chosen = {wanted[matrix] for matrix in config.attn_matrices}
        projections = tuple(each for each in projections if each.split(".")[1] in chosen)
    parts = tensor.chunk(len(projections)) if projections else ()
    return {f"{layer}.{each}.lora.{letter}": part for each, part in zip(projections, parts, strict=True)}


def _prefix(place: str, leaf: str, tensor: Tensor, config: PrefixTuningConfig) -> dict[str, Tensor]:
    if config.flat:
        return {f"{place}.prefix": tensor.view(config.prefix_length, -1)} if leaf == "control_trans" else {}
    renames = {
        "wte.weight": "embedding",
        "control_trans.0.weight": "down.weight",
        "control_trans.0.bias": "down.bias",
        "control_trans.2.weight": "up.weight",
        "control_trans.2.bias": "up.bias",
    }
    return {f"{place}.{renames[leaf]}": tensor} if leaf in renames else {}


def _head(folder: Path, model: PreTrainedModel) -> Head | None:
    """The folder's named classification head. A head that is part of the library's model class has no config and is
    not ours to place."""
    path = folder / "head_config.json"
    if not path.exists():
        return None
    values = read_json(path)
    config = values.get("config")
    if not config:
        return None
    if config.get("head_type") != "classification" or config.get("use_pooler"):
        kind = (
            "a head over the pooler (use_pooler)"
            if config.get("use_pooler")
            else f"a head of type '{config.get('head_type')}'"
        )
        raise CheckpointError(f"{folder} has {kind}, which this version cannot read; load with with_head=False")
    labels = config.get("label2id")
    head = ClassificationHead(
        int(model.config.hidden_size),  # type: ignore[attr-defined]
        num_labels=config["num_labels"],
        layers=config["layers"],
        activation=config["activation_function"],
        dropout=config.get("dropout_prob") or 0.0,
        pooling="first" if str(model.config.model_type) in ("bert", "roberta", "xlm-roberta", "electra") else "last",
        id2label=None if not labels else sorted(labels, key=lambda label: labels[label]),
    )
    tensors = _tensors(folder, ("model_head.safetensors", "pytorch_model_head.bin"))
    # nn.Sequential of (dropout, linear, activation) for each hidden layer, then (dropout, linear)
    for index, layer in enumerate((*head.hidden, head.out)):
        for parameter in ("weight", "bias"):
            key = f"heads.{values.get('name')}.{3 * index + 1}.{parameter}"
            if key not in tensors or tensors[key].shape != getattr(layer, parameter).shape:
                raise CheckpointError(f"{folder}: the head's tensor '{key}' is missing or of another shape")
            getattr(layer, parameter).data.copy_(tensors[key])
    return head
