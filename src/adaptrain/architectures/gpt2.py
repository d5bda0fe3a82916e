"""GPT-2, pre-norm with queries, keys and values in one Conv1D; and GPT-J, whose sublayers run side by side."""

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

_QKV = ("query", "key", "value")

_GPT2 = Stack(
    name="decoder",
    layers="h",
    projections={
        **{f"attention.{role}": Projection("attn.c_attn", part, 3) for part, role in enumerate(_QKV)},
        "attention.output": Projection("attn.c_proj"),
        "mlp.up": Projection("mlp.c_fc"),
        "mlp.down": Projection("mlp.c_proj"),
    },
    sublayers={"attention": Sublayer("attn", residual="ln_1"), "mlp": Sublayer("mlp", residual="ln_2")},
    attentions={"attention": Attention("attn")},
    embeddings=Embeddings("wte", output="drop"),
    prompt=Prompt(end=""),
    causal=True,
)


def gpt2(config: Any) -> Architecture:
    """GPT-2; with cross-attention where it was made to attend to an encoder."""
    stack = _GPT2
    if getattr(config, "add_cross_attention", False):
        stack = replace(
            stack,
            projections={
                **stack.projections,
                "cross_attention.query": Projection("crossattention.q_attn"),
                "cross_attention.key": Projection("crossattention.c_attn", 0, 2),
                "cross_attention.value": Projection("crossattention.c_attn", 1, 2),
                "cross_attention.output": Projection("crossattention.c_proj"),
            },
            sublayers={**stack.sublayers, "cross_attention": Sublayer("crossattention", residual="ln_cross_attn")},
            attentions={**stack.attentions, "cross_attention": Attention("crossattention")},
        )
    return Architecture("gpt2", (stack,), pooling="last")


register_architecture(("gpt2",), gpt2)

register_architecture(
    ("gptj",),
    Architecture(
        "gptj",
        (
            replace(
                _GPT2,
                projections={
                    **{f"attention.{role}": Projection(f"attn.{role[0]}_proj") for role in _QKV},
                    "attention.output": Projection("attn.out_proj"),
                    "mlp.up": Projection("mlp.fc_in"),
                    "mlp.down": Projection("mlp.fc_out"),
                },
                sublayers={
                    "attention": Sublayer("attn", residual="ln_1"),
                    "mlp": Sublayer("mlp", residual="ln_1", beside="attn"),
                },
                attentions={"attention": Attention("attn", method="_attn", or_registry=True)},  # from 5.24 on
            ),
        ),
        pooling="last",
    ),
)
