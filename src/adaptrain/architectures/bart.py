"""Encoder-decoders with cross-attention: BART, PLBART and Marian, post-norm; mBART and Whisper, pre-norm.

Dropout between a sublayer and its residual is a function call in these models, not a module: in training it falls on
what an adapter returns, not on what it is given. In evaluation there is no difference.
"""

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


def _attention(prefix: str, path: str) -> dict[str, Projection]:
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return {f"{prefix}.{role}": Projection(f"{path}.{module}") for role, module in parts.items()}


_NORMS = {"attention": "self_attn_layer_norm", "cross_attention": "encoder_attn_layer_norm", "mlp": "final_layer_norm"}

_POST_NORM = {
    "attention": Sublayer(output="self_attn", residual="self_attn", norm=_NORMS["attention"]),
    "cross_attention": Sublayer(output="encoder_attn", residual="encoder_attn", norm=_NORMS["cross_attention"]),
    "mlp": Sublayer(output="fc2", residual="fc1", norm=_NORMS["mlp"]),
}
_PRE_NORM = {name: replace(row, residual=_NORMS[name], norm=None) for name, row in _POST_NORM.items()}


def _encoder(sublayers: dict[str, Sublayer]) -> Stack:
    return Stack(
        name="encoder",
        layers="encoder.layers",
        projections=_attention("attention", "self_attn") | {"mlp.up": Projection("fc1"), "mlp.down": Projection("fc2")},
        sublayers={name: row for name, row in sublayers.items() if name != "cross_attention"},
        attentions={"attention": Attention("self_attn")},
        embeddings=Embeddings("encoder.embed_tokens", output="encoder.layernorm_embedding"),
        prompt=Prompt(reader="encoder"),
        optional=True,
    )


def _decoder(sublayers: dict[str, Sublayer]) -> Stack:
    encoder = _encoder(sublayers)
    return replace(
        encoder,
        name="decoder",
        layers="decoder.layers",
        projections={**encoder.projections, **_attention("cross_attention", "encoder_attn")},
        sublayers=sublayers,
        attentions={**encoder.attentions, "cross_attention": Attention("encoder_attn")},
        embeddings=Embeddings("decoder.embed_tokens"),
        prompt=None,
        causal=True,
        mask="decoder_attention_mask",
    )


_BART, _MBART = ((_encoder(rows), _decoder(rows)) for rows in (_POST_NORM, _PRE_NORM))

register_architecture(("bart", "plbart"), Architecture("bart", _BART, pooling="last"))
register_architecture(("mbart",), Architecture("mbart", _MBART, pooling="last"))

_marian = replace(
    _BART[0],
    embeddings=Embeddings("encoder.embed_tokens", output="encoder.embed_tokens"),
    prompt=Prompt(reader="encoder", scale="embed_scale"),
)
register_architecture(("marian",), Architecture("marian", (_marian, _BART[1]), pooling="last"))

# Sound is not made of words, and there is no module where it has become hidden states. Invertible adapters stand behind
# the encoder's last norm, where AdapterHub has them.
_whisper = replace(_MBART[0], embeddings=Embeddings(output="encoder.layer_norm"), prompt=None, mask=None)
register_architecture(("whisper",), Architecture("whisper", (_whisper, _MBART[1]), pooling="last"))
