"""Post-norm encoders with output modules: BERT and its kin, DeBERTa, X-MOD, MPNet.

A BERT that was made as a decoder has cross-attention in its table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Prompt,
    Stack,
    Sublayer,
    register_architecture,
)

_EMBEDDINGS = Embeddings("embeddings.word_embeddings", output="embeddings")


def _attention(name: str, path: str) -> dict[str, Projection]:
    parts = {role: Projection(f"{path}.self.{role}") for role in ("query", "key", "value")}
    return {f"{name}.{role}": part for role, part in (parts | {"output": Projection(f"{path}.output.dense")}).items()}


def _sublayer(path: str) -> Sublayer:
    return Sublayer(f"{path}.dropout", residual=path, argument=1, norm=f"{path}.LayerNorm")


_ENCODER = Stack(
    name="encoder",
    layers="encoder.layer",
    projections=_attention("attention", "attention")
    | {"mlp.up": Projection("intermediate.dense"), "mlp.down": Projection("output.dense")},
    sublayers={"attention": _sublayer("attention.output"), "mlp": _sublayer("output")},
    attentions={"attention": Attention("attention.self", head_size="attention_head_size")},
    embeddings=_EMBEDDINGS,
    prompt=Prompt(behind="embeddings", end="encoder"),
)


def bert(config: Any) -> Architecture:
    """BERT, RoBERTa, XLM-R, ELECTRA, BERT-generation; an encoder, or a decoder with or without cross-attention."""
    stack = _ENCODER
    if getattr(config, "add_cross_attention", False):
        stack = replace(
            stack,
            projections={**stack.projections, **_attention("cross_attention", "crossattention")},
            sublayers={**stack.sublayers, "cross_attention": _sublayer("crossattention.output")},
            attentions={
                **stack.attentions,
                "cross_attention": Attention("crossattention.self", head_size="attention_head_size"),
            },
        )
    return Architecture("bert", (replace(stack, causal=bool(getattr(config, "is_decoder", False))),))


register_architecture(("bert", "roberta", "xlm-roberta", "electra", "bert-generation"), bert)


def xmod(config: Any) -> Architecture:
    """X-MOD: RoBERTa with adapters of its own behind each layer, which stay. Its norms may stand before."""
    known = bert(config).stacks[0]
    sublayers = dict(known.sublayers)
    if config.pre_norm:
        sublayers = {name: replace(row, norm=None) for name, row in sublayers.items()}
        sublayers["attention"] = replace(sublayers["attention"], residual="attention", argument=0)
        if "cross_attention" in sublayers:
            sublayers["cross_attention"] = replace(sublayers["cross_attention"], residual="crossattention", argument=0)
    # what follows the addition is the norm of the model's own adapter, if that is all that reads the sum
    own = (
        "adapter_layer_norm" if config.adapter_layer_norm else "LayerNorm" if config.adapter_reuse_layer_norm else None
    )
    norm = f"output.{own}" if own is not None and config.ln_before_adapter else None
    sublayers["mlp"] = replace(sublayers["mlp"], norm=norm)
    return Architecture("xmod", (replace(known, sublayers=sublayers),))


register_architecture(("xmod",), xmod)

# DeBERTa computes attention inside its own forward. Queries, keys and values of a head lie one after the other in one
# map; in DeBERTa-v2 they are three, and the keys' may also serve the relative positions.
_DEBERTA = replace(_ENCODER, prompt=Prompt(behind="embeddings", end=""))

register_architecture(
    ("deberta",),
    Architecture(
        "deberta",
        (
            replace(
                _DEBERTA,
                projections={
                    **_ENCODER.projections,
                    **{
                        f"attention.{role}": Projection("attention.self.in_proj", part, 3, "interleaved")
                        for part, role in enumerate(("query", "key", "value"))
                    },
                },
                attentions={
                    "attention": Attention(
                        "attention.self",
                        head_size="attention_head_size",
                        output="attention.output.dense",
                        bias="disentangled_att_bias",
                    )
                },
            ),
        ),
    ),
)

register_architecture(
    ("deberta-v2",),
    Architecture(
        "deberta-v2",
        (
            replace(
                _DEBERTA,
                projections={
                    **_ENCODER.projections,
                    **{f"attention.{r}": Projection(f"attention.self.{r}_proj") for r in ("query", "key", "value")},
                },
                attentions={
                    "attention": Attention(
                        "attention.self",
                        head_size="attention_head_size",
                        output="attention.output.dense",
                        bias="disentangled_attention_bias",
                    )
                },
            ),
        ),
    ),
)

register_architecture(
    ("mpnet",),
    Architecture(
        "mpnet",
        (
            replace(
                _ENCODER,
                projections={
                    **_ENCODER.projections,
                    **{
                        f"attention.{role}": Projection(f"attention.attn.{role[0]}")
                        for role in ("query", "key", "value", "output")
                    },
                },
                sublayers={
                    **_ENCODER.sublayers,
                    "attention": Sublayer("attention.dropout", residual="attention", norm="attention.LayerNorm"),
                },
                # MPNet computes attention inside its own forward, with a relative position bias.
                attentions={
                    "attention": Attention("attention.attn", head_size="attention_head_size", output="attention.attn.o")
                },
            ),
        ),
    ),
)
