"""Two towers, one for texts and one for images, together or alone: CLIP and SigLIP."""

from __future__ import annotations

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

_TEXT = Stack(
    name="text",
    layers="encoder.layers",
    projections={
        "attention.query": Projection("self_attn.q_proj"),
        "attention.key": Projection("self_attn.k_proj"),
        "attention.value": Projection("self_attn.v_proj"),
        "attention.output": Projection("self_attn.out_proj"),
        "mlp.up": Projection("mlp.fc1"),
        "mlp.down": Projection("mlp.fc2"),
    },
    sublayers={
        "attention": Sublayer("self_attn", residual="layer_norm1"),
        "mlp": Sublayer("mlp", residual="layer_norm2"),
    },
    attentions={"attention": Attention("self_attn")},
    embeddings=Embeddings("embeddings.token_embedding", output="embeddings"),
    prompt=Prompt(behind="embeddings", end="encoder"),
)

_VISION = replace(_TEXT, name="vision", embeddings=Embeddings(), mask=None)


def _towers(name: str, causal: bool) -> None:
    text = replace(_TEXT, causal=causal)
    both = tuple(replace(tower.below(f"{tower.name}_model"), optional=True) for tower in (text, _VISION))
    register_architecture((name,), Architecture(name, both))
    pooling = "last" if causal else "first"
    register_architecture((f"{name}_text_model",), Architecture(name, (text,), pooling))
    register_architecture((f"{name}_vision_model",), Architecture(name, (_VISION,)))


_towers("clip", causal=True)
_towers("siglip", causal=False)
