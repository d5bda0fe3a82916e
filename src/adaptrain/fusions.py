"""AdapterFusion on an adapted model: fusions by their names, and training them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptrain.adapter import Adapter, check_name, key_of
from adaptrain.composition import Composition, Fuse, blocks, names, parse
from adaptrain.errors import AdapterNameError, CompositionError, UnsupportedError, unknown
from adaptrain.heads import Head
from adaptrain.methods import AdapterFusionConfig, read_fusion
from adaptrain.methods.fusion import Fusion
from adaptrain.quantised import refuse_training
from adaptrain.sites import Sites

_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "dropout_rate")
"""What transformers' configs call the dropout of attentions."""


class WithFusions(nn.Module):
    """The part of an adapted model that keeps its fusions. A fusion is stored as an adapter is: units under canonical
    names, with a config."""

    base_model: PreTrainedModel
    sites: Sites

    def __init__(self) -> None:
        super().__init__()
        self.fusions = nn.ModuleDict()

    def get_adapter(self, name: str) -> Adapter:
        raise NotImplementedError

    def set_active_adapters(self, composition: Any) -> None:
        raise NotImplementedError

    def _own_heads(self, tree: Composition | None) -> list[Head]:
        raise NotImplementedError

    def add_adapter_fusion(
        self,
        adapter_names: Sequence[str] | Composition | Mapping[str, Any],
        config: AdapterFusionConfig | str | Mapping[str, Any] | None = None,
        name: str | None = None,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> str:
        """Add a fusion over adapters of this model, freshly initialised.

        Args:
            adapter_names: a list of names or a Fuse block; its places are those of the last adapters of its children.
            config: a config, `static` or `dynamic`, or a mapping of keys; `dynamic` when None.
            name: of the fusion; the block's own, or the names joined by commas, when None.

        Returns:
            The fusion's name.

        Raises:
            AdapterNameError: an adapter that is not there; or the fusion's name is taken (and not `overwrite_ok`).
            CompositionError: not a fusion of adapters.
            ConfigError: the config is wrong.
            UnsupportedError: an adapter that adds nothing to a sublayer.
        """
        block = _fuse(adapter_names)
        fused = [self.get_adapter(member) for member in names(block)]
        name = str(name or block.fusion)
        check_name(name)
        if key_of(name) in self.fusions and not overwrite_ok:
            raise AdapterNameError(f"There is a fusion '{name}' already; give overwrite_ok=True to replace it")
        made = read_fusion(config)
        points = [self.sites.by_name[site].point for adapter in fused for site in adapter.units]
        places = [point for point in points if point.kind == "sublayer"]
        if others := [adapter.name for adapter in fused if not _adds(adapter, self.sites)]:
            raise UnsupportedError(
                f"'{others[0]}' ({self.get_adapter(others[0]).config.method}) cannot be fused: AdapterFusion puts "
                "together what bottlenecks add to a sublayer"
            )
        if made.sublayers is None:
            made = made.replace(sublayers=tuple(dict.fromkeys(point.sublayer for point in places)))
            layers = {point.layer for point in self.sites.points if point.kind == "sublayer"}
            made = made.replace(leave_out=tuple(sorted({*made.leave_out, *layers - {point.layer for point in places}})))
        if made.dropout_prob is None:
            made = made.replace(dropout_prob=self._attention_dropout())
        self._put_fusion(Adapter(name, made, self.sites))
        if set_active:
            self.set_active_adapters(Fuse(*block.children, name=name))
        return name

    def _put_fusion(self, fusion: Adapter) -> None:
        if key_of(fusion.name) in self.fusions:
            self.sites.remove_fusion(fusion.name)
        fusion.to(self.base_model.device)
        fusion.train(self.training)
        self.sites.add_fusion(fusion.name, fusion.units, tuple(fusion.shared.values()))
        self.fusions[key_of(fusion.name)] = fusion

    def delete_adapter_fusion(self, name: str | Sequence[str] | Fuse) -> None:
        """Remove a fusion; its adapters stay.

        Raises:
            AdapterNameError: no such fusion, or it is part of the active composition.
        """
        name = str(name if isinstance(name, str) and "(" not in name else _fuse(name).fusion)
        self.get_fusion(name)
        if any(isinstance(block, Fuse) and block.fusion == name for block in blocks(self.sites.active)):
            raise AdapterNameError(f"The fusion '{name}' is part of the active {self.sites.active}; activate another")
        self.sites.remove_fusion(name)
        del self.fusions[key_of(name)]

    def get_fusion(self, name: str) -> Adapter:
        """A fusion by its name.

        Raises:
            AdapterNameError: no such fusion.
        """
        if key_of(name) not in self.fusions:
            raise AdapterNameError(unknown("fusion", name, self.fusion_names(), "The model has"))
        fusion = self.fusions[key_of(name)]
        assert isinstance(fusion, Adapter)
        return fusion

    def fusion_names(self) -> list[str]:
        """The names of all fusions."""
        return [str(fusion.name) for fusion in self.fusions.values()]

    def train_adapter_fusion(self, composition: Any, unfreeze_adapters: bool = False) -> None:
        """Freeze everything but the fusions of a composition and its head, and activate it.

        Args:
            composition: with a Fuse block, or the names of the adapters to fuse.
            unfreeze_adapters: train the composition's adapters too.

        Raises:
            CompositionError: there is nothing to fuse in it, or it names what the model does not have.
            UnsupportedError: a quantised base that no gradient comes through.
        """
        tree = composition if isinstance(composition, str | Mapping) else _fuse(composition, whole=True)
        self.set_active_adapters(tree)
        chosen = list(self._fusions_of(self.sites.active))
        if not chosen:
            raise CompositionError(f"{self.sites.active} has no fusion to train; activate a fuse(…) block")
        refuse_training(self.base_model)
        self.requires_grad_(False)
        for fusion in chosen:
            fusion.requires_grad_(True)
        if unfreeze_adapters:
            for name in names(self.sites.active):
                self.get_adapter(name).requires_grad_(True)
        for head in self._own_heads(self.sites.active):
            head.requires_grad_(True)
        self.train()

    def get_fusion_regularization_loss(self, composition: Any = None) -> Tensor | None:
        """0.01 Σ ‖I − W_v‖² over the sublayers of a composition's fusions, of the active one's when None; None where
        nothing is regularised. `forward` adds it to the loss in training."""
        tree = self.sites.active if composition is None else parse(composition)
        units = [unit for fusion in self._fusions_of(tree) for here in fusion.units.values() for unit in here]
        terms = [term for unit in units if isinstance(unit, Fusion) and (term := unit.regularization()) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def _regularised(self, tree: Composition | None, outputs: Any) -> Any:
        """The outputs with the fusions' regularisation in the loss, while they train."""
        if not self.training or not self.fusions or tree is None:
            return outputs
        found = self.get_fusion_regularization_loss(tree)
        if found is None or not found.requires_grad:
            return outputs
        if isinstance(outputs, tuple):  # of a base model without a head of ours; its loss is a number
            loss = outputs[0]
            return (loss + found, *outputs[1:]) if isinstance(loss, Tensor) and loss.dim() == 0 else outputs
        if getattr(outputs, "loss", None) is not None:
            outputs.loss = outputs.loss + found
        return outputs

    def _fusions_of(self, tree: Composition | None) -> Iterator[Adapter]:
        for name in dict.fromkeys(block.fusion for block in blocks(tree) if isinstance(block, Fuse)):
            yield self.get_fusion(name)

    def _attention_dropout(self) -> float:
        config: Any = self.base_model.config
        found = (getattr(config, key, None) for key in _DROPOUT)
        return float(next((value for value in found if value is not None), 0.0))


def _fuse(given: Any, whole: bool = False) -> Any:
    """What is to be fused, as a Fuse block; with `whole` the composition that it stands in."""
    if isinstance(given, list | tuple) and not any(isinstance(each, list | tuple) for each in given):
        given = Fuse(*given)
    tree = parse(given if not isinstance(given, str) or "(" in given else Fuse(*given.split(",")))
    found = [block for block in blocks(tree) if isinstance(block, Fuse)]
    if len(found) != 1 and not whole:
        raise CompositionError(f"{tree} is no fusion; give a list of adapters, or one fuse(…) block")
    if not found:
        raise CompositionError(f"{tree} has no fuse(…) block")
    return tree if whole else found[0]


def _adds(adapter: Adapter, sites: Sites) -> bool:
    return any(sites.by_name[site].point.kind == "sublayer" for site in adapter.units)
