"""From a table to the sites of one live model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain.architectures import Architecture, Attention, Stack, Sublayer
from adaptrain.points import LinearPart, Point, WordReader, linear_sizes, module_at
from adaptrain.sites.base import Site
from adaptrain.sites.embedding import EmbeddingSite, PromptSite
from adaptrain.sites.hidden import LayerSite, SublayerSite
from adaptrain.sites.key_value import AttentionSite, ComputedAttentionSite
from adaptrain.sites.projection import ActivationSite, ProjectionSite

_ORDER = ("projection", "activation", "sublayer", "layer", "attention", "embedding", "prompt")


def find(model: PreTrainedModel, architecture: Architecture) -> list[Site]:
    """All sites of a model, by kind and then by layer.

    Raises:
        UnsupportedError: a path of the table is not in the model; names layer, path and nearest module.
    """
    base: Any = model.base_model
    sites: list[Site] = []
    before = 0
    for stack in architecture.stacks:
        causal = stack.name == "decoder" or bool(getattr(base.config, "is_decoder", False))
        size, both = base.config.hidden_size, len(architecture.stacks) > 1
        point = Point("", stack.name, -1, "", "", "", size, size, size, 0, 0, both, causal)
        sites += _embedding_sites(model, stack, point, f"the {architecture.name} table")
        layers = module_at(base, stack.layers, f"the {architecture.name} table")
        for index, layer in enumerate(layers):
            here = replace(point, layer=before + index, name=f"{stack.name}.{index}")
            sites += _layer_sites(layer, stack, here, f"layer {index} of the {stack.name}")
        before += len(layers)
    return sorted(sites, key=lambda site: _ORDER.index(site.point.kind))  # stable


def _embedding_sites(model: PreTrainedModel, stack: Stack, point: Point, place: str) -> Iterator[Site]:
    base, row = model.base_model, stack.embeddings
    words = module_at(base, row.words, place)
    size, count = linear_sizes(words)
    point = replace(point, sublayer="embeddings", out_features=size)
    part = LinearPart(words)
    name = f"{stack.name}.embeddings"
    here = replace(point, kind="projection", role="words", name=f"{name}.words", in_features=count, map=part)
    yield ProjectionSite(here, part, stack.name)
    if row.output is None:
        return
    point = replace(point, in_features=size)
    output = module_at(base, row.output, place)
    yield EmbeddingSite(replace(point, kind="embedding", name=f"{name}.output"), output, _output_embedding(model))
    if row.prompt is not None:
        here = replace(point, kind="prompt", name=f"{name}.prompt", reader=WordReader(model, words))
        end = None if row.end is None else module_at(base, row.end, place)
        behind = output if row.prompt == "behind" else None
        yield PromptSite(here, words, behind, module_at(base, row.reader, place), end)


def _output_embedding(model: PreTrainedModel) -> nn.Module | None:
    found = model.get_output_embeddings()
    return found if isinstance(found, nn.Module) else None


def _layer_sites(layer: nn.Module, stack: Stack, point: Point, place: str) -> Iterator[Site]:
    prefix, parts = point.name, {}
    for name, row in stack.projections.items():
        parts[name] = part = LinearPart(module_at(layer, row.path, place), row.part, row.parts)
        sublayer, role = name.split(".")
        here = replace(point, kind="projection", sublayer=sublayer, role=role, name=f"{prefix}.{name}", map=part)
        here = replace(here, in_features=linear_sizes(part.module)[1], out_features=part.size)
        other = sublayer == "cross_attention" and role in ("key", "value")
        yield ProjectionSite(here, part, "encoder" if other else stack.name)
        if name == "mlp.down":
            width = {"in_features": here.in_features, "out_features": here.in_features}
            yield ActivationSite(
                replace(here, kind="activation", role="", name=f"{prefix}.mlp.activation", **width), part
            )
    for name, row in stack.sublayers.items():
        yield _sublayer(replace(point, kind="sublayer", sublayer=name, name=f"{prefix}.{name}"), layer, row, place)
    yield LayerSite(replace(point, kind="layer", name=f"{prefix}.hidden"), layer)
    for name, row in stack.attentions.items():
        here = replace(point, kind="attention", sublayer=name, name=f"{prefix}.{name}.key_value")
        yield _attention(here, layer, row, parts, place)


def _sublayer(point: Point, layer: nn.Module, row: Sublayer, place: str) -> SublayerSite:
    norm = None if row.norm is None else module_at(layer, row.norm, place)
    return SublayerSite(
        point, module_at(layer, row.output, place), module_at(layer, row.residual, place), row.argument, norm
    )


def _attention(point: Point, layer: nn.Module, row: Attention, parts: Mapping[str, LinearPart], place: str) -> Site:
    module = module_at(layer, row.path, place)
    size = int(getattr(module, row.head_size))
    point = replace(point, heads=parts[f"{point.sublayer}.key"].size // size, head_dim=size)
    if row.output is None:
        return AttentionSite(point, module)
    modules = {role: parts[f"{point.sublayer}.{role}"].module for role in ("query", "key", "value")}
    return ComputedAttentionSite(point, module, modules | {"output": module_at(layer, row.output, place)})
