"""Adapters to and from folders."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain import checkpoint
from adaptrain.adapter import Adapter, key_of
from adaptrain.errors import UnsupportedError
from adaptrain.heads import Head
from adaptrain.sites import Sites


class WithFiles(nn.Module):
    """The part of an adapted model that writes and reads folders."""

    base_model: PreTrainedModel
    sites: Sites
    heads: nn.ModuleDict
    identity: dict[str, Any]

    def get_adapter(self, name: str) -> Adapter:
        raise NotImplementedError

    def _put(self, adapter: Adapter) -> None:
        raise NotImplementedError

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        raise NotImplementedError

    def set_active_adapters(self, composition: Any) -> None:
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

    def set_base_identity(self, name: str | None, revision: str | None, fingerprint: str | None) -> None:
        """Say where the base model came from; saved beside every adapter."""
        self.identity = {"name": name, "revision": revision, "fingerprint": fingerprint}
