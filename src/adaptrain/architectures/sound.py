"""Encoders of sound: wav2vec 2.0 and HuBERT, post-norm or ("stable") pre-norm. Their mask counts samples outside and
frames inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Projection,
    Stack,
    Sublayer,
    register_architecture,
)

_WAV2VEC2 = Stack(
    name="encoder",
    layers="encoder.layers",
    projections={
        "attention.query": Projection("attention.q_proj"),
        "attention.key": Projection("attention.k_proj"),
        "attention.value": Projection("attention.v_proj"),
        "attention.output": Projection("attention.out_proj"),
        "mlp.up": Projection("feed_forward.intermediate_dense"),
        "mlp.down": Projection("feed_forward.output_dense"),
    },
    sublayers={
        "attention": Sublayer("dropout", residual="attention", norm="layer_norm"),
        "mlp": Sublayer("feed_forward", residual="feed_forward", norm="final_layer_norm"),
    },
    attentions={"attention": Attention("attention")},
    mask=None,
    mask_at="encoder",
)


def wav2vec2(config: Any) -> Architecture:
    """wav2vec 2.0 and HuBERT; `config.do_stable_layer_norm` says where the norms stand."""
    stack = _WAV2VEC2
    if config.do_stable_layer_norm:
        stack = replace(
            stack,
            sublayers={
                "attention": Sublayer("dropout", residual="layer_norm"),
                "mlp": Sublayer("feed_forward", residual="final_layer_norm"),
            },
        )
    return Architecture("wav2vec2", (stack,))


register_architecture(("wav2vec2", "hubert"), wav2vec2)
