"""How the library names the places of each model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How the library names the places of one model family.

    Attributes:
        layers: path of a layer list → stack.
        sublayers: path below the layer → sublayer, for bottlenecks.
        projections: path below the layer → projections, several where it is fused.
        attentions: path below the layer → attention, for the gates of prefixes.
        prefixes: location key → canonical location.
        embeddings: path of the module that holds the invertible adapters, with a dot behind it.
        first: stack whose embeddings they change.
        swapped_mlp: `intermediate` means the down- and `output` the up-projection (LLaMA).
    """

    layers: Mapping[str, str]
    sublayers: Mapping[str, str]
    projections: Mapping[str, tuple[str, ...]]
    attentions: Mapping[str, str]
    prefixes: Mapping[str, str]
    embeddings: str = ""
    first: str = "decoder"
    swapped_mlp: bool = False

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values come out of one module."""
        return any(len(places) > 1 for places in self.projections.values())


_QKV = ("query", "key", "value")
_PLUGGED = {"attention_adapters": "attention", "output_adapters": "mlp", "cross_attention_adapters": "cross_attention"}

_BERT = Family(
    layers={"encoder.layer": "encoder"},
    sublayers={"attention.output": "attention", "output": "mlp"},
    projections={
        **{f"attention.self.{role}": (f"attention.{role}",) for role in _QKV},
        "intermediate.dense": ("mlp.up",),
        "output.dense": ("mlp.down",),
    },
    attentions={"attention.self": "attention"},
    prefixes={"self_prefix": "encoder.attention"},
    first="encoder",
)

_BART = Family(
    layers={"encoder.layers": "encoder", "decoder.layers": "decoder"},
    sublayers=_PLUGGED,
    projections={
        **{f"self_attn.{role[0]}_proj": (f"attention.{role}",) for role in _QKV},
        **{f"encoder_attn.{role[0]}_proj": (f"cross_attention.{role}",) for role in _QKV},
        "fc1": ("mlp.up",),
        "fc2": ("mlp.down",),
    },
    attentions={"self_attn": "attention", "encoder_attn": "cross_attention"},
    prefixes={
        "encoder_prefix": "encoder.attention",
        "self_prefix": "decoder.attention",
        "cross_prefix": "decoder.cross_attention",
    },
    embeddings="encoder.",
    first="encoder",
)

_GPT2 = Family(
    layers={"h": "decoder"},
    sublayers=_PLUGGED,
    projections={
        "attn.c_attn": tuple(f"attention.{role}" for role in _QKV),
        "mlp.c_fc": ("mlp.up",),
        "mlp.c_proj": ("mlp.down",),
    },
    attentions={"attn": "attention"},
    prefixes={"self_prefix": "decoder.attention"},
)

_LLAMA = Family(
    layers={"layers": "decoder"},
    sublayers=_PLUGGED,
    projections={
        **{f"self_attn.{role[0]}_proj": (f"attention.{role}",) for role in _QKV},
        "mlp.up_proj": ("mlp.up",),
        "mlp.down_proj": ("mlp.down",),
    },
    attentions={"self_attn": "attention"},
    prefixes={"self_prefix": "decoder.attention"},
    swapped_mlp=True,
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "bart": _BART,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
}
