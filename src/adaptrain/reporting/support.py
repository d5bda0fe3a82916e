"""`docs/support.md`: what goes together, worked out from the tables of architectures and the methods' own questions.

No model is made: a table says which points a model of its kind has, and a method which of them it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from transformers import AutoConfig, BertConfig, EncoderDecoderConfig, PreTrainedConfig
from transformers.utils import logging

from adaptrain.architectures import Architecture, Attention, Stack, architecture_of, architectures
from adaptrain.composition import BLOCKS
from adaptrain.interop.adapterhub.families import FAMILIES
from adaptrain.methods import LoRAConfig, MethodConfig, presets
from adaptrain.points import Point

VARIANTS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "beit": (("with relative positions", {"use_relative_position_bias": True}),),
    "bert": (("as a decoder with cross-attention", {"is_decoder": True, "add_cross_attention": True}),),
    "dinov2": (("giant", {"use_swiglu_ffn": True}),),
    "gpt2": (("with cross-attention", {"add_cross_attention": True}),),
    "t5": (("gated", {"feed_forward_proj": "gated-gelu"}),),
    "wav2vec2": (("stable", {"do_stable_layer_norm": True}),),
}
"""Model types whose table depends on the config, and what of the config makes the difference."""

OPTIONS: dict[str, MethodConfig] = {
    "`gate_lora`": LoRAConfig(gate_lora=True),
    "`embeddings_lora`": LoRAConfig(embeddings_lora=True),
}
"""Options of methods that not every architecture has a place for."""


def sketch(architecture: Architecture) -> list[Point]:
    """The points that a table promises, for stacks of two layers; sizes are left at zero."""
    points: list[Point] = []
    for number, stack in enumerate(architecture.stacks):
        point = Point("", stack.name, -1, "", "", "", 0, 0, 0, 0, 0, architecture.encoder_decoder, stack.causal)
        points += _embeddings(stack, point)
        for index in (0, 1):
            points += _layer(stack, replace(point, layer=2 * number + index), f"{stack.name}.{index}")
    return points


def _layer(stack: Stack, point: Point, prefix: str) -> Iterator[Point]:
    for name in stack.projections:
        sublayer, role = name.split(".")
        yield replace(point, kind="projection", sublayer=sublayer, role=role, name=f"{prefix}.{name}")
    if "mlp.down" in stack.projections:
        yield replace(point, kind="activation", sublayer="mlp", name=f"{prefix}.mlp.activation")
    for name in stack.sublayers:
        yield replace(point, kind="sublayer", sublayer=name, name=f"{prefix}.{name}")
    yield replace(point, kind="layer", name=f"{prefix}.hidden")
    for name in stack.attentions:
        yield replace(point, kind="attention", sublayer=name, name=f"{prefix}.{name}.key_value")


def _embeddings(stack: Stack, point: Point) -> Iterator[Point]:
    point, start = replace(point, sublayer="embeddings"), f"{stack.name}.embeddings"
    if stack.embeddings.words is not None:
        yield replace(point, kind="projection", role="words", name=f"{start}.words")
    if stack.embeddings.output is not None:
        yield replace(point, kind="embedding", name=f"{start}.output")
    if stack.prompt is not None:
        yield replace(point, kind="prompt", name=f"{start}.prompt")


def lines() -> dict[str, Architecture]:
    """What stands in the first column → its table."""
    found = {}
    for model_type in sorted(architectures()):
        for words, changes in (("", {}), *VARIANTS.get(model_type, ())):
            found[f"`{model_type}`{f', {words}' if words else ''}"] = architecture_of(_config(model_type, changes))
    return found


def _config(model_type: str, changes: dict[str, Any]) -> PreTrainedConfig:
    if model_type == "encoder-decoder":
        decoder = BertConfig(is_decoder=True, add_cross_attention=True)
        return EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(), decoder)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # CLIP's defaults contradict each other
    try:
        return AutoConfig.for_model(model_type, **changes)
    finally:
        logging.set_verbosity(level)


def overview() -> tuple[list[str], list[list[str]]]:
    """Heads and rows: what each table has."""
    heads = ["model type", "stacks", "MLP", "attention", "reached", "AdapterHub"]
    return heads, [_what(line, table) for line, table in lines().items()]


def page() -> str:
    """The whole page, in Markdown."""
    tables = lines()
    asked = {**{f"`{name}`": make() for name, make in sorted(presets().items())}, **OPTIONS}
    answers = {
        name: tuple(next(config.missing(sketch(table)), "") for table in tables.values())
        for name, config in asked.items()
    }
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, answer in answers.items():
        columns.setdefault(answer, []).append(name)
    everywhere = columns.pop(("",) * len(tables), [])
    reasons = list(dict.fromkeys(reason for answer in columns for reason in answer if reason))
    marks = {"": "✓"} | {reason: f"– ({number})" for number, reason in enumerate(reasons, 1)}
    heads = ["model type", "table", "everything else", *(", ".join(names) for names in columns.values())]
    rows = [
        [line, table.name, "✓", *(marks[answer[number]] for answer in columns)]
        for number, (line, table) in enumerate(tables.items())
    ]
    parts = [
        _INTRO,
        "## Methods\n",
        f"*Everything else* is {', '.join(everywhere)}, and unions of them.\n",
        _table(heads, rows),
        "",
        *(f"({number}) {reason}." for number, reason in enumerate(reasons, 1)),
        "",
        "What is refused is refused when the adapter is added, by name and with this reason.\n",
        "## Blocks\n",
        _table(["block", "over"], _blocks()),
        "",
        "(¹) Not over the queries and keys of a DeBERTa-v2 with `share_att_key`, whose maps also read relative",
        "positions, which all rows share. Blocks nest; what has no meaning is refused when it is activated.",
        "",
        "## What a table has\n",
        "`q k v o` are the projections of attention; *fused* ones are parts of one module. *Reached* says how keys and",
        "values are: by transformers' attention registry, in the module's own method, or computed anew. *AdapterHub*",
        "says whether `load_adapter` reads that library's folders ([deviations.md](deviations.md) has the reasons).\n",
        _table(*overview()),
        "",
        _MORE,
    ]
    return "\n".join(parts)


_RUN_OVER = {
    "stack": "every method",
    "fuse": "bottlenecks and Compacter; not their invertible parts, and nothing that acts at another place",
    "split": "every method but prefixes and prompts, which have no share of the text's positions",
    "batchsplit": "every method (¹); prompts of equal length",
    "parallel": "every method (¹); prompts of equal length",
    "average": "every method but invertible adapters, whose mean has no inverse; prefixes and prompts of equal length",
    "multitask": "every method (¹); prompts of equal length",
}


def _blocks() -> list[list[str]]:
    return [["a single adapter", "every method"], *([f"`{BLOCKS[key].__name__}`", _RUN_OVER[key]] for key in BLOCKS)]


def _what(line: str, table: Architecture) -> list[str]:
    first = table.stacks[-1]
    stacks = ", ".join(stack.name + (" (causal)" if stack.causal else "") for stack in table.stacks)
    mlp = "gate, up, down" if "mlp.gate" in first.projections else "up, down"
    fused = first.projections["attention.query"].parts > 1
    attention = f"q k v o{', fused' if fused else ''}{', cross' if 'cross_attention' in first.attentions else ''}"
    return [line, stacks, mlp, attention, _reached(first.attentions["attention"]), _folders(line.split("`")[1], first)]


def _reached(row: Attention) -> str:
    if row.method is not None:
        return f"`{row.method}`"
    return "registry" if row.output is None else "computed anew"


def _folders(model_type: str, stack: Stack) -> str:
    if model_type == "encoder-decoder":
        return "read"
    family = FAMILIES.get(model_type)
    places = [] if family is None else [place for each in family.projections.values() for place in each]
    if family is None or any(f"{name}.query" not in places for name in stack.attentions):
        return "–"
    return "read, without bottlenecks" if family.no_bottleneck else "read"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


_INTRO = """# What goes together

Made from the tables in `src/adaptrain/architectures/` by `make support`; a test compares. Every ✓ is run by the test
matrix on a tiny random model (`tests/test_matrix.py`), and every refusal is asked for.
"""

_MORE = """## A model that is not here

See [architectures.md](architectures.md): one word for a LLaMA-like model, a YAML file for one of your own.
"""
