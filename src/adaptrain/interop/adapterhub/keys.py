"""The library's tensors under canonical names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from adaptrain.errors import CheckpointError
from adaptrain.interop.adapterhub.configs import Origin
from adaptrain.interop.adapterhub.family import Family
from adaptrain.methods import BnConfig, LoRAConfig, MethodConfig, PrefixTuningConfig

_OLD_NAMES = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}
"""Of adapter-transformers 1."""


@dataclass(frozen=True)
class Group:
    """One of the library's modules of an adapter.

    Attributes:
        kind: name of the library's container that it lies in.
        layer: canonical name of its layer, `encoder.3`; empty for what belongs to no layer.
        path: of the container below the layer; for a prefix its location.
    """

    kind: str
    layer: str = ""
    path: str = ""


@dataclass
class Parts:
    """The tensors of a group by their names in it, and the keys that they have in the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def take(self, names: dict[str, str]) -> dict[str, Tensor]:
        """Those whose names are known, under the other names; they are no longer here."""
        return {ours: self.tensors.pop(theirs) for theirs, ours in names.items() if theirs in self.tensors}


@dataclass(frozen=True)
class Reading:
    """What the readers of groups look up.

    Attributes:
        folder: for messages.
        shared: the tensors that all layers use.
        vera: whether those are the two factors of a VeRA.
        matrices: which of q, k, v the library adapted.
    """

    folder: Path
    config: MethodConfig
    family: Family
    shared: dict[str, Tensor]
    vera: bool
    matrices: tuple[str, ...]


def sort_tensors(
    folder: Path, tensors: dict[str, Tensor], name: str, family: Family
) -> tuple[dict[Group, Parts], list[str]]:
    """The tensors of an adapter by group, and the keys that belong to none.

    Raises:
        CheckpointError: a prefix lies under every layer with different values.
    """
    patterns = _patterns(name, family)
    groups: dict[Group, Parts] = {}
    strange = []
    for key, tensor in tensors.items():
        found = _place(key, patterns, name, family)
        if found is None:
            strange.append(key)
            continue
        group, leaf = found
        parts = groups.setdefault(group, Parts())
        if leaf in parts.tensors and not torch.equal(parts.tensors[leaf], tensor):
            raise _doubled(folder, key)
        parts.tensors[leaf], parts.keys[leaf] = tensor, key
    return groups, strange


def convert_tensors(
    folder: Path, groups: dict[Group, Parts], strange: list[str], name: str, config: MethodConfig, origin: Origin
) -> dict[str, Tensor]:
    """Canonical name → tensor.

    Raises:
        CheckpointError: a tensor has no place, is there twice with different values, or is not there although other
            tensors mean nothing without it.
    """
    shared = dict(groups.get(Group("shared_parameters"), Parts()).tensors)
    vera = any(group.kind == "loras" and "vera_D" in parts.tensors for group, parts in groups.items())
    if not shared and (vera or _shares(config)):
        raise CheckpointError(
            f"{folder} lacks 'shared_parameters.{name}', which all its layers use: the library leaves it out where it "
            f"saves from a model class without a head ({origin.model_class}), so that the adapter is not whole; save "
            "it again from a class with a head"
        )
    reading = Reading(folder, config, origin.family, shared, vera, origin.matrices)
    strange = list(strange)
    converted: dict[str, Tensor] = {}
    for group, parts in groups.items():
        for ours, tensor in _READERS[group.kind](group, parts, reading).items():
            if ours in converted and not torch.equal(converted[ours], tensor):
                raise _doubled(folder, ours)
            converted[ours] = tensor
        strange += [parts.keys[leaf] for leaf in parts.tensors]
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise CheckpointError(f"{folder} holds tensors that have no place here: {', '.join(strange[:5])}{more}")
    return converted


def _patterns(name: str, family: Family) -> list[re.Pattern[str]]:
    name, layers = re.escape(name), "|".join(re.escape(path) for path in family.layers)
    index = r"(?P<index>\d+)" + (rf"\.{re.escape(family.inner)}\.(?P<member>\d+)" if family.inner else "")
    embeddings = "|".join(re.escape(path) for path in family.embeddings)
    part = r"(?P<part>encoder|decoder)\.(?:.+\.)?" if family.depths else r"(?:.+\.)?"
    in_layers = "adapters|loras|prefix_gates|refts"
    return [
        re.compile(pattern + rf"\.{name}\." + leaf)
        for pattern, leaf in (
            # a prefix lies at the model and again under each layer
            (rf"{part}(?P<kind>prefix_tunings)", r"(?P<path>\w+)\.(?P<leaf>.+)"),
            (rf"(?:\w+\.)?(?P<layers>{layers})\.{index}\.(?P<path>.+?)\.(?P<kind>{in_layers})", r"(?P<leaf>.+)"),
            (rf"(?:\w+\.)?(?:{embeddings})(?P<kind>invertible_adapters)", r"(?P<leaf>.+)"),
            (r"(?:\w+\.)*(?P<kind>shared_parameters)", r"(?P<leaf>.+)"),
            (r"(?:\w+\.)?prompt_tuning\.(?P<kind>prompt_tunings)", r"(?P<leaf>.+)"),
        )
    ]


def _place(key: str, patterns: Iterable[re.Pattern[str]], name: str, family: Family) -> tuple[Group, str] | None:
    """The group of a key, and its name there; None where it has none."""
    for old, new in _OLD_NAMES.items():
        key = re.sub(rf"(^|\.){old}\.(?={re.escape(name)}\.)", rf"\g<1>{new}.", key)
    for pattern in patterns:
        match = pattern.fullmatch(key)
        if match is not None:
            found = match.groupdict()
            layer = ""
            if "layers" in found:
                index = int(found["index"]) * family.width + int(found.get("member", 0))
                layer = f"{family.layers[found['layers']]}.{index}"
            path = f"{found['part']}:{found['path']}" if "part" in found else found.get("path", "")
            return Group(found["kind"], layer, path), found["leaf"]
    return None


def _shares(config: MethodConfig) -> bool:
    """Whether a Compacter's layers share numbers."""
    compacters = (member for member in config.members() if isinstance(member, BnConfig) and member.phm_layer)
    return any(member.shared_phm_rule or member.shared_W_phm for member in compacters)


def _doubled(folder: Path, key: str) -> CheckpointError:
    return CheckpointError(f"{folder} holds '{key}' twice with different values")


def _bottleneck(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    sublayer = reading.family.sublayer(group.layer, group.path)
    if sublayer is None:
        return {}
    # with ln_before the norm is stored twice, and the down-projection moves to index 1
    normed = any(leaf.startswith(("adapter_down.1.", "adapter_norm_before.")) for leaf in parts.tensors)
    modules = {"adapter_down.1": "down", "adapter_down.0": "norm_before"} if normed else {"adapter_down.0": "down"}
    modules |= {"adapter_up": "up", "adapter_norm_before": "norm_before", "adapter_norm_after": "norm_after"}
    parameters = {
        "weight": "weight",
        "bias": "bias",
        "W": "weight",
        "W_left": "left",
        "W_right": "right",
        "b": "bias",
        "phm_rule": "rule",
        "phm_rule_left": "rule_left",
        "phm_rule_right": "rule_right",
    }
    place = f"{group.layer}.{sublayer}.bottleneck"
    found = parts.take({name: f"{place}.{name}" for name in ("scaling", "gate.weight", "gate.bias")})
    for theirs, ours in modules.items():
        taken = parts.take({f"{theirs}.{name}": f"{place}.{ours}.{other}" for name, other in parameters.items()})
        for key, tensor in taken.items():
            if key in found and not torch.equal(found[key], tensor):
                raise _doubled(reading.folder, key)
        found |= taken
    return found


def _lora(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    config = next((member for member in reading.config.members() if isinstance(member, LoRAConfig)), None)
    places = reading.family.projections.get(group.path, ())
    if config is None:
        return {}
    fused = "attention.query" in places[:-1]
    if fused and not reading.family.heads:  # the parts of the adapted ones lie one after the other
        places = tuple(place for place in places if place.split(".")[1][0] in reading.matrices)
    if not places:
        return {}
    for whole, factor in {"vera_D": "lora_A", "vera_B": "lora_B"}.items():
        if whole in parts.tensors and factor in reading.shared:
            parts.tensors[factor] = parts.tensors.pop(whole).float() @ reading.shared[factor].float()
    taken = parts.take(
        {
            "lora_A": "A",
            "lora_B": "scale" if config.composition_mode == "scale" else "B",
            "m.weight": "m",
            "gate.weight": "gate.weight",
            "gate.bias": "gate.bias",
            "weights": "weights",
            "task_specific.values": "values",
        }
    )
    taken = {name: tensor.flatten() if name in ("scale", "m") else tensor for name, tensor in taken.items()}
    if reading.family.heads:
        taken = _by_head(taken, reading) if fused else _widened(taken, config)
    found = {}
    for name, tensor in taken.items():
        if len(places) == 1 or (not fused and name not in ("B", "scale", "m")):
            pieces = (tensor,) * len(places)  # both halves of a fused MLP read through one A
        elif reading.family.heads and fused and name not in ("B", "scale"):
            pieces = (tensor,) * len(places)
        else:
            pieces = tensor.chunk(len(places))
        if len(pieces) != len(places):
            raise CheckpointError(
                f"{reading.folder}: the {len(tensor)} rows of '{group.path}' in {group.layer} cannot be those of "
                f"{len(places)} projections"
            )
        found |= {
            f"{group.layer}.{place}.{config.method}.{name}": piece for place, piece in zip(places, pieces, strict=True)
        }
    return found


def _by_head(taken: dict[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """What the library lays on a map whose rows are q, k, v of head 0, then of head 1, …, as q, then k, then v.

    Its own order of rows is all of q, then all of k, then all of v, so that what it calls q changes queries, keys and
    values of the first third of the heads. Each of ours therefore reads through the A of all m adapted ones: A (m r, d)
    as it lies in the file, and B (3 d, m r) with zeros where a row reads through another A.
    """
    thirds = [index for index, matrix in enumerate("qkv") if matrix in reading.matrices]
    m, found = len(thirds), dict(taken)
    for name in ("B", "scale"):
        if name not in taken:
            continue
        blocks = taken[name].unflatten(0, (m, -1))  # (m, d, r), or (m, d)
        if name == "B":
            rows = blocks.new_zeros(3, blocks.shape[1], m, blocks.shape[2])
            for block, third in enumerate(thirds):
                rows[third, :, block] = blocks[block]
            rows = rows.flatten(2)  # (3, d, m r)
        else:
            rows = blocks.new_ones(3, blocks.shape[1])
            rows[thirds] = blocks
        by_head = rows.flatten(0, 1).unflatten(0, (reading.family.heads, 3, -1))  # (heads, 3, head_dim, …)
        found[name] = by_head.transpose(0, 1).flatten(0, 2)  # (3 d, …)
    return found


def _widened(taken: dict[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """A and B with zeros up to the config's rank, which `_by_head` needs at queries, keys and values."""
    found = dict(taken)
    for name, dim in {"A": 0, "B": 1}.items():
        if name in taken and isinstance(config.r, int):
            shape = list(taken[name].shape)
            shape[dim] = config.r - shape[dim]
            found[name] = torch.cat([taken[name], taken[name].new_zeros(shape)], dim)
    return found


def _prefix(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    config = next((member for member in reading.config.members() if isinstance(member, PrefixTuningConfig)), None)
    if config is None or group.path not in reading.family.prefixes:
        return {}
    names = {
        "control_trans": "prefix",
        "wte.weight": "embedding",
        "control_trans.0.weight": "down.weight",
        "control_trans.0.bias": "down.bias",
        "control_trans.2.weight": "up.weight",
        "control_trans.2.bias": "up.bias",
    }
    place = f"{reading.family.prefixes[group.path]}.prefix_tuning"
    found = parts.take({theirs: f"{place}.{ours}" for theirs, ours in names.items()})
    flat = f"{place}.prefix"
    return found | ({flat: found[flat].view(config.prefix_length, -1)} if flat in found else {})


def _prefix_gate(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    attention = reading.family.attentions.get(group.path.removesuffix(".prefix_tuning"))
    if attention is None:
        return {}
    place = f"{group.layer}.{attention}.key_value.prefix_tuning.gate"
    return parts.take({name: f"{place}.{name}" for name in ("weight", "bias")})


def _reft(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    if group.path != "reft_layer":
        return {}
    found = {}
    for unit, positions in {"units.0": "prefix", "units.1": "suffix"}.items():
        place = f"{group.layer}.hidden.reft.{positions}"
        original, base = (f"{unit}.projection.parametrizations.weight.{name}" for name in ("original", "0.base"))
        if original in parts.tensors and base in parts.tensors:
            rows = _orthogonal(parts.tensors.pop(original), parts.tensors.pop(base))
            found[f"{place}.projection"] = rows
        names = {"learned_source.weight": "source.weight", "learned_source.bias": "source.bias"}
        names["projection.weight"] = "projection"
        found |= parts.take({f"{unit}.{theirs}": f"{place}.{ours}" for theirs, ours in names.items()})
    return found


def _orthogonal(original: Tensor, base: Tensor) -> Tensor:
    """The orthonormal rows R (r, d) that torch's parametrisation makes of its two tensors."""
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.eye(*original.shape))
    with torch.random.fork_rng(devices=[]):  # it draws a base of its own first
        parametrizations.orthogonal(layer)
    names = {"parametrizations.weight.original": original, "parametrizations.weight.0.base": base}
    layer.load_state_dict({name: tensor.float() for name, tensor in names.items()})
    return layer.weight.detach().clone()


def _prompt(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    place = f"{reading.family.first}.embeddings.prompt.prompt_tuning.prompt"
    return parts.take({"prompt_embedding.weight": place})


def _invertible(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    place = f"{reading.family.first}.embeddings.output.bottleneck"
    return parts.take(
        {
            f"{half}.{index}.{parameter}": f"{place}.{half}.{module}.{parameter}"
            for half in "FG"
            for index, module in {0: "down", 2: "up"}.items()
            for parameter in ("weight", "bias")
        }
    )


def _shared(group: Group, parts: Parts, reading: Reading) -> dict[str, Tensor]:
    """What Compacter's layers share; the factors of a VeRA have gone into its layers."""
    if reading.vera:
        parts.take({"lora_A": "", "lora_B": ""})
    rules = {"phm_rule": "rule", "phm_rule_left": "rule_left", "phm_rule_right": "rule_right"}
    factors = {
        f"W_{module}{theirs}": f"{module}_{ours}"
        for module in ("down", "up")
        for theirs, ours in {"_left": "left", "_right": "right", "": "weight"}.items()
    }
    return parts.take({theirs: f"phm.bottleneck.{ours}" for theirs, ours in (rules | factors).items()})


_READERS: dict[str, Callable[[Group, Parts, Reading], dict[str, Tensor]]] = {
    "adapters": _bottleneck,
    "loras": _lora,
    "prefix_tunings": _prefix,
    "prefix_gates": _prefix_gate,
    "refts": _reft,
    "prompt_tunings": _prompt,
    "invertible_adapters": _invertible,
    "shared_parameters": _shared,
}
