"""Adapters to and from folders."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain import checkpoint, composed
from adaptrain.adapter import Adapter, key_of
from adaptrain.composition import Composition, Fuse, parse
from adaptrain.errors import CompositionError, UnsupportedError
from adaptrain.heads import Head
from adaptrain.interop import adapterhub
from adaptrain.sites import Sites


class WithFiles(nn.Module):
    """The part of an adapted model that writes and reads folders."""

    base_model: PreTrainedModel
    sites: Sites
    heads: nn.ModuleDict
    identity: dict[str, Any]
    _active_head: Any

    def get_adapter(self, name: str) -> Adapter:
        raise NotImplementedError

    def adapter_names(self) -> list[str]:
        raise NotImplementedError

    def _put(self, adapter: Adapter) -> None:
        raise NotImplementedError

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        raise NotImplementedError

    def set_active_adapters(self, composition: Any) -> None:
        raise NotImplementedError

    def get_fusion(self, name: str) -> Adapter:
        raise NotImplementedError

    def _put_fusion(self, fusion: Adapter) -> None:
        raise NotImplementedError

    def _heads_for(self, tree: Composition | None) -> Any:
        raise NotImplementedError

    def _known(self, name: str) -> Head:
        raise NotImplementedError

    @property
    def merged_adapter(self) -> str | None:
        raise NotImplementedError

    def save_adapter(self, save_directory: str | Path, adapter_name: str, with_head: bool = True) -> None:
        """Write an adapter to a folder, with the head of its name or the base model's own (`adaptrain.checkpoint`)."""
        head: Any = dict(self.heads.items()).get(key_of(adapter_name))
        adapter, folder = self.get_adapter(adapter_name), Path(save_directory)
        if adapter.config.trains_base and self.merged_adapter is not None:
            raise UnsupportedError(f"'{self.merged_adapter}' is merged into the base model that '{adapter_name}' saves")
        checkpoint.save(folder, adapter, head, self.base_model, self.identity, with_head)

    def load_adapter(
        self,
        adapter_name_or_path: str | Path,
        load_as: str | None = None,
        set_active: bool = False,
        with_head: bool = True,
        version: str | None = None,
        leave_out: Collection[int] = (),
    ) -> str:
        """Load an adapter from a folder or a hub id: our own format, or AdapterHub's. Nothing loads partly.

        Args:
            load_as: the name it gets; its own when None.
            with_head: also the head beside it.
            version: revision on the hub.
            leave_out: layers, counted over the whole model, that the adapter is loaded without, besides those that it
                has been made without. What belongs to no layer stays.

        Returns:
            The adapter's name.

        Raises:
            CheckpointError: missing, unreadable, or not made for this model; the model is left as it was.
            ConfigError: `leave_out` names a layer that the model does not have.
        """
        loaded = checkpoint.load(
            self.base_model, self.sites, adapter_name_or_path, load_as, version, with_head, leave_out
        )
        self._put(loaded.adapter)
        if loaded.base is not None:
            self.base_model.load_state_dict(loaded.base, strict=False)  # tied tensors are stored once; keys are checked
        if loaded.head is not None:
            self.add_head(loaded.adapter.name, loaded.head, overwrite_ok=True)
        if set_active:
            self.set_active_adapters(loaded.adapter.name)
        return loaded.adapter.name

    def save_adapter_fusion(self, save_directory: str | Path, name: str) -> None:
        """Write a fusion to a folder, without its adapters (`adaptrain.composed`)."""
        composed.save_fusion(Path(save_directory), self.get_fusion(name), self.base_model, self.identity)

    def load_adapter_fusion(self, path: str | Path, load_as: str | None = None, set_active: bool = False) -> str:
        """Load a fusion from a folder: our own format, or AdapterHub's, which needs its adapters there. Nothing loads
        partly.

        Args:
            load_as: the name it gets; its own when None.
            set_active: activate it over the adapters that its name joins by commas, or that AdapterHub's folder names.

        Returns:
            The fusion's name.

        Raises:
            CheckpointError: missing, unreadable, or not made for this model.
        """
        folder = Path(path)
        if adapterhub.recognises_fusion(folder):
            configs = {name: self.get_adapter(name).config for name in self.adapter_names()}
            fusion, block = composed.load_foreign_fusion(folder, self.base_model, self.sites, configs, load_as)
        else:
            fusion = composed.load_fusion(folder, self.base_model, self.sites, load_as)
            block = Fuse(*fusion.name.split(","), name=fusion.name)
        self._put_fusion(fusion)
        if set_active:
            self.set_active_adapters(block)
        return fusion.name

    def save_composition(self, save_directory: str | Path, composition: Any = None) -> None:
        """Write a composition to one folder: its adapters, fusions and heads, and how they go together
        (`adaptrain.composed`). Embeddings are not in it (`save_embeddings`).

        Args:
            composition: the active one when None.

        Raises:
            CompositionError: there is none, or it names what the model does not have.
            OutputError: the folder cannot be written.
        """
        tree = self.sites.active if composition is None else parse(composition)
        if tree is None:
            raise CompositionError("No composition is active; give one to save, or activate one first")
        self.sites.accept(tree)
        found = self._heads_for(tree)
        if isinstance(found, tuple) and None in found and tree == self.sites.active:
            found = self._active_head or found  # a branch that ends in a block has a head of another name
        active = tuple(name for name in found if name) if isinstance(found, tuple) else found
        adapters, fusions = composed.members(tree)
        composed.save(
            Path(save_directory),
            tree,
            [self.get_adapter(name) for name in adapters],
            [self.get_fusion(name) for name in fusions],
            [self._known(name) for name in ((active,) if isinstance(active, str) else active or ())],
            active,
            self.base_model,
            self.identity,
        )

    def load_composition(self, path: str | Path, set_active: bool = True, with_head: bool = True) -> Composition:
        """Load all of a composition from a folder: our own, or a set-up of AdapterHub's. Nothing loads partly;
        adapters, fusions and heads of the same names are replaced.

        Returns:
            The composition.

        Raises:
            CheckpointError: missing, unreadable, or not made for this model; the model is left as it was.
        """
        found = composed.load(Path(path), self.base_model, self.sites, with_head)
        for loaded in found.adapters:
            self._put(loaded.adapter)
            if loaded.base is not None:
                self.base_model.load_state_dict(loaded.base, strict=False)
        for fusion in found.fusions:
            self._put_fusion(fusion)
        for name, head in found.heads.items():
            self.add_head(name, head, overwrite_ok=True)
        if found.own:
            self.base_model.load_state_dict(dict(found.own), strict=False)
        if set_active:
            self.set_active_adapters(found.tree)
            if found.active is not None:
                self._active_head = found.active
        return found.tree

    save_adapter_setup, load_adapter_setup = save_composition, load_composition
    """Their names in the reference library."""

    def set_base_identity(self, name: str | None, revision: str | None, fingerprint: str | None) -> None:
        """Say where the base model came from; saved beside every adapter."""
        self.identity = {"name": name, "revision": revision, "fingerprint": fingerprint}
