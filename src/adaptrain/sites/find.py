"""From a table to the sites of one live model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain.architectures import Architecture, Attention, Prompt, Stack, Sublayer
from adaptrain.points import LinearPart, Point, WordReader, linear_sizes, module_at, modules_at
from adaptrain.sites.base import Site
from adaptrain.sites.computed import ComputedAttentionSite, DisentangledAttentionSite
from adaptrain.sites.embedding import EmbeddingSite, PromptSite
from adaptrain.sites.hidden import LayerSite, SublayerSite
from adaptrain.sites.key_value import MethodAttentionSite, RegistryAttentionSite
from adaptrain.sites.paths import check_paths
from adaptrain.sites.projection import ActivationSite, ProjectionSite

_ORDER = ("projection", "activation", "sublayer", "layer", "attention", "embedding", "prompt")


def find(model: PreTrainedModel, architecture: Architecture) -> list[Site]:
    """All sites of a model, by kind and then by layer.

    Raises:
        UnsupportedError: paths of the table are not in the model; names all of them, their layers and the nearest
            modules.
    """
    check_paths(model, architecture)
    base: Any = model.base_model
    sites: list[Site] = []
    before = 0
    for stack in architecture.stacks:
        point = Point("", stack.name, -1, "", "", "", 0, 0, 0, 0, 0, architecture.encoder_decoder, stack.causal)
        place = f"the {architecture.name} table"
        for index, layer in enumerate(modules_at(base, stack.layers, place)):
            here = replace(point, layer=before, name=f"{stack.name}.{index}")
            found = list(_layer_sites(layer, stack, here, f"layer {index} of the {stack.name}"))
            if index == 0:
                size = found[0].point.hidden_size
                sites += _embedding_sites(model, stack, replace(point, hidden_size=size), place)
            sites += found
            before += 1
    _share_positions(sites)
    return sorted(sites, key=lambda site: _ORDER.index(site.point.kind))  # stable


def _share_positions(sites: list[Site]) -> None:
    """Tell each attention whose relative positions it uses: those of the first layer (T5)."""
    first: dict[tuple[str, str], nn.Module] = {}
    for site in sites:
        if isinstance(site, RegistryAttentionSite):
            module = first.setdefault((site.point.stack, site.point.sublayer), site.module)
            if getattr(module, "has_relative_attention_bias", False):
                site.relative = module


def _embedding_sites(model: PreTrainedModel, stack: Stack, point: Point, place: str) -> Iterator[Site]:
    base, row = model.base_model, stack.embeddings
    name, size = f"{stack.name}.embeddings", point.hidden_size
    words = None if row.words is None else module_at(base, row.words, place)
    point = replace(point, sublayer="embeddings")
    if words is not None:
        size, count = linear_sizes(words)
        part = LinearPart(words)
        here = replace(point, kind="projection", role="words", name=f"{name}.words", map=part)
        yield ProjectionSite(replace(here, in_features=count, out_features=size), part, stack.name)
    point = replace(point, in_features=size, out_features=size)
    if row.output is not None:
        here = replace(point, kind="embedding", name=f"{name}.output")
        scale = 1.0 if stack.prompt is None else _scale(stack.prompt, base, place)
        output = module_at(base, row.output, place)
        yield EmbeddingSite(here, output, _output_embedding(model), output is words, scale)
    if stack.prompt is not None:
        here = replace(point, kind="prompt", name=f"{name}.prompt")
        if words is not None:
            here = replace(here, reader=WordReader(model, words))
        yield _prompt(here, base, words, stack.prompt, place)


def _prompt(point: Point, base: nn.Module, words: nn.Module | None, row: Prompt, place: str) -> PromptSite:
    behind = None if row.behind is None else module_at(base, row.behind, place)
    end = None if row.end is None else module_at(base, row.end, place)
    return PromptSite(point, words, behind, module_at(base, row.reader, place), end, _scale(row, base, place))


def _scale(row: Prompt, base: nn.Module, place: str) -> float:
    """What the module that reads words multiplies those with that it looks up itself."""
    return 1.0 if row.scale is None else float(getattr(module_at(base, row.reader, place), row.scale))


def _output_embedding(model: PreTrainedModel) -> nn.Module | None:
    found = model.get_output_embeddings()
    return found if isinstance(found, nn.Module) else None


def _layer_sites(layer: nn.Module, stack: Stack, point: Point, place: str) -> Iterator[Site]:
    prefix = point.name
    parts = {name: _part(layer, stack, name, place) for name in stack.projections}
    size = linear_sizes(parts["attention.output"].module)[0]
    point = replace(point, hidden_size=size, in_features=size, out_features=size)
    for name, part in parts.items():
        sublayer, role = name.split(".")
        here = replace(
            point,
            kind="projection",
            sublayer=sublayer,
            role=role,
            name=f"{prefix}.{name}",
            in_features=linear_sizes(part.module)[1],
            out_features=part.size,
            by_row=not _reads_positions(layer, stack, sublayer, role, place),
            map=part,
        )
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
        module = module_at(layer, row.path, place)
        if getattr(module, "head_logits_proj", None) is None:  # DeBERTa's heads that talk have no keys of their own
            yield _attention(here, module, layer, row, parts, place)


def _reads_positions(layer: nn.Module, stack: Stack, sublayer: str, role: str, place: str) -> bool:
    """Whether a map also reads relative positions, once for all rows (DeBERTa-v2 with `share_att_key`)."""
    if role not in ("query", "key") or sublayer not in stack.attentions:
        return False
    return bool(getattr(module_at(layer, stack.attentions[sublayer].path, place), "share_att_key", False))


def _part(layer: nn.Module, stack: Stack, name: str, place: str) -> LinearPart:
    row, width, sublayer = stack.projections[name], 0, name.partition(".")[0]
    module = module_at(layer, row.path, place)
    if row.layout == "grouped":
        width = linear_sizes(module_at(layer, stack.projections[f"{sublayer}.output"].path, place))[1]
    elif row.layout == "interleaved":
        attention = stack.attentions[sublayer]
        width = int(getattr(module_at(layer, attention.path, place), attention.head_size))
    return LinearPart(module, row.part, row.parts, row.layout, width)


def _sublayer(point: Point, layer: nn.Module, row: Sublayer, place: str) -> SublayerSite:
    norm, beside = (None if path is None else module_at(layer, path, place) for path in (row.norm, row.beside))
    output, residual = module_at(layer, row.output, place), module_at(layer, row.residual, place)
    return SublayerSite(point, output, residual, row.argument, norm, beside)


def _attention(
    point: Point, module: nn.Module, layer: nn.Module, row: Attention, parts: Mapping[str, LinearPart], place: str
) -> Site:
    size = int(getattr(module, row.head_size))
    point = replace(point, heads=parts[f"{point.sublayer}.key"].size // size, head_dim=size)
    if row.method is not None and (hasattr(module, row.method) or not row.or_registry):
        return MethodAttentionSite(point, module, row.method)
    if row.output is None:
        return RegistryAttentionSite(point, module)
    roles = {role: parts[f"{point.sublayer}.{role}"] for role in ("query", "key", "value")}
    output = module_at(layer, row.output, place)
    if row.bias is None:
        return ComputedAttentionSite(point, module, roles, output)
    return DisentangledAttentionSite(point, module, roles, output, row.bias)
