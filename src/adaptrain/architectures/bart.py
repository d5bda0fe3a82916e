"""BART: post-norm encoder-decoder with cross-attention.

Dropout between a sublayer and its residual is a function call in BART, not a module: in training it falls on what an
adapter returns, not on what it is given. In evaluation there is no difference.
"""

from dataclasses import replace

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Stack,
    Sublayer,
    register_architecture,
)


def _attention(prefix: str, path: str) -> dict[str, Projection]:
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return {f"{prefix}.{role}": Projection(f"{path}.{module}") for role, module in parts.items()}


_ENCODER = Stack(
    name="encoder",
    layers="encoder.layers",
    projections=_attention("attention", "self_attn") | {"mlp.up": Projection("fc1"), "mlp.down": Projection("fc2")},
    sublayers={
        "attention": Sublayer(output="self_attn", residual="self_attn", norm="self_attn_layer_norm"),
        "mlp": Sublayer(output="fc2", residual="fc1", norm="final_layer_norm"),
    },
    attentions={"attention": Attention("self_attn")},
    embeddings=Embeddings(
        "encoder.embed_tokens", output="encoder.layernorm_embedding", reader="encoder", prompt="words"
    ),
)

_CROSS = Sublayer(output="encoder_attn", residual="encoder_attn", norm="encoder_attn_layer_norm")

BART = register_architecture(
    Architecture(
        name="bart",
        model_types=("bart",),
        pooling="last",
        stacks=(
            _ENCODER,
            replace(
                _ENCODER,
                name="decoder",
                layers="decoder.layers",
                projections={**_ENCODER.projections, **_attention("cross_attention", "encoder_attn")},
                sublayers={**_ENCODER.sublayers, "cross_attention": _CROSS},
                attentions={**_ENCODER.attentions, "cross_attention": Attention("encoder_attn")},
                embeddings=Embeddings("decoder.embed_tokens", reader="decoder"),
            ),
        ),
    )
)
