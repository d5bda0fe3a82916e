"""Encoders of images, pre-norm: ViT, DeiT, BEiT, DINOv2. They read no words, so that nothing is invertible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Projection,
    Prompt,
    Stack,
    Sublayer,
    register_architecture,
)

_ATTENTION = {
    f"attention.{role}": Projection(f"attention.{role[0]}_proj") for role in ("query", "key", "value", "output")
}

_VIT = Stack(
    name="encoder",
    layers="layers",
    projections={**_ATTENTION, "mlp.up": Projection("mlp.fc1"), "mlp.down": Projection("mlp.fc2")},
    sublayers={  # one dropout ends both
        "attention": Sublayer("dropout", residual="layernorm_before"),
        "mlp": Sublayer("dropout", residual="layernorm_after"),
    },
    attentions={"attention": Attention("attention")},
    prompt=Prompt(behind="embeddings", end="layernorm"),
)

register_architecture(("vit", "deit"), Architecture("vit", (_VIT,)))


def beit(config: Any) -> Architecture:
    """BEiT: a ViT whose sublayers end in one shared drop-path. Relative positions count the image's patches: with them
    there is no room for a prompt."""
    counted = config.use_relative_position_bias or config.use_shared_relative_position_bias
    sublayers = {name: replace(row, output="drop_path") for name, row in _VIT.sublayers.items()}
    return Architecture("beit", (replace(_VIT, sublayers=sublayers, prompt=None if counted else _VIT.prompt),))


register_architecture(("beit",), beit)


def dinov2(config: Any) -> Architecture:
    """DINOv2; the giant has a gated MLP."""
    mlp = {"mlp.up": Projection("mlp.fc1"), "mlp.down": Projection("mlp.fc2")}
    if config.use_swiglu_ffn:
        mlp = {f"mlp.{role}": Projection(f"mlp.{role}_proj") for role in ("gate", "up", "down")}
    stack = replace(
        _VIT,
        layers="encoder.layer",
        projections={**_ATTENTION, **mlp},
        sublayers={
            "attention": Sublayer("drop_path", residual="norm1"),
            "mlp": Sublayer("drop_path", residual="norm2"),
        },
        prompt=Prompt(behind="embeddings", end="encoder"),
    )
    return Architecture("dinov2", (stack,))


register_architecture(("dinov2",), dinov2)
