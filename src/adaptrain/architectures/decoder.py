"""LLaMA-like pre-norm decoders: rotary positions, grouped-query attention, gated MLP.

A model of this shape is one word in the first line that registers; one with norms behind its sublayers takes that line
and two more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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

_LLAMA = Stack(
    name="decoder",
    layers="layers",
    projections={
        "attention.query": Projection("self_attn.q_proj"),
        "attention.key": Projection("self_attn.k_proj"),
        "attention.value": Projection("self_attn.v_proj"),
        "attention.output": Projection("self_attn.o_proj"),
        "mlp.gate": Projection("mlp.gate_proj"),
        "mlp.up": Projection("mlp.up_proj"),
        "mlp.down": Projection("mlp.down_proj"),
    },
    sublayers={
        "attention": Sublayer("self_attn", residual="input_layernorm"),
        "mlp": Sublayer("mlp", residual="post_attention_layernorm"),
    },
    attentions={"attention": Attention("self_attn")},
    embeddings=Embeddings("embed_tokens", output="embed_tokens"),
    prompt=Prompt(end=""),
    causal=True,
)


def _decoder(
    *model_types: str, sublayers: Mapping[str, Sublayer] | None = None, fused: Mapping[str, Projection] | None = None
) -> None:
    """A LLaMA with other sublayers, or with other projections in place of some."""
    name = model_types[0]
    stack = replace(
        _LLAMA, sublayers=sublayers or _LLAMA.sublayers, projections={**_LLAMA.projections, **(fused or {})}
    )
    register_architecture(model_types, Architecture(name, (stack,), pooling="last"))


_decoder("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3")

_decoder(  # the norm is the end of the sublayer: what is added to the residual comes out of it
    "gemma2",
    "gemma3_text",
    sublayers={
        "attention": Sublayer("post_attention_layernorm", residual="input_layernorm"),
        "mlp": Sublayer("post_feedforward_layernorm", residual="pre_feedforward_layernorm"),
    },
)

_decoder(
    "olmo2",
    "olmo3",
    sublayers={
        "attention": Sublayer("post_attention_layernorm", residual="self_attn"),
        "mlp": Sublayer("post_feedforward_layernorm", residual="mlp"),
    },
)

_decoder(
    "phi3",
    sublayers={
        "attention": Sublayer("resid_attn_dropout", residual="input_layernorm"),
        "mlp": Sublayer("resid_mlp_dropout", residual="post_attention_layernorm"),
    },
    fused={
        "attention.query": Projection("self_attn.qkv_proj", 0, 3, "grouped"),
        "attention.key": Projection("self_attn.qkv_proj", 1, 3, "grouped"),
        "attention.value": Projection("self_attn.qkv_proj", 2, 3, "grouped"),
        "mlp.gate": Projection("mlp.gate_up_proj", 0, 2),
        "mlp.up": Projection("mlp.gate_up_proj", 1, 2),
    },
)
