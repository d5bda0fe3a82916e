"""Sites: the points of an architecture in one live model. The only file that registers hooks.

A site takes what it needs on the way in, asks the evaluator on the way out, and returns what the model goes on with.
Hooks are bound methods, so that `deepcopy` and `pickle` carry the sites with the model. They exist only where an
adapter has a unit, and in one fixed order, whatever order the adapters came in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptrain import attention
from adaptrain.architectures import Architecture, Attention, Projection, Stack, Sublayer
from adaptrain.composition import Composition, Fuse, blocks, check, evaluate, names, prune
from adaptrain.composition import Stack as StackBlock
from adaptrain.context import Forward, current_forward, current_setup, enter, leave
from adaptrain.errors import UnsupportedError, listed
from adaptrain.methods import Shared, Unit
from adaptrain.points import Point, entrances, linear_sizes, module_at
from adaptrain.state import AttentionState, ProjectionState, State, SublayerState

S = TypeVar("S", bound=State)


class Handle(Protocol):
    """What takes a hook back."""

    def remove(self) -> None: ...


class Site:
    """One point of one layer, and the units that adapters have there.

    Attributes:
        units: adapter name → its units, applied in order.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self.units: dict[str, tuple[Unit, ...]] = {}

    def hook(self) -> Iterator[Handle]:
        """Register this site's hooks."""
        raise NotImplementedError

    def tree(self) -> Composition | None:
        """The composition in force here; None where nothing is to be done."""
        forward = current_forward()
        return None if forward is None else forward.plan.get(self)

    def run(self, tree: Composition, state: S) -> S:
        return evaluate(tree, state, self._apply, _no_fusion)

    def _apply(self, name: str, state: S) -> S:
        for unit in self.units[name]:
            state = unit(state)
        return state


def _no_fusion(tree: Fuse, *_: Any) -> Any:
    raise UnsupportedError(f"{tree} was activated although no method can be fused")  # refused at activation


class ProjectionSite(Site):
    """One linear map, or one part of a fused one."""

    def __init__(self, point: Point, module: nn.Module, projection: Projection) -> None:
        super().__init__(point)
        self.module = module
        self.start = projection.part * point.out_features if projection.parts > 1 else None

    def hook(self) -> Iterator[Handle]:
        yield self.module.register_forward_hook(self._out)

    def _out(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        tree = self.tree()
        if tree is None:
            return None
        if self.start is None:
            return self.run(tree, ProjectionState(args[0], output)).y
        stop = self.start + self.point.out_features
        part = self.run(tree, ProjectionState(args[0], output[..., self.start : stop])).y
        return torch.cat([output[..., : self.start], part, output[..., stop:]], -1)


class SublayerSite(Site):
    """The output of a sublayer, with the residual taken where the model takes it.

    A site acts once for each residual taken, and consumes it whether it acts or not: some models fire one module for
    two sublayers, and a residual left over would be used by the wrong one.
    """

    def __init__(
        self, point: Point, output: nn.Module, residual: nn.Module, argument: int, norm: nn.Module | None
    ) -> None:
        super().__init__(point)
        self.output, self.residual, self.argument, self.norm = output, residual, argument, norm

    def hook(self) -> Iterator[Handle]:
        yield self.residual.register_forward_pre_hook(self._in, with_kwargs=True)
        yield self.output.register_forward_hook(self._out)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None:
            forward.taken[self] = args[self.argument] if len(args) > self.argument else kwargs["hidden_states"]

    def _out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward = current_forward()
        residual = None if forward is None else forward.taken.pop(self, None)
        tree = self.tree()
        if residual is None or tree is None:
            return None
        h = output[0] if isinstance(output, tuple) else output
        h = self.run(tree, SublayerState(h, residual, self.norm)).h
        return (h, *output[1:]) if isinstance(output, tuple) else h


class AttentionSite(Site):
    """Keys and values of one attention, through transformers' attention registry."""

    def __init__(self, point: Point, module: nn.Module) -> None:
        super().__init__(point)
        self.module = module

    def hook(self) -> Iterator[Handle]:
        attention.mark(self.module, self)
        yield _Unmark(self.module)

    def change(self, state: AttentionState) -> AttentionState:
        tree = self.tree()
        return state if tree is None else self.run(tree, state)


class ComputedAttentionSite(Site):
    """Keys and values of an attention module that computes attention itself (MPNet).

    Queries, keys and values are taken from the projections as the adapters before have left them; when the module
    hands its attended values to the output projection, they are computed anew, with the prefix, and put in their place.
    """

    def __init__(self, point: Point, module: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        super().__init__(point)
        self.module, self.parts = module, parts

    def hook(self) -> Iterator[Handle]:
        yield self.module.register_forward_pre_hook(self._in, with_kwargs=True)
        yield self.parts["query"].register_forward_hook(self._query)
        yield self.parts["key"].register_forward_hook(self._key)
        yield self.parts["value"].register_forward_hook(self._value)
        yield self.parts["output"].register_forward_pre_hook(self._attended)

    def _in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = current_forward()
        if forward is not None and self in forward.plan:
            named = dict(zip(("hidden_states", "attention_mask", "position_bias"), args, strict=False)) | kwargs
            forward.taken[self] = {"mask": named.get("attention_mask"), "bias": named.get("position_bias")}

    def _take(self, role: str, output: Tensor) -> None:
        forward = current_forward()
        if forward is not None and self in forward.taken:
            heads = output.unflatten(-1, (-1, self.point.head_dim)).transpose(1, 2)
            forward.taken[self][role] = heads  # (rows, heads, positions, head_dim)

    def _query(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._take("query", output)

    def _key(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._take("key", output)

    def _value(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._take("value", output)

    def _attended(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        forward, tree = current_forward(), self.tree()
        taken = None if forward is None else forward.taken.pop(self, None)
        if taken is None or tree is None:
            return None
        state = self.run(tree, AttentionState(taken["key"], taken["value"], taken["mask"], taken["bias"]))
        dropout = float(self.module.dropout.p)  # type: ignore[union-attr]
        return (attention.attend_with_state(taken["query"], state, dropout, self.module.training), *args[1:])


class _Unmark:
    """A handle for a mark, so that it is taken back like a hook."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def remove(self) -> None:
        attention.mark(self.module, None)


class Sites:
    """All sites of one live model: finds them, keeps their hooks, and opens a forward at the model's entrances.

    Args:
        model: any transformers model.
        architecture: the table of its family.

    Attributes:
        active: the composition in force where no `AdapterSetup` is.
        methods: adapter name → its method.
        shared: adapter name → its shared modules.
        by_name: canonical name → site.

    Raises:
        UnsupportedError: a path of the table is not in the model; names layer, path and nearest module.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self.model = model
        self.architecture = architecture
        self.active: Composition | None = None
        self.methods: dict[str, str] = {}
        self.shared: dict[str, tuple[Shared, ...]] = {}
        self.by_name = {site.point.name: site for site in _find(model.base_model, architecture)}
        self._plans: dict[Composition, dict[Site, Composition]] = {}
        self._handles: list[Handle] = []
        self.refresh()

    @property
    def points(self) -> list[Point]:
        return [site.point for site in self.by_name.values()]

    def add(self, name: str, method: str, units: Mapping[str, tuple[Unit, ...]], shared: tuple[Shared, ...]) -> None:
        """Give an adapter its units.

        Raises:
            UnsupportedError: the model's attention cannot be reached; nothing has been changed then.
        """
        if any(isinstance(self.by_name[site], AttentionSite) for site in units):
            attention.install(self.model)
        for site, here in units.items():
            self.by_name[site].units[name] = here
        self.methods[name], self.shared[name] = method, shared
        self.refresh()

    def remove(self, name: str) -> None:
        """Take an adapter's units away."""
        for site in self.by_name.values():
            site.units.pop(name, None)
        del self.methods[name], self.shared[name]
        self.refresh()

    def refresh(self) -> None:
        """Hooks where units are, none where none are; plans are made anew."""
        for handle in self._handles:
            handle.remove()
        self._plans.clear()
        used = [site for site in self.by_name.values() if site.units]
        self._attended = any(isinstance(site, AttentionSite) for site in used)
        if not self._attended:
            attention.uninstall(self.model)
        self.forget()
        self._handles = [handle for site in used for handle in site.hook()]
        for module in entrances(self.model):
            self._handles.append(module.register_forward_pre_hook(self._enter))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def accept(self, tree: Composition | None) -> None:
        """Refuse a composition that this model cannot run.

        Raises:
            CompositionError: it names an adapter that the model does not have.
            UnsupportedError: a block that this version does not run; names block, methods and model.
        """
        check(tree, list(self.methods))
        for block in blocks(tree):
            if not isinstance(block, StackBlock):
                methods = listed(dict.fromkeys(self.methods[name] for name in block.names))
                raise UnsupportedError(
                    f"{type(block).__name__} over {methods} on {self.architecture.name} cannot be activated: this "
                    "version runs a single adapter or a Stack"
                )

    def forget(self) -> None:
        """End what an interrupt has left open in this thread; torch runs no hook after one."""
        forward = current_forward()
        if forward is not None and forward.owner is self:
            leave(forward)

    def plan(self, tree: Composition | None) -> Mapping[Site, Composition]:
        """The composition pruned to every site, made once."""
        if tree is None:
            return {}
        if tree not in self._plans:
            pruned = {site: prune(tree, site.units.__contains__) for site in self.by_name.values()}
            self._plans[tree] = {site: here for site, here in pruned.items() if here is not None}
        return self._plans[tree]

    def begin(self, tree: Composition | None, entrance: nn.Module) -> Forward:
        """A forward with this composition, its shared values computed."""
        if self._attended:
            attention.install(self.model)  # somebody else may have chosen another implementation since
        forward = Forward(self, self.plan(tree), entrance)
        for name in names(tree):
            forward.once |= {module: module.compute() for module in self.shared[name]}
        return forward

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For gradient checkpointing: the layers' recompute sees the forward that it repeats, in whatever thread."""
        forward = current_forward()
        return nullcontext(), nullcontext() if forward is None else forward.resume()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        forward = current_forward()
        if forward is not None and forward.owner is self:
            if forward.entrance is not module:
                forward.depth += 1
                return
            leave(forward)  # nobody enters a module twice: the last forward was interrupted, and torch ran no hook then
        setup, tree = current_setup(), self.active
        if setup is not None:
            tree = setup.composition
            self.accept(tree)
        enter(self.begin(tree, module))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = current_forward()
        if forward is not None and forward.owner is self:
            forward.depth -= 1
            if forward.depth == 0:
                leave(forward)


_ORDER = {"projection": 0, "sublayer": 1, "attention": 2}


def _find(base: nn.Module, architecture: Architecture) -> list[Site]:
    sites: list[Site] = []
    before = 0
    for stack in architecture.stacks:
        layers = module_at(base, stack.layers, f"the {architecture.name} table")
        for index, layer in enumerate(layers):
            sites += _layer_sites(base, layer, stack, index, before + index, len(architecture.stacks) > 1)
        before += len(layers)
    return sorted(sites, key=lambda site: _ORDER[site.point.kind])  # stable: by kind, then by layer


def _layer_sites(base: Any, layer: nn.Module, stack: Stack, index: int, number: int, both: bool) -> Iterator[Site]:
    place = f"layer {index} of the {stack.name}"
    point = Point("", stack.name, number, "", "", "", base.config.hidden_size, 0, 0, 0, 0, both)
    modules: dict[str, nn.Module] = {}
    for name, row in stack.projections.items():
        modules[name] = module = module_at(layer, row.path, place)
        outputs, inputs = linear_sizes(module)
        sublayer, role = name.split(".")
        here = replace(point, kind="projection", sublayer=sublayer, role=role, name=f"{stack.name}.{index}.{name}")
        yield ProjectionSite(replace(here, in_features=inputs, out_features=outputs // row.parts), module, row)
    for name, row in stack.sublayers.items():
        here = replace(point, kind="sublayer", sublayer=name, name=f"{stack.name}.{index}.{name}")
        yield _sublayer(here, layer, row, place)
    for name, row in stack.attentions.items():
        here = replace(point, kind="attention", sublayer=name, name=f"{stack.name}.{index}.{name}.key_value")
        key = stack.projections[f"{name}.key"]
        yield _attention(here, layer, row, modules, linear_sizes(modules[f"{name}.key"])[0] // key.parts, place)


def _sublayer(point: Point, layer: nn.Module, row: Sublayer, place: str) -> SublayerSite:
    norm = None if row.norm is None else module_at(layer, row.norm, place)
    return SublayerSite(
        point, module_at(layer, row.output, place), module_at(layer, row.residual, place), row.argument, norm
    )


def _attention(
    point: Point, layer: nn.Module, row: Attention, modules: Mapping[str, nn.Module], width: int, place: str
) -> Site:
    module = module_at(layer, row.path, place)
    size = int(getattr(module, row.head_size))
    point = replace(point, heads=width // size, head_dim=size)
    if row.output is None:
        return AttentionSite(point, module)
    parts = {role: modules[f"{point.sublayer}.{role}"] for role in ("query", "key", "value")}
    return ComputedAttentionSite(point, module, parts | {"output": module_at(layer, row.output, place)})
