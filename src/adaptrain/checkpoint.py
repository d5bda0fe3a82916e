"""Adapter folders: canonical names in safetensors, everything else in JSON.

    adapter_config.json    format, name, config, base model, versions
    adapter.safetensors    canonical site name → tensor (`encoder.3.attention.query.lora.A`)
    head_config.json       the prediction head of the same name, where there is one
    head.safetensors

Folders of AdapterHub are read too, through `adaptrain.interop`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from adaptrain.adapter import Adapter, check_name
from adaptrain.errors import AdaptrainError, CheckpointError, ConfigError, UnsupportedError, listed
from adaptrain.files import read_json, read_tensors, write_json, write_tensors
from adaptrain.heads import Head, head_from_dict
from adaptrain.interop import adapterhub
from adaptrain.methods import MethodConfig, config_from_dict
from adaptrain.methods.layers import absent
from adaptrain.quantised import scheme
from adaptrain.sites import Sites
from adaptrain.version import __version__

FORMAT = "adaptrain/1"
CONFIG, TENSORS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_TENSORS = "head_config.json", "head.safetensors"
OWN = "own"
"""Head type of a head that is part of the base model's class (`BertForSequenceClassification`)."""


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter folder says of itself, without its tensors.

    Attributes:
        name: of the adapter.
        config: its method and hyperparameters.
        base: `name`, `revision`, `fingerprint`, `model_type`, `hidden_size` of the base model.
        head: config of the head beside it, or None.
    """

    name: str
    config: MethodConfig
    base: dict[str, Any]
    head: dict[str, Any] | None


@dataclass(frozen=True)
class Loaded:
    """An adapter made from a folder, not yet part of a model.

    Attributes:
        base: the base model's own tensors, where the method trains them or they are its own head.
    """

    adapter: Adapter
    head: Head | None
    base: dict[str, Tensor] | None


def save(
    folder: Path,
    adapter: Adapter,
    head: Head | None,
    model: PreTrainedModel,
    identity: Mapping[str, Any],
    with_head: bool = True,
) -> None:
    """Write an adapter folder, file by file; the config, which makes the folder readable, comes last.

    Raises:
        OutputError: the folder cannot be written.
    """
    own = own_head(model)
    tensors = _own_tensors(model, own) if adapter.config.trains_base else adapter.tensors()
    write_tensors(folder / TENSORS, tensors)
    if with_head and (head is not None or own):
        save_head(folder, adapter.name, head, model)
    else:
        for name in (HEAD_CONFIG, HEAD_TENSORS):  # of an earlier adapter in this folder
            (folder / name).unlink(missing_ok=True)
    config = {"format": FORMAT, "name": adapter.name, "config": adapter.config.to_dict()}
    write_json(folder / CONFIG, config | origin(model, identity))


def save_head(folder: Path, name: str, head: Head | None, model: PreTrainedModel) -> None:
    """Write a head's files; of the base model's own head for None.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_tensors(folder / HEAD_TENSORS, own_head(model) if head is None else head.state_dict())
    options = {"type": OWN, "model_class": type(model).__name__} if head is None else head.to_dict()
    write_json(folder / HEAD_CONFIG, {"format": FORMAT, "name": name, "config": options})


def origin(model: PreTrainedModel, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What files say of the base model and the versions that they were made with."""
    base = {**identity, "model_type": model.config.model_type, "hidden_size": _hidden_size(model)}
    versions = {"adaptrain": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"base_model": base, "versions": versions}


def read_adapter_config(folder: Path) -> AdapterFile:
    """What a folder of our own format says.

    Raises:
        CheckpointError: not an adapter folder, or of a format that this version does not know.
    """
    values = read_json(folder / CONFIG)
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG} has the format {values.get('format')!r}, this version reads {FORMAT}")
    try:
        name, config, base = values["name"], config_from_dict(values["config"]), dict(values["base_model"])
        check_name(name)
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG} has no key {error}") from None
    except (AdaptrainError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from None
    return AdapterFile(name, config, base, read_head_config(folder) if (folder / HEAD_CONFIG).exists() else None)


def read_head_config(folder: Path) -> dict[str, Any]:
    """What a folder says of its head.

    Raises:
        CheckpointError: it cannot be read.
    """
    head = read_json(folder / HEAD_CONFIG).get("config")
    if not isinstance(head, dict):
        raise CheckpointError(f"{folder / HEAD_CONFIG} has no config")
    return head


def load(
    model: PreTrainedModel,
    sites: Sites,
    source: str | Path,
    load_as: str | None = None,
    revision: str | None = None,
    with_head: bool = True,
    leave_out: Collection[int] = (),
) -> Loaded:
    """Make an adapter from a folder or a hub id, without changing the model.

    Args:
        leave_out: layers, besides those of its config, that it is made without.

    Raises:
        CheckpointError: missing, unreadable, or not made for this model.
        ConfigError: `leave_out` names a layer that the model does not have.
    """
    if problem := absent("leave_out", leave_out, sites.points):
        raise ConfigError(problem)
    folder = find(source, revision)
    if adapterhub.recognises(folder):
        foreign = adapterhub.read(folder, model, with_head)
        if foreign.head is not None:
            refuse_named_head(folder, model)
        adapter = make(folder, load_as or foreign.name, foreign.config, foreign.tensors, sites, leave_out)
        return Loaded(adapter, foreign.head, None)
    file = read_adapter_config(folder)
    if leave_out and file.config.trains_base:
        raise ConfigError(f"leave_out: {folder} holds the base model's own weights; no layer can be left out of them")
    check_base(folder, file.base, model)
    tensors = read_tensors(folder / TENSORS)
    base = None
    if file.config.trains_base:
        base = tensors
        _fit(folder / TENSORS, tensors, _own_tensors(model, own_head(model)), "it is not this base model")
    adapter = make(folder, load_as or file.name, file.config, {} if base else tensors, sites, leave_out)
    if not with_head or file.head is None:
        return Loaded(adapter, None, base)
    head, own = load_head(folder, file.head, model)
    return Loaded(adapter, head, (base or {}) | own if own else base)


def load_head(folder: Path, options: dict[str, Any], model: PreTrainedModel) -> tuple[Head | None, dict[str, Tensor]]:
    """A named head from a folder; or the tensors of the base model's own.

    Raises:
        CheckpointError: missing, unreadable, or not made for this model.
    """
    tensors = read_tensors(folder / HEAD_TENSORS)
    if options.get("type") == OWN:
        _fit(folder / HEAD_TENSORS, tensors, own_head(model), f"its head is that of {options.get('model_class')}")
        return None, tensors
    refuse_named_head(folder, model)
    try:
        made = head_from_dict(options)
    except ConfigError as error:
        raise CheckpointError(f"{folder / HEAD_CONFIG}: {error}") from None
    _fit(folder / HEAD_TENSORS, tensors, made.state_dict(), "its config says otherwise")
    made.load_state_dict(tensors)
    return made, {}


def make(
    folder: Path,
    name: str,
    config: MethodConfig,
    tensors: Mapping[str, Tensor],
    sites: Sites,
    leave_out: Collection[int] = (),
) -> Adapter:
    """An adapter with a folder's tensors; a name that cannot be one is the caller's mistake, all else the folder's."""
    check_name(name)
    try:
        adapter = Adapter(name, config, sites, fresh=False)
        adapter.load_tensors(tensors)
        if leave_out and (less := config.without(leave_out)) != config:
            whole, adapter = adapter, Adapter(name, less, sites, fresh=False)
            adapter.take(whole)
    except AdaptrainError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return adapter


def refuse_named_head(folder: Path, model: PreTrainedModel) -> None:
    """Refuse a named head where the base model has one of its own.

    Raises:
        CheckpointError: names both.
    """
    if model.base_model is not model:
        raise CheckpointError(
            f"{folder} has a named head, and {type(model).__name__} has a head of its own; load the base with "
            "AutoAdapterModel, or the adapter with with_head=False"
        )


def find(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint: local, or fetched from the hub.

    Raises:
        CheckpointError: neither a folder with an adapter nor an adapter on the hub.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG).exists():
            raise CheckpointError(f"{folder} has no {CONFIG}, so it is not an adapter folder")
        return folder
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise CheckpointError(f"There is no adapter folder {folder}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "pytorch_*.bin"]
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"There is no folder '{source}', and the hub gave no such adapter: {reason}") from None


def own_head(model: PreTrainedModel) -> dict[str, Parameter]:
    """Parameters of the prediction head that is part of the model's class; not those of an output embedding.

    Raises:
        UnsupportedError: they are quantised, so they can be neither trained nor stored.
    """
    output = model.get_output_embeddings()
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    inside |= set() if output is None else {id(parameter) for parameter in output.parameters()}
    own = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in inside}
    if few := {name: found for name, parameter in own.items() if (found := scheme(parameter)) is not None}:
        heads = listed(dict.fromkeys(name.partition(".")[0] for name in few))
        raise UnsupportedError(
            f"The head of this {type(model).__name__} is quantised ({', '.join(few)}; {next(iter(few.values()))}), and "
            f"a head trains in float; name {heads} in llm_int8_skip_modules (bitsandbytes) or modules_to_not_convert "
            "(torchao), or load the base with AutoAdapterModel"
        )
    return own


def _fit(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], reason: str) -> None:
    """Refuse tensors whose names or shapes are not exactly `own`'s."""
    names = sorted(own.keys() | tensors.keys())
    wrong = [key for key in names if key not in own or key not in tensors or own[key].shape != tensors[key].shape]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{path} does not fit, {reason}: {', '.join(wrong[:5])}{more}")


def check_base(folder: Path, made_for: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse what was made for a base model of another shape.

    Raises:
        CheckpointError: names what differs.
    """
    found = {"model_type": model.config.model_type, "hidden_size": _hidden_size(model)}
    for key, value in found.items():
        if made_for.get(key) != value:
            raise CheckpointError(
                f"{folder} was made for a base model with {key} {made_for.get(key)} "
                f"({made_for.get('name')}), and this one has {value}"
            )


def _own_tensors(model: PreTrainedModel, without: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base model's tensors, tied ones once, without its head's."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for key, tensor in state.items():
        first.setdefault(id(tensor), key)
    return {key: state[key].detach() for key in first.values() if key not in without}


def _hidden_size(model: PreTrainedModel) -> int | list[int]:
    """Of a model that is made of several, each one's."""
    config: Any = model.config
    if hasattr(config, "hidden_size"):
        return int(config.hidden_size)
    return [int(getattr(config, part).hidden_size) for part in config.sub_configs]
