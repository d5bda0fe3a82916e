"""All sites of one live model, and the forwards that go through them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptrain import attention
from adaptrain.architectures import Architecture
from adaptrain.composition import Composition, Fuse, blocks, check_adapters, check_fusions, names, width
from adaptrain.context import (
    Forward,
    Tokens,
    current_forward,
    current_prompt,
    current_rows,
    current_setup,
    enter,
    leave,
)
from adaptrain.errors import CompositionError, UnsupportedError
from adaptrain.evaluator import prune
from adaptrain.methods import Shared, Unit
from adaptrain.methods.layers import absent
from adaptrain.points import Point, entrances
from adaptrain.sites.base import Handle, Site
from adaptrain.sites.blocks import check_positions, refuse
from adaptrain.sites.embedding import EmbeddingSite, PromptSite
from adaptrain.sites.find import find
from adaptrain.sites.given import (
    check_given,
    decoded_positions,
    embedded,
    embeds_keys,
    positions_before,
    routed,
    visible_positions,
)
from adaptrain.sites.key_value import RegistryAttentionSite, check_attended
from adaptrain.sites.merging import Merged
from adaptrain.sites.paths import check_masks, masked_at
from adaptrain.sites.recompute import adopt, recomputable
from adaptrain.sites.rows import repeated, rows_of
from adaptrain.sites.words import Words
from adaptrain.state import EmbeddingState
from adaptrain.upstream import Arguments, positions_cached


class Sites:
    """All sites of one live model: finds them, keeps their hooks, and opens a forward at the model's entrances.

    Args:
        model: any transformers model.
        architecture: the table of its family.

    Attributes:
        active: the composition in force where no `AdapterSetup` is.
        skipped: layers whose sites do nothing under it.
        methods: adapter name → its method.
        shared: adapter name → its shared modules.
        fusions: fusion name → its shared modules.
        by_name: canonical name → site.
        merged: the adapter that has been worked into the base weights, or None.
        words: where words are looked up, once other ones have been added; None before.

    Raises:
        UnsupportedError: a path of the table is not in the model; names layer, path and nearest module.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self.model = model
        self.architecture = architecture
        self.active: Composition | None = None
        self.skipped: frozenset[int] = frozenset()
        self.methods: dict[str, str] = {}
        self.shared: dict[str, tuple[Shared, ...]] = {}
        self.fusions: dict[str, tuple[Shared, ...]] = {}
        self.by_name = {site.point.name: site for site in find(model, architecture)}
        self.merged: Merged | None = None
        self.words: Words | None = None
        self._inputs = {module: tuple(inspect.signature(module.forward).parameters) for module in entrances(self.model)}
        self._plans: dict[tuple[Composition, frozenset[int]], dict[Site, Composition]] = {}
        self._handles: list[Handle] = []
        self._recomputable = recomputable(model)
        self.refresh()

    @property
    def points(self) -> list[Point]:
        return [site.point for site in self.by_name.values()]

    def add(self, name: str, method: str, units: Mapping[str, tuple[Unit, ...]], shared: tuple[Shared, ...]) -> None:
        """Give an adapter its units.

        Raises:
            UnsupportedError: the model's attention cannot be reached; nothing has been changed then.
        """
        for site in units:
            self.by_name[site].check()
        check_masks(self.model, self.architecture, {self.by_name[site].point.stack for site in units})
        if any(isinstance(self.by_name[site], RegistryAttentionSite) for site in units):
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

    def add_fusion(self, name: str, units: Mapping[str, tuple[Unit, ...]], shared: tuple[Shared, ...]) -> None:
        """Give a fusion its units."""
        for site, here in units.items():
            (self.by_name[site].fusions[name],) = here
        self.fusions[name] = shared

    def remove_fusion(self, name: str) -> None:
        """Take a fusion's units away."""
        for site in self.by_name.values():
            site.fusions.pop(name, None)
        del self.fusions[name]

    def refresh(self) -> None:
        """Hooks where units are, none where none are; plans are made anew."""
        for handle in self._handles:
            handle.remove()
        self._plans.clear()
        used = [site for site in self.by_name.values() if site.units]
        self._attended = any(isinstance(site, RegistryAttentionSite) for site in used)
        self._prompts = [site for site in used if isinstance(site, PromptSite)]
        if not self._attended:
            attention.uninstall(self.model)
        self.forget()
        # a forward begins before anything acts in it, and ends after
        begin = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self._inputs]
        act = [] if self.words is None else list(self.words.hook())  # before what changes the looked-up words
        act += [handle for site in used for handle in site.hook()]
        act += [] if self.words is None else self.words.hook_head()
        if used:
            act += [
                module.register_forward_pre_hook(partial(self._learn, stack, Arguments(module)), with_kwargs=True)
                for stack, module in masked_at(self.model, self.architecture).items()
            ]
        end = [module.register_forward_hook(self._leave, always_call=True) for module in self._inputs]
        self._handles = [*begin, *act, *end]

    @staticmethod
    def refuse_second(model: PreTrainedModel) -> None:
        """Refuse a model whose forwards others begin already: each would hide its adapters from the other's.

        Raises:
            UnsupportedError: it has adapters around it, or is the copy of such a model.
        """
        hooks = [hook for module in entrances(model) for hook in module._forward_pre_hooks.values()]
        if any(isinstance(getattr(hook, "__self__", None), Sites) for hook in hooks):
            raise UnsupportedError(
                f"This {type(model).__name__} has adapters around it already: adaptrain.init() was called on it, or on "
                "what it is a copy of. Go on with that adapted model, or load the base model again"
            )

    def detach(self) -> None:
        """Take all hooks from the model, which others shall serve from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        attention.uninstall(self.model)

    def accept(self, tree: Composition | None) -> None:
        """Refuse a composition that this model cannot run.

        Raises:
            CompositionError: it names an adapter or a fusion that the model does not have.
            UnsupportedError: a block that has no meaning for its adapters; names block, methods and model.
        """
        check_adapters(tree, list(self.methods))
        if self.words is not None and self.words.active is not None:
            self._without_words(tree)
        refuse(tree, self.by_name.values(), self.methods, self.fusions, str(self.model.config.model_type))
        check_fusions(tree, list(self.fusions))

    def activate(self, tree: Composition | None, skipped: frozenset[int]) -> None:
        """Say which composition is in force, outside of which layers. Its plan is made here, not in the first forward,
        whose compiled graph would serve no other."""
        self.active, self.skipped = tree, skipped
        self.plan(tree, skipped)
        self.forget()

    def _without_words(self, tree: Composition | None) -> None:
        """Refuse adapters of the model's own words where others are in force."""
        for site in self.by_name.values():
            if site.point.role == "words" and (found := [name for name in names(tree) if name in site.units]):
                raise UnsupportedError(
                    f"'{found[0]}' adapts the base model's own words ({site.point.name}), and other embeddings are "
                    "active; set_active_embeddings('default') first"
                )

    def forget(self) -> None:
        """End what an interrupt has left open in this thread; torch runs no hook after one."""
        forward = current_forward()
        if forward is not None and forward.owner is self:
            leave(forward)

    def layers(self, named: Iterable[int]) -> frozenset[int]:
        """Layers that the caller names, checked.

        Raises:
            CompositionError: the model does not have one of them.
        """
        layers = frozenset(named)
        if problem := absent("skip_layers", layers, self.points):
            raise CompositionError(problem)
        return layers

    def plan(self, tree: Composition | None, skipped: frozenset[int] = frozenset()) -> Mapping[Site, Composition]:
        """The composition pruned to every site outside the skipped layers, made once."""
        if tree is None:
            return {}
        if (tree, skipped) not in self._plans:
            if self.words is not None and self.words.active is not None:
                self._without_words(tree)  # an active adapter may have been replaced since it was accepted
            sites = [site for site in self.by_name.values() if site.point.layer not in skipped]
            pruned = {site: prune(tree, site.units.__contains__) for site in sites}
            self._plans[tree, skipped] = {site: here for site, here in pruned.items() if here is not None}
        return self._plans[tree, skipped]

    def undone(self, hidden: Tensor) -> Tensor:
        """Hidden states with what the composition in force does to the embeddings undone, for an output embedding
        outside of the model: that of a named head."""
        setup = current_setup()
        tree = self.active if setup is None else setup.composition
        inverted = self.inverted(tree)
        if inverted:
            tree, tasks = routed(tree, hidden.shape[0])
            for site in inverted:
                hidden = site.undone(self.plan(tree)[site], EmbeddingState(hidden, tasks=tasks))
        return hidden

    def inverted(self, tree: Composition | None) -> list[EmbeddingSite]:
        """Where a composition changes embeddings in a way that is undone before the output embedding."""
        return [site for site in self.plan(tree) if isinstance(site, EmbeddingSite)]

    def word_table(self) -> Tensor:
        """The embeddings of words in force, (words, embedding size).

        Raises:
            UnsupportedError: the model looks up no words, or its stacks have words of their own each.
        """
        if self.words is None:
            self.words = Words(self.model, self.architecture)
        return self.words.weight if self.words.active is None else self.words.active.weight

    def has_prompt(self, tree: Composition | None) -> bool:
        """Whether a composition reads more than the words."""
        return any(site in self.plan(tree) for site in self._prompts)

    def merge(self, name: str) -> None:
        """Work an adapter into the base weights, but for the skipped layers; no composition is active then.

        Raises:
            UnsupportedError: it cannot be merged; the weights are what they were.
        """
        if self.words is not None and self.words.active is not None:
            self._without_words(name)
        merged = Merged(name, self.active)
        merged.work_in([site for site in self.by_name.values() if site.point.layer not in self.skipped], self.model)
        self.merged, self.active = merged, None
        self.forget()

    def unmerge(self) -> None:
        """Give the base its weights back, and the composition that was active."""
        if self.merged is not None:
            self.merged.undo()
            self.merged, self.active = None, self.merged.active
            self.forget()

    def begin(
        self, tree: Composition | None, skipped: frozenset[int], entrance: nn.Module, named: Mapping[str, Any]
    ) -> Forward:
        """A forward with this composition, its tokens known and its shared values computed."""
        if self.model.training:
            adopt(self._recomputable)  # others may have marked layers since
        if self._attended:
            attention.install(self.model)  # somebody else may have chosen another implementation since
        forward = Forward(self, self.plan(tree, skipped), entrance)
        forward.tokens = self._tokens(entrance, named)
        for name in names(tree):
            forward.once |= {module: module.compute() for module in self.shared[name]}
        for block in blocks(tree):
            if isinstance(block, Fuse):
                forward.once |= {module: module.compute() for module in self.fusions[block.fusion]}
        return forward

    def _masks(self, entrance: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
        """Stack → the mask that a forward is given for it, or None."""
        keys = {stack.name: stack.mask for stack in self.architecture.stacks}
        if self._alone(entrance):
            keys = {"encoder": "encoder_attention_mask", "decoder": "attention_mask"}
        return {stack: None if key is None else named.get(key) for stack, key in keys.items()}

    def _visible(self, entrance: nn.Module, named: Mapping[str, Any]) -> dict[str, Tensor | None]:
        """Stack → which of its positions are tokens."""
        last = self.architecture.stacks[-1]
        return {
            stack: decoded_positions(mask, rows_of(named))
            if last.causal and stack == last.name
            else visible_positions(mask)
            for stack, mask in self._masks(entrance, named).items()
        }

    def _tokens(self, entrance: nn.Module, named: Mapping[str, Any]) -> dict[str, Tokens]:
        visible = self._visible(entrance, named)
        tokens = {stack: Tokens(each) for stack, each in visible.items()}
        decoder = self.architecture.stacks[-1]
        if decoder.causal:
            pair = self.architecture.encoder_decoder and entrance in (self.model, self.model.base_model)
            keys = ("decoder_input_ids", "decoder_inputs_embeds") if pair else ("input_ids", "inputs_embeds")
            text = next((named[key] for key in keys if named.get(key) is not None), None)
            generates, mask = current_prompt(), self._masks(entrance, named)[decoder.name]
            past = positions_cached(named, text, mask, generates is not None)
            tokens[decoder.name] = Tokens(visible[decoder.name], past, generates)
        return tokens

    def _alone(self, entrance: nn.Module) -> bool:
        """Whether a forward enters the decoder of an encoder-decoder, past the model around it."""
        return self.architecture.encoder_decoder and entrance is getattr(self.model.base_model, "decoder", None)

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        forward = current_forward()
        if forward is not None and forward.owner is self:
            if forward.entrance is not module:
                forward.depth += 1
                return None
            leave(forward)  # nobody enters a module twice: the last forward was interrupted, and torch ran no hook then
        setup, tree, skipped = current_setup(), self.active, self.skipped
        if setup is not None:
            tree, skipped = setup.composition, self.layers(setup.skip_layers)
            self.accept(tree)
            if self.merged is not None:
                raise UnsupportedError(
                    f"AdapterSetup({tree}) cannot be in force while '{self.merged.name}' is merged into the base "
                    "model; call reset_adapter() first"
                )
        given = dict(zip(self._inputs[module], args, strict=False)) | kwargs
        named = repeated(given, 1 if current_rows() is not None else width(tree))
        tree, tasks = routed(tree, rows_of(named))
        keys = embeds_keys(self.architecture, self._alone(module))
        check_given(self.plan(tree, skipped), keys, named, self.model.config)
        forward = self.begin(tree, skipped, module, named)
        forward.tasks, forward.past = tasks, positions_before(tree, forward, self.architecture.stacks[-1], named)
        text = next((named[key] for key in ("input_ids", "inputs_embeds") if named.get(key) is not None), None)
        if text is not None and len(forward.tokens) == 1 and not forward.past and not self.has_prompt(tree):
            check_positions(tree, text.shape[1])
        enter(forward)
        try:
            widened = self._widen(forward, module, embedded(forward, keys, named))
            return None if widened is given else ((), widened)
        except BaseException:
            leave(forward)
            raise

    def _learn(
        self, stack: str, arguments: Arguments, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Which positions are tokens, where the model itself finds out on the way."""
        forward = current_forward()
        if forward is not None and forward.owner is self:
            forward.tokens[stack] = Tokens(visible_positions(arguments.named(args, kwargs).get("attention_mask")))

    def _widen(self, forward: Forward, module: nn.Module, named: dict[str, Any]) -> dict[str, Any]:
        """What the model is given, with room for a prompt."""
        widened = named
        for site in self._prompts:
            if site in forward.plan:
                widened = site.widen(forward, widened, self._alone(module))
        if widened is named:
            return named
        for stack, visible in self._visible(module, widened).items():
            forward.tokens[stack] = forward.tokens[stack].with_visible(visible)
        return widened

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = current_forward()
        if forward is not None and forward.owner is self:
            forward.depth -= 1
            if forward.depth == 0:
                leave(forward)
                if output is not None:  # None where the model has raised an error
                    check_attended(forward)
