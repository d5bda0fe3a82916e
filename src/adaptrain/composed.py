"""Fusions, and whole compositions, as folders.

A fusion:

    fusion_config.json     format, name, config, base model, versions
    fusion.safetensors     canonical site name → tensor (`encoder.3.mlp.fusion.query.weight`)

A composition:

    composition.json       format, expression, active heads, which folder holds what, base model, versions
    adapters/<name>/       an adapter folder each (`adaptrain.checkpoint`)
    fusions/<name>/        a fusion folder each
    heads/<name>/          head_config.json and head.safetensors each; the base model's own head is `heads/own`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor
from transformers import PreTrainedModel

from adaptrain import checkpoint
from adaptrain.adapter import Adapter, check_name
from adaptrain.checkpoint import (
    Loaded,
    check_base,
    load_head,
    make,
    origin,
    own_head,
    read_head_config,
    refuse_named_head,
    save_head,
)
from adaptrain.composition import Composition, Fuse, blocks, check_adapters, check_fusions, names, parse
from adaptrain.errors import AdaptrainError, CheckpointError, listed
from adaptrain.files import read_json, read_tensors, write_json, write_tensors
from adaptrain.heads import Head
from adaptrain.interop import adapterhub
from adaptrain.methods import AdapterFusionConfig, MethodConfig
from adaptrain.sites import Sites

FORMAT = "adaptrain-composition/1"
CONFIG = "composition.json"
FUSION_FORMAT = "adaptrain-fusion/1"
FUSION_CONFIG, FUSION_TENSORS = "fusion_config.json", "fusion.safetensors"
OWN_HEAD = "own"


@dataclass(frozen=True)
class Composed:
    """A composition made from a folder, not yet part of a model.

    Attributes:
        tree: the composition.
        adapters: with the base model's tensors, where a method trains them.
        fusions: of its Fuse blocks.
        heads: name → head.
        own: tensors of the base model's own head.
        active: the heads that were active.
    """

    tree: Composition
    adapters: tuple[Loaded, ...]
    fusions: tuple[Adapter, ...]
    heads: Mapping[str, Head]
    own: Mapping[str, Tensor]
    active: str | tuple[str, ...] | None


def save_fusion(folder: Path, fusion: Adapter, model: PreTrainedModel, identity: Mapping[str, Any]) -> None:
    """Write a fusion folder; the config, which makes it readable, comes last.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_tensors(folder / FUSION_TENSORS, fusion.tensors())
    config = {"format": FUSION_FORMAT, "name": fusion.name, "config": fusion.config.to_dict()}
    write_json(folder / FUSION_CONFIG, config | origin(model, identity))


def load_fusion(folder: Path, model: PreTrainedModel, sites: Sites, load_as: str | None = None) -> Adapter:
    """Make a fusion from a folder, without changing the model.

    Raises:
        CheckpointError: missing, unreadable, or not made for this model.
    """
    if not (folder / FUSION_CONFIG).exists():
        raise CheckpointError(f"{folder} has no {FUSION_CONFIG}, so it is not a fusion folder")
    values = _read(folder / FUSION_CONFIG, FUSION_FORMAT)
    try:
        name, config = values["name"], AdapterFusionConfig.from_dict(values["config"])
        check_name(name)
        check_base(folder, values["base_model"], model)
    except KeyError as error:
        raise CheckpointError(f"{folder / FUSION_CONFIG} has no key {error}") from None
    except CheckpointError:
        raise
    except (AdaptrainError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / FUSION_CONFIG} cannot be read: {error}") from None
    return make(folder, load_as or name, config, read_tensors(folder / FUSION_TENSORS), sites)


def load_foreign_fusion(
    folder: Path,
    model: PreTrainedModel,
    sites: Sites,
    configs: Mapping[str, MethodConfig],
    load_as: str | None = None,
) -> tuple[Adapter, Fuse]:
    """Make a fusion from a folder of AdapterHub's, and the block that it stands in, without changing the model.

    Args:
        configs: of the adapters that the model has.

    Raises:
        CheckpointError: missing, unreadable, not made for this model; its adapters are not there, or are such that
            the library computes another formula.
    """
    found = adapterhub.read_fusion_folder(folder, model)
    name = load_as or found.name
    if missing := [member for member in found.members if member not in configs]:
        raise CheckpointError(
            f"{folder} is a fusion of {listed(map(repr, found.members))}, and the model has no adapter '{missing[0]}'; "
            "load the adapters first, under these names"
        )
    block = Fuse(*found.members, name=name)
    adapterhub.check_setup(folder, block, configs, model)
    return make(folder, name, found.config, found.tensors, sites), block


def _load_foreign(folder: Path, model: PreTrainedModel, sites: Sites, with_head: bool) -> Composed:
    found = adapterhub.read_setup(folder)
    loaded = [checkpoint.load(model, sites, place, name, with_head=False) for name, place in found.adapters.items()]
    configs = {each.adapter.name: each.adapter.config for each in loaded}
    adapterhub.check_setup(folder / adapterhub.SETUP_CONFIG, found.tree, configs, model)
    fusions = []
    for name, place in found.fusions.items():
        foreign = adapterhub.read_fusion_folder(place, model)
        fusions.append(make(place, name, foreign.config, foreign.tensors, sites))
    heads = {}
    for name, place in found.heads.items() if with_head else ():
        heads[name] = adapterhub.read_head(place, model)
        if heads[name] is None:
            raise CheckpointError(f"{folder}: the head '{name}' has no config; load with with_head=False")
        refuse_named_head(place, model)
    active = found.active if with_head else None
    return Composed(parse(found.tree) or found.tree, tuple(loaded), tuple(fusions), heads, {}, active)


def save(
    folder: Path,
    tree: Composition,
    adapters: Iterable[Adapter],
    fusions: Iterable[Adapter],
    heads: Iterable[Head],
    active: str | tuple[str, ...] | None,
    model: PreTrainedModel,
    identity: Mapping[str, Any],
) -> None:
    """Write a composition's folder; `composition.json`, which makes it readable, comes last.

    Raises:
        OutputError: the folder cannot be written.
    """
    places: dict[str, dict[str, str]] = {"adapters": {}, "fusions": {}, "heads": {}}
    for adapter in adapters:
        places["adapters"][adapter.name] = place = f"adapters/{_folder(adapter.name)}"
        checkpoint.save(folder / place, adapter, None, model, identity, with_head=False)
    for fusion in fusions:
        places["fusions"][fusion.name] = place = f"fusions/{_folder(fusion.name)}"
        save_fusion(folder / place, fusion, model, identity)
    for head in heads:
        places["heads"][head.name] = place = f"heads/{_folder(head.name)}"
        save_head(folder / place, head.name, head, model)
    if own_head(model):
        save_head(folder / "heads" / OWN_HEAD, OWN_HEAD, None, model)
        places["heads"] = {OWN_HEAD: f"heads/{OWN_HEAD}"}
    values = {"format": FORMAT, "composition": str(tree), "active_heads": active, **places}
    write_json(folder / CONFIG, values | origin(model, identity))


def load(folder: Path, model: PreTrainedModel, sites: Sites, with_head: bool = True) -> Composed:
    """Make all parts of a composition from a folder, without changing the model.

    Raises:
        CheckpointError: missing, unreadable, or not made for this model.
    """
    if adapterhub.recognises_setup(folder):
        return _load_foreign(folder, model, sites, with_head)
    values = read(folder)
    check_base(folder, values["base_model"], model)
    file = folder / CONFIG
    loaded = [
        checkpoint.load(model, sites, _inside(folder, place), name, with_head=False)
        for name, place in _places(values, "adapters", file).items()
    ]
    fusions = [
        load_fusion(_inside(folder, place), model, sites, name)
        for name, place in _places(values, "fusions", file).items()
    ]
    tree = composition_of(values, file)
    heads: dict[str, Head] = {}
    own: dict[str, Tensor] = {}
    for name, place in _places(values, "heads", file).items() if with_head else ():
        where = _inside(folder, place)
        head, tensors = load_head(where, read_head_config(where), model)
        own |= tensors
        if head is not None:
            heads[name] = head
    active = values.get("active_heads") if with_head else None
    wanted = [active] if isinstance(active, str) else active or []
    if not isinstance(wanted, list) or not set(wanted) <= heads.keys():
        raise CheckpointError(f"{file}: active_heads is {active!r}, and the folder has {listed(heads) or 'no heads'}")
    return Composed(
        tree, tuple(loaded), tuple(fusions), heads, own, tuple(active) if isinstance(active, list) else active
    )


def read(folder: Path) -> dict[str, Any]:
    """What `composition.json` says.

    Raises:
        CheckpointError: it is not there, or of a format that this version does not know.
    """
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder} has no {CONFIG}, so it holds no composition")
    values = _read(folder / CONFIG, FORMAT)
    if not isinstance(values.get("base_model"), dict):
        raise CheckpointError(f"{folder / CONFIG} does not say which base model it was made for")
    return values


def composition_of(values: Mapping[str, Any], file: Path) -> Composition:
    """The composition that a file names.

    Raises:
        CheckpointError: it cannot be read, or names what the file does not hold.
    """
    try:
        tree = parse(values["composition"])
        if tree is None:
            raise CheckpointError(f"{file} holds no composition")
        check_adapters(tree, list(values["adapters"]))
        check_fusions(tree, list(values["fusions"]))
    except KeyError as error:
        raise CheckpointError(f"{file} has no key {error}") from None
    except (AdaptrainError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    return tree


def members(tree: Composition) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adapters and the fusions of a composition."""
    fusions = [block.fusion for block in blocks(tree) if isinstance(block, Fuse)]
    return names(tree), tuple(dict.fromkeys(fusions))


def _read(file: Path, form: str) -> dict[str, Any]:
    values = read_json(file)
    if values.get("format") != form:
        raise CheckpointError(f"{file} has the format {values.get('format')!r}, this version reads {form}")
    return values


def _places(values: Mapping[str, Any], key: str, file: Path) -> dict[str, str]:
    places = values.get(key)
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{file}: '{key}' is not a mapping from names to folders")
    return places


def _inside(folder: Path, place: str) -> Path:
    """A folder below another, whatever a file says."""
    found = folder / place
    if not found.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder / CONFIG}: {place} is not inside the folder")
    return found


def _folder(name: str) -> str:
    """A name as one folder's name."""
    return quote(name, safe=" ,+=@").replace(".", "%2E")
