"""Working an adapter into the base model's weights, and taking it out again bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptrain.composition import Composition
from adaptrain.errors import UnsupportedError
from adaptrain.points import LinearPart
from adaptrain.sites.base import Site
from adaptrain.sites.projection import ActivationSite, ProjectionSite
from adaptrain.upstream import lookup_scale


class Merged:
    """An adapter that has been worked into the base weights, and what these were before.

    Attributes:
        name: of the adapter.
        active: the composition that was active before.
    """

    def __init__(self, name: str, active: Composition | None) -> None:
        self.name, self.active = name, active
        self._before: list[tuple[LinearPart, Tensor, Tensor | None]] = []

    def work_in(self, sites: Iterable[Site], model: PreTrainedModel) -> None:
        """Write the adapter's units into the maps that they act on.

        Raises:
            UnsupportedError: a unit cannot be merged, or a map is shared with another part of the model; the weights
                are what they were.
        """
        try:
            with torch.no_grad():
                for site in sites:
                    if self.name in site.units:
                        self._work_in(site, model)
        except BaseException as error:  # an interrupt or too little memory, too: half of an adapter is none
            self.undo()
            if isinstance(error, UnsupportedError):
                raise UnsupportedError(f"The adapter '{self.name}' cannot be merged: {error}") from None
            raise

    def undo(self) -> None:
        """Put the weights back, bit for bit."""
        with torch.no_grad():
            for part, weight, bias in reversed(self._before):
                part.write(weight, bias)
        self._before.clear()

    def _work_in(self, site: Site, model: PreTrainedModel) -> None:
        place = site.point.name
        if not isinstance(site, ProjectionSite | ActivationSite):
            raise UnsupportedError(f"it has a unit at {place}, which is no linear map")
        part = site.part
        if isinstance(part.module, nn.Embedding):
            _refuse_tied(part.module, model, place)
        if part.quantised is not None:
            raise UnsupportedError(
                f"the weight of {place} is quantised ({part.quantised}) and would have to be rounded to as few bits "
                f"again; merge into a float copy: model.dequantize().merge_adapter('{self.name}')"
            )
        weight, bias = part.weight, part.bias
        self._before.append((part, weight.clone(), None if bias is None else bias.clone()))
        wide = torch.promote_types(weight.dtype, torch.float32)
        new_weight, new_bias = weight.to(wide), None if bias is None else bias.to(wide)
        for unit in site.units[self.name]:
            new_weight, new_bias = unit.merged(new_weight, new_bias)
        part.write(new_weight, new_bias)


def _refuse_tied(module: nn.Embedding, model: PreTrainedModel, place: str) -> None:
    owners = [name for name, each in model.named_modules() if getattr(each, "weight", None) is module.weight]
    if len(owners) > 1:
        raise UnsupportedError(f"the weight of {place} is shared by {' and '.join(owners)}, which would change too")
    if lookup_scale(module) != 1.0:
        raise UnsupportedError(f"the embeddings of {place} are scaled after they are looked up")
