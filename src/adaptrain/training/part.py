"""A part of a model, as if it were the whole: what a branch of a composition runs through, trains, counts and saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptrain.adapter import key_of
from adaptrain.composition import Composition, Fuse, blocks, names
from adaptrain.context import AdapterSetup


class Part:
    """The adapters and fusions of one composition, and one head.

    Args:
        model: an adapted model that has them.
        tree: the composition.
        head: the head's name.
    """

    def __init__(self, model: Any, tree: Composition, head: str) -> None:
        self.model, self.tree, self.head = model, tree, head
        self.fusions = tuple(dict.fromkeys(block.fusion for block in blocks(tree) if isinstance(block, Fuse)))

    def __call__(self, **inputs: Any) -> Any:
        """The model under this composition and head, whatever is active."""
        with AdapterSetup(self.tree, head_setup=self.head):
            return self.model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def modules(self) -> Iterator[nn.Module]:
        """Adapters, fusions, head."""
        yield from (self.model.get_adapter(name) for name in names(self.tree))
        yield from (self.model.get_fusion(name) for name in self.fusions)
        yield self.model.heads[key_of(self.head)]

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name → parameter, of all that trains in this part, under the names of the whole."""
        own = {id(parameter) for module in self.modules() for parameter in module.parameters()}
        return ((name, each) for name, each in self.model.trainable_parameters() if id(each) in own)

    def trainable_state(self) -> dict[str, Tensor]:
        """CPU copies of all that training changes in this part."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._changed().items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` returned."""
        current = self._changed()
        with torch.no_grad():
            for name, tensor in state.items():
                current[name].copy_(tensor)

    def parameter_count(self, name: str) -> int:
        """Numbers that the adapter trains which this part ends in, whatever the name."""
        return self.model.parameter_count(self.tree if isinstance(self.tree, str) else name)

    @property
    def heads(self) -> nn.ModuleDict:
        """The one head."""
        key = key_of(self.head)
        return nn.ModuleDict({key: self.model.heads[key]})

    def save_adapter(self, folder: Path, name: str) -> None:
        """Write this part, whatever the name: an adapter's folder, or a composition's."""
        self.save_composition(folder)

    def save_composition(self, folder: Path) -> None:
        """Write this part: the folder of its one adapter, or that of its composition."""
        if isinstance(self.tree, str):
            self.model.save_adapter(folder, self.tree)
            return
        before, self.model.active_head = self.model.active_head, self.head
        try:
            self.model.save_composition(folder, self.tree)
        finally:
            self.model.active_head = before

    def _changed(self) -> dict[str, Tensor]:
        buffers = {
            f"fusions.{key_of(name)}.{key}": buffer
            for name in self.fusions
            for key, buffer in self.model.get_fusion(name).named_buffers()
        }
        return {**dict(self.trainable_parameters()), **buffers}
