"""T5 and mT5: pre-norm encoder-decoders with relative positions; the MLP is plain or gated."""

from __future__ import annotations

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


def t5(config: Any) -> Architecture:
    """The table of a T5; `config.is_gated_act` says which MLP it has."""
    stacks = (_stack("encoder", 1, config.is_gated_act), _stack("decoder", 2, config.is_gated_act))
    return Architecture("t5", stacks, pooling="last")


def _stack(name: str, mlp: int, gated: bool) -> Stack:
    attentions = {"attention": "layer.0.SelfAttention"}
    sublayers = {"attention": Sublayer("layer.0.dropout", residual="layer.0")}
    if name == "decoder":
        attentions["cross_attention"] = "layer.1.EncDecAttention"
        sublayers["cross_attention"] = Sublayer("layer.1.dropout", residual="layer.1")
    sublayers["mlp"] = Sublayer(f"layer.{mlp}.dropout", residual=f"layer.{mlp}")
    dense = f"layer.{mlp}.DenseReluDense"
    maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    return Stack(
        name=name,
        layers=f"{name}.block",
        projections={
            **{
                f"{attention}.{role}": Projection(f"{path}.{role[0]}")
                for attention, path in attentions.items()
                for role in ("query", "key", "value", "output")
            },
            **{f"mlp.{role}": Projection(f"{dense}.{module}") for role, module in maps.items()},
        },
        sublayers=sublayers,
        attentions={name: Attention(path, head_size="key_value_proj_dim") for name, path in attentions.items()},
        # behind the words, not behind the dropout that follows: the same one ends the stack
        embeddings=Embeddings(f"{name}.embed_tokens", output="encoder.embed_tokens" if name == "encoder" else None),
        prompt=Prompt(reader="encoder") if name == "encoder" else None,
        causal=name == "decoder",
        mask="attention_mask" if name == "encoder" else "decoder_attention_mask",
        optional=True,
    )


register_architecture(("t5", "mt5"), t5)
