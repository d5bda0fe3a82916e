"""How the library names the places of each model family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from adaptrain.errors import CheckpointError, listed
from adaptrain.interop.adapterhub.family import Family

_ROLES = ("query", "key", "value")
_PLUGGED = {"attention_adapters": "attention", "output_adapters": "mlp", "cross_attention_adapters": "cross_attention"}


def _attention(path: str, names: str, place: str = "attention") -> dict[str, tuple[str, ...]]:
    """The three projections below an attention module; `{}` in a name stands for q, k or v."""
    return {f"{path}.{names.format(role[0])}": (f"{place}.{role}",) for role in _ROLES}


_BERT = Family(
    layers={"encoder.layer": "encoder"},
    sublayers={"attention.output": "attention", "crossattention.output": "cross_attention", "output": "mlp"},
    projections={
        **{f"attention.self.{role}": (f"attention.{role}",) for role in _ROLES},
        **{f"crossattention.self.{role}": (f"cross_attention.{role}",) for role in _ROLES},
        "intermediate.dense": ("mlp.up",),
        "output.dense": ("mlp.down",),
    },
    attentions={"attention.self": "attention", "crossattention.self": "cross_attention"},
    prefixes={"self_prefix": "encoder.attention"},
    first="encoder",
)

_ALBERT = replace(
    _BERT,
    layers={"encoder.albert_layer_groups": "encoder"},
    inner="albert_layers",
    sublayers={"attention.attention_adapters": "attention", "output_adapters": "mlp"},
    projections={
        **{f"attention.{role}": (f"attention.{role}",) for role in _ROLES},
        "ffn": ("mlp.up",),
        "ffn_output": ("mlp.down",),
    },
    attentions={"attention": "attention"},
    exchanged=True,
)

_DEBERTA = replace(
    _BERT,
    projections={
        "attention.self.in_proj": tuple(f"attention.{role}" for role in _ROLES),
        "intermediate.dense": ("mlp.up",),
        "output.dense": ("mlp.down",),
    },
)

_DEBERTA_V2 = replace(
    _BERT,
    projections={
        **{f"attention.self.{role}_proj": (f"attention.{role}",) for role in _ROLES},
        "intermediate.dense": ("mlp.up",),
        "output.dense": ("mlp.down",),
    },
)

_DISTILBERT = Family(
    layers={"transformer.layer": "encoder"},
    sublayers=_PLUGGED,
    projections=_attention("attention", "{}_lin") | {"ffn.lin1": ("mlp.up",), "ffn.lin2": ("mlp.down",)},
    attentions={"attention": "attention"},
    prefixes={"self": "encoder.attention"},
    first="encoder",
)

_VIT = Family(
    layers={"encoder.layer": "encoder"},
    sublayers={"attention_adapters": "attention", "output.output_adapters": "mlp", "output_adapters": "mlp"},
    projections={
        **{f"attention.attention.{role}": (f"attention.{role}",) for role in _ROLES},
        "intermediate.dense": ("mlp.up",),
        "output.dense": ("mlp.down",),
    },
    attentions={"attention.attention": "attention"},
    prefixes={"self_prefix": "encoder.attention"},
    first="encoder",
)

_CLIP = Family(
    layers={"text_model.encoder.layers": "text", "vision_model.encoder.layers": "vision"},
    sublayers=_PLUGGED,
    projections=_attention("self_attn", "{}_proj") | {"mlp.fc1": ("mlp.up",), "mlp.fc2": ("mlp.down",)},
    attentions={"self_attn": "attention"},
    prefixes={
        "clip_text_model_self_prefix": "text.attention",
        "clip_vision_model_self_prefix": "vision.attention",
    },
    embeddings=("text_model.",),
    first="text",
)

_BART = Family(
    layers={"encoder.layers": "encoder", "decoder.layers": "decoder"},
    sublayers=_PLUGGED,
    projections={
        **_attention("self_attn", "{}_proj"),
        **_attention("encoder_attn", "{}_proj", "cross_attention"),
        "fc1": ("mlp.up",),
        "fc2": ("mlp.down",),
    },
    attentions={"self_attn": "attention", "encoder_attn": "cross_attention"},
    prefixes={
        "encoder_prefix": "encoder.attention",
        "self_prefix": "decoder.attention",
        "cross_prefix": "decoder.cross_attention",
    },
    embeddings=("encoder.",),
    first="encoder",
)

# The MLP is the second of an encoder's and the third of a decoder's sublayers. Gated, only its `wi_1` is adapted.
_T5 = replace(
    _BART,
    layers={"encoder.block": "encoder", "decoder.block": "decoder"},
    sublayers={
        "layer.0": "attention",
        "encoder:layer.1": "mlp",
        "decoder:layer.1": "cross_attention",
        "decoder:layer.2": "mlp",
    },
    projections={
        **_attention("layer.0.SelfAttention", "{}"),
        **_attention("layer.1.EncDecAttention", "{}", "cross_attention"),
        **{f"layer.{index}.DenseReluDense.{name}": ("mlp.up",) for index in (1, 2) for name in ("wi", "wi_1")},
        **{f"layer.{index}.DenseReluDense.wo": ("mlp.down",) for index in (1, 2)},
    },
    attentions={"layer.0.SelfAttention": "attention", "layer.1.EncDecAttention": "cross_attention"},
    no_prefix="the library counts it in the relative positions, so that every word is further away by its length",
)

_GPT2 = Family(
    layers={"h": "decoder"},
    sublayers=_PLUGGED,
    projections={
        "attn.c_attn": tuple(f"attention.{role}" for role in _ROLES),
        "mlp.c_fc": ("mlp.up",),
        "mlp.c_proj": ("mlp.down",),
    },
    attentions={"attn": "attention"},
    prefixes={"self_prefix": "decoder.attention"},
)

_GPTJ = replace(
    _GPT2,
    projections=_attention("attn", "{}_proj") | {"mlp.fc_in": ("mlp.up",), "mlp.fc_out": ("mlp.down",)},
)

_PLUGIN = Family(
    layers={"layers": "decoder"},
    sublayers=_PLUGGED,
    projections={
        **_attention("self_attn", "{}_proj"),
        "mlp.up_proj": ("mlp.up",),
        "mlp.down_proj": ("mlp.down",),
    },
)

_LLAMA = replace(
    _PLUGIN,
    attentions={"self_attn": "attention"},
    prefixes={"self_prefix": "decoder.attention"},
    swapped_mlp=True,
)

_GEMMA = replace(
    _PLUGIN,
    no_bottleneck="the library applies the last layer's norms in every layer there, before the model's own, and adds "
    "the residual twice",
)

_MODERNBERT = Family(
    layers={"layers": "encoder"},
    sublayers=_PLUGGED,
    projections={
        "attn.Wqkv": tuple(f"attention.{role}" for role in _ROLES),
        "mlp.Wi": ("mlp.gate", "mlp.up"),
        "mlp.Wo": ("mlp.down",),
    },
    first="encoder",
    no_bottleneck="the library takes what the norms return for the residual there, and applies the last layer's norm "
    "in every layer",
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "bert-generation"), _BERT),
    "xmod": replace(_BERT, no_attention_norm=True),
    "albert": _ALBERT,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    **dict.fromkeys(("vit", "beit"), _VIT),
    **dict.fromkeys(("clip", "clip_text_model", "clip_vision_model"), _CLIP),
    **dict.fromkeys(("bart", "mbart", "plbart", "whisper"), _BART),
    **dict.fromkeys(("t5", "mt5"), _T5),
    "gpt2": _GPT2,
    "gptj": _GPTJ,
    **dict.fromkeys(("llama", "mistral"), _LLAMA),
    **dict.fromkeys(("qwen2", "qwen3"), _PLUGIN),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "modernbert": _MODERNBERT,
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model, with what depends on its config.

    Raises:
        CheckpointError: of a type that the library does not have, or one that it changes.
    """
    config: Any = model.config
    kind = str(config.model_type)
    if kind == "encoder-decoder":
        return _joined(model)
    if kind not in FAMILIES:
        known = listed([*FAMILIES, "encoder-decoder"])
        raise CheckpointError(f"AdapterHub folders are read for {known}, and this model is a {kind}")
    if FAMILIES[kind] is _BERT and getattr(config, "add_cross_attention", False):
        prefixes = {**_BERT.prefixes, "cross_prefix": "encoder.cross_attention"}
        return replace(_BERT, prefixes=prefixes, crosses_with_attention=True)
    if kind == "albert":
        return replace(_ALBERT, width=config.inner_group_num)
    if kind == "deberta":
        return replace(_DEBERTA, heads=config.num_attention_heads)
    if kind == "xmod":
        _check_languages(model)
    return FAMILIES[kind]


def _joined(model: Any) -> Family:
    """The family of an encoder-decoder made of two models: the paths of both, each behind its part's name."""
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    kinds = {part: str(member.config.model_type) for part, member in parts.items()}
    if any(FAMILIES.get(kind) is not _BERT for kind in kinds.values()):
        legal = listed(kind for kind, family in FAMILIES.items() if family is _BERT)
        raise CheckpointError(
            f"AdapterHub folders of an encoder-decoder are read where both parts are of {legal}; these are "
            f"{kinds['encoder']} and {kinds['decoder']}"
        )
    # a part with a head holds its base model one step below
    bases = {
        part: part if member.base_model is member else f"{part}.{member.base_model_prefix}"
        for part, member in parts.items()
    }
    return replace(
        _BERT,
        layers={f"{base}.encoder.layer": part for part, base in bases.items()},
        prefixes={
            "encoder:self_prefix": "encoder.attention",
            "decoder:self_prefix": "decoder.attention",
            "decoder:cross_prefix": "decoder.cross_attention",
        },
        embeddings=("", *(f"{base}." for base in bases.values())),  # one module, reached in three ways
        depths=tuple(member.config.num_hidden_layers for member in parts.values()),
        crosses_with_attention=True,
    )


def _check_languages(model: Any) -> None:
    """Refuse an X-MOD whose language adapters do something.

    The library deletes them, so what it computes is a model whose language adapters end in zeros.
    """
    ends = [layer.output.adapter_modules.values() for layer in model.base_model.encoder.layer]
    silent = all(not bool(p.any()) for layer in ends for adapter in layer for p in adapter.dense2.parameters())
    if not (silent and model.config.ln_before_adapter):
        raise CheckpointError(
            "The library deletes X-MOD's own language adapters, and this model has them, so that it cannot compute "
            "what the folder was trained for; set their last layers (output.adapter_modules.*.dense2) to zero, with "
            "ln_before_adapter"
        )


__all__ = ["FAMILIES", "Family", "family_of"]
