"""The adapters of a run's composition: fresh ones made, saved ones found and loaded, fusions added, and what trains."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptrain.checkpoint import CONFIG
from adaptrain.composed import CONFIG as COMPOSITION
from adaptrain.composition import Fuse, blocks, parse
from adaptrain.config.composition import members_of
from adaptrain.config.schema import MemberConfig, RunConfig
from adaptrain.errors import CheckpointError, ConfigError, UnsupportedError, listed
from adaptrain.files import read_json
from adaptrain.reporting.folder import is_finished


@dataclass(frozen=True)
class Source:
    """A saved adapter that has been loaded.

    Attributes:
        name: in this run.
        path: as configured.
        place: where that was: a folder, or the hub id.
        revision: of a hub id.
        fingerprint: sha256 of its tensors, as they were loaded.
        trained_on: fingerprint of the base model that it was trained on, where that is known.
    """

    name: str
    path: str
    place: str
    revision: str | None
    fingerprint: str
    trained_on: str | None

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def find_saved(path: str, name: str) -> Path | str:
    """Where a saved adapter is: its folder, the one finished run in a recipe's folder, or else a hub id.

    Args:
        name: of the adapter, for messages.

    Raises:
        CheckpointError: no such folder, several runs in it, or no adapter.
    """
    folder, key = Path(path).expanduser(), f"adapters.{name}.path={path}"
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") != 1 or folder.parent.is_dir():
            raise CheckpointError(f"{key}: there is no such folder ({folder.absolute()}); correct the path")
        return path
    if (folder / CONFIG).is_file():
        return folder
    if (folder / COMPOSITION).is_file():
        own = [inner.relative_to(folder) for inner in sorted((folder / "adapters").glob("*"))]
        raise CheckpointError(f"{key}: holds a composition; name one of its adapters: {listed(own)}")
    runs = [inner for inner in sorted(folder.iterdir()) if inner.name[:1] != "." and is_finished(inner)]
    if len(runs) > 1:
        raise CheckpointError(f"{key}: holds {len(runs)} runs; name one of: {listed(run.name for run in runs)}")
    if not runs:
        raise CheckpointError(f"{key}: holds neither an adapter ({CONFIG}) nor a finished run")
    return find_saved(str(runs[0]), name)


def load_member(model: Any, name: str, member: MemberConfig) -> Source:
    """Load a saved adapter under its name in the composition, without its head.

    Raises:
        CheckpointError: missing, unreadable, or not made for this model.
        ConfigError: it leaves out a layer that the model does not have.
        UnsupportedError: what was saved is the base model's own weights.
    """
    assert member.path is not None
    place = find_saved(member.path, name)
    known: dict[str, Any] = read_json(place / CONFIG).get("base_model") or {} if isinstance(place, Path) else {}
    try:
        options = {"version": member.revision, "leave_out": member.leave_out}
        model.load_adapter(place, load_as=name, with_head=False, **options)
    except CheckpointError as error:
        raise CheckpointError(f"adapters.{name}.path={member.path}: {error}") from None
    except ConfigError as error:
        raise ConfigError([f"adapters.{name}: {sentence}" for sentence in error.problems]) from None
    adapter = model.get_adapter(name)
    if adapter.config.trains_base:
        raise UnsupportedError(
            f"adapters.{name}.path={member.path}: holds the base model's own weights ({adapter.config.method}), which "
            "the other adapters of a composition were not trained on; name an adapter"
        )
    fingerprint = _fingerprint(adapter.tensors())
    return Source(name, member.path, str(place), member.revision, fingerprint, known.get("fingerprint"))


def assemble(model: Any, config: RunConfig) -> tuple[Source, ...]:
    """Give the model all adapters and fusions of the run's composition.

    Raises:
        CheckpointError: a saved adapter is missing, unreadable, or not made for this model.
        UnsupportedError: adapters and a base model that do not go together.
    """
    sources = []
    for name, member in members_of(config).items():
        if member.path is None:
            model.add_adapter(name, config=member.adapter)
        else:
            sources.append(load_member(model, name, member))
    for block in blocks(parse(config.expression)):
        if isinstance(block, Fuse) and block.fusion not in model.fusion_names():
            model.add_adapter_fusion(block, config=config.fusion)
    return tuple(sources)


def train_composition(model: Any, config: RunConfig) -> None:
    """Activate the composition, and freeze all but its fusions, the members that train, and the task's head.

    Raises:
        CompositionError: a composition that this model cannot run.
        UnsupportedError: a method, a block and a model that do not go together.
    """
    tree, head = parse(config.expression), config.task.name
    if any(isinstance(block, Fuse) for block in blocks(tree)):
        model.train_adapter_fusion(tree)
    else:
        model.train_adapter(tree)
    for name, member in members_of(config).items():
        model.get_adapter(name).requires_grad_(member.trains)
    named = any(each.name == head for each in model.heads.values())  # else the checkpoint's own head is used
    model.active_head = head if named else None  # one for all rows, whatever the last adapter is called
    for each in model.heads.values():
        each.requires_grad_(True)


def source_notes(sources: tuple[Source, ...], fingerprint: str) -> tuple[str, ...]:
    """What a person should know of the saved adapters."""
    return tuple(
        f"adapters.{source.name}: was trained on another base model, whose weights have the sum "
        f"{source.trained_on[:12]}…, not {fingerprint[:12]}…"
        for source in sources
        if source.trained_on and len(source.trained_on) == len(fingerprint) and source.trained_on != fingerprint
    )


def check_members(config: RunConfig) -> None:
    """Refuse methods that have no place in a composition.

    Raises:
        ConfigError: a member that trains the base model's own weights.
    """
    from adaptrain.methods import config_from_dict

    for name, member in members_of(config).items():
        if member.path is None and member.adapter is not None and config_from_dict(member.adapter).trains_base:
            raise ConfigError(
                f"adapters.{name}: {member.adapter['method']} trains the base model's own weights, which all adapters "
                f"of {config.expression} share; choose another by adapters.{name}.adapter=NAME"
            )


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
