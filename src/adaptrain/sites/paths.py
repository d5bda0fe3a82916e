"""Whether a table fits a live model: every path on every layer, all mistakes at once; and which tables fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain.architectures import Architecture, Stack, architecture_of, architectures, read_architecture
from adaptrain.attention import registered
from adaptrain.errors import AdaptrainError, UnsupportedError, listed, nearest, unknown
from adaptrain.points import entrances, has_module, linear_sizes, module_at, modules_at
from adaptrain.upstream import Arguments


def table_for(model: PreTrainedModel, given: str | Path | Mapping[str, Any] | Architecture | None) -> Architecture:
    """The table of a model: what is given, or that of its model type.

    Raises:
        UnsupportedError: its model type has none; names the tables that fit its modules.
        ConfigError: what is given is no table.
    """
    model_type = str(model.config.model_type)
    if given is not None:
        return _of_those(model.base_model, read_architecture(given)(model.config))
    if model_type in architectures():
        return _of_those(model.base_model, architecture_of(model.config))
    fit = fitting(model)
    if not fit:
        known = unknown("architecture for", model_type, sorted(architectures()), "The model types are")
        raise UnsupportedError(f"{known}. Its paths can be written down: architecture=./{model_type}.yaml")
    raise UnsupportedError(
        f"There is no architecture for '{model_type}', but its modules are named as in {listed(fit)}. If it computes "
        f"the same, say so: architecture={fit[0]} on the command line, adaptrain.init(model, architecture='{fit[0]}')"
    )


def _of_those(base: nn.Module, architecture: Architecture) -> Architecture:
    """The table of the stacks that are there, where a model may lack one: one tower of two, or half of an
    encoder-decoder."""
    there = [stack for stack in architecture.stacks if has_module(base, stack.layers.split(".", 1)[0])]
    if len(there) == len(architecture.stacks) or not there or not all(stack.optional for stack in architecture.stacks):
        return architecture
    if architecture.encoder_decoder:  # its mask is the model's, and nobody attends to its prompt
        (half,) = there
        prompt = None if half.prompt is None else replace(half.prompt, end=half.prompt.end or half.prompt.reader)
        there = [replace(half, prompt=prompt, mask=half.mask and "attention_mask")]
    return replace(architecture, stacks=tuple(there))


def check_paths(model: PreTrainedModel, architecture: Architecture) -> None:
    """Refuse a table that does not fit.

    Raises:
        UnsupportedError: names each path that is not in the model, its layers, and the nearest module.
    """
    if problems := list(_problems(model.base_model, architecture)):
        kind = type(model.base_model).__name__
        lead = f"The architecture '{architecture.name}' does not fit this {kind}:"
        raise UnsupportedError("\n".join([lead, *(f"  {problem}" for problem in problems)]))


def masked_at(model: PreTrainedModel, architecture: Architecture) -> dict[str, nn.Module]:
    """Stack → the module that is given its mask, of the stacks whose mask counts something else outside."""
    paths = {stack.name: stack.mask_at for stack in architecture.stacks if stack.mask_at is not None}
    return {stack: module_at(model.base_model, path, "") for stack, path in paths.items()}


def check_masks(model: PreTrainedModel, architecture: Architecture, stacks: Collection[str]) -> None:
    """Refuse a model that does not take the masks of these stacks: its padding would count as tokens.

    Raises:
        UnsupportedError: names the argument.
    """
    forwards = [Arguments(module) for module in entrances(model)]
    for stack in architecture.stacks:
        if stack.name in stacks and stack.mask is not None and not any(stack.mask in each.names for each in forwards):
            forwards[0].require(stack.mask)
    for stack, module in masked_at(model, architecture).items():
        if stack in stacks:
            Arguments(module).require("attention_mask")


def fitting(model: PreTrainedModel) -> list[str]:
    """The model types whose tables fit a model, one a family; first the one that names most of its modules."""
    found: dict[str, tuple[int, str]] = {}
    for model_type, table in architectures().items():
        try:
            architecture = table(model.config)
        except (AdaptrainError, AttributeError):
            continue  # made from keys that this config does not have
        if not any(_problems(model.base_model, _of_those(model.base_model, architecture))):
            found.setdefault(architecture.name, (_named(architecture), model_type))
    return [model_type for _, model_type in sorted(found.values(), key=lambda each: -each[0])]


def _named(architecture: Architecture) -> int:
    """How many modules of a layer a table names."""
    paths = set()
    for stack in architecture.stacks:
        paths |= {(stack.name, row.path) for row in [*stack.projections.values(), *stack.attentions.values()]}
        paths |= {
            (stack.name, path)
            for row in stack.sublayers.values()
            for path in (row.output, row.residual, row.norm, row.beside)
        }
    return len(paths)


def _problems(base: nn.Module, architecture: Architecture) -> Iterator[str]:
    for stack in architecture.stacks:
        for key, path in _outside(stack):
            if not has_module(base, path):
                yield f"stacks.{stack.name}.{key}: {_absent(base, path, 'the model')}"
        try:
            layers = modules_at(base, stack.layers, "the model")
        except UnsupportedError:
            yield f"stacks.{stack.name}.layers: {_absent(base, stack.layers, 'the model')}"
            continue
        if not layers:
            yield f"stacks.{stack.name}.layers: '{stack.layers}' holds no layers"
            continue
        wrong: dict[tuple[str, str], list[int]] = {}
        for index, layer in enumerate(layers):
            for problem in _in_layer(layer, stack):
                wrong.setdefault(problem, []).append(index)
        for (key, problem), where in wrong.items():
            which = "every layer" if len(where) == len(layers) else f"layer {', '.join(map(str, where))}"
            yield f"stacks.{stack.name}.{key}: {problem} in {which}"


def _outside(stack: Stack) -> Iterator[tuple[str, str]]:
    """The paths below the base model."""
    rows: list[tuple[str, Any]] = [("embeddings", stack.embeddings), ("prompt", stack.prompt)]
    for key, row in rows:
        for name in ("words", "output", "behind", "reader", "end"):
            path = getattr(row, name, None)
            if path is not None:
                yield f"{key}.{name}", path
    if stack.mask_at is not None:
        yield "mask_at", stack.mask_at


def _in_layer(layer: nn.Module, stack: Stack) -> Iterator[tuple[str, str]]:
    for name, row in stack.projections.items():
        key = f"projections.{name}"
        if not has_module(layer, row.path):
            yield key, _absent(layer, row.path)
            continue
        module = module_at(layer, row.path, "")
        if getattr(getattr(module, "weight", None), "dim", lambda: 0)() != 2 and not hasattr(module, "out_features"):
            yield key, f"'{row.path}' is a {type(module).__name__} and no linear map"
        elif not 0 <= row.part < row.parts:
            yield key, f"part is {row.part}, of {row.parts} parts counted from 0"
        elif row.layout == "equal" and linear_sizes(module)[0] % row.parts:
            yield key, f"the {linear_sizes(module)[0]} outputs of '{row.path}' are not {row.parts} equal parts"
    for place, row in stack.sublayers.items():
        for name in ("output", "residual", "norm", "beside"):
            path = getattr(row, name)
            if path is not None and not has_module(layer, path):
                yield f"sublayers.{place}.{name}", _absent(layer, path)
    for place, row in stack.attentions.items():
        for name in ("path", "output"):
            path = getattr(row, name)
            if path is not None and not has_module(layer, path):
                yield f"attentions.{place}.{name}", _absent(layer, path)
        if has_module(layer, row.path):
            module = module_at(layer, row.path, "")
            for name in ("head_size", "method", "bias"):
                attribute = getattr(row, name)
                if name == "method" and row.or_registry and registered(module):
                    continue
                if attribute is not None and not hasattr(module, attribute):
                    known = [each for each in dir(module) if not each.startswith("__")]
                    yield (
                        f"attentions.{place}.{name}",
                        f"'{row.path}' has no attribute '{attribute}'{nearest(attribute, known)}",
                    )


def _absent(module: nn.Module, path: str, place: str = "") -> str:
    known = [name for name, _ in module.named_modules() if name]
    return f"there is no module '{path}'{f' in {place}' if place else ''}{nearest(path, known)}"
