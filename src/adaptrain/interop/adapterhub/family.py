"""What has to be known of a model family to read the library's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """How the library names the places of one model family, and where it computes otherwise than elsewhere.

    Attributes:
        layers: path of a layer list → stack.
        sublayers: path below the layer → sublayer, for bottlenecks; the path may begin with the stack and a colon.
        projections: path below the layer → projections, several where it is fused.
        attentions: path below the layer → attention, for the gates of prefixes.
        prefixes: location key → canonical location; of an encoder-decoder made of two models, with the part before it.
        embeddings: paths of the modules that hold the invertible adapters, with a dot behind each.
        first: stack whose embeddings they change.
        inner: name of the layer list inside each member of the layer list (ALBERT).
        width: how many layers that list has.
        heads: of the attention, where the rows of a fused projection lie head by head (DeBERTa); else 0.
        depths: layers of each part, where every part counts its own from 0 (encoder-decoders made of two models).
        swapped_mlp: `intermediate` means the down- and `output` the up-projection (LLaMA).
        crosses_with_attention: `mh_adapter` also decides about cross-attention, and `cross_adapter` about nothing.
        exchanged: a bottleneck after attention is given the residual as the output, and the output as the residual
            (ALBERT).
        no_attention_norm: a bottleneck after attention is not told of the norm that follows (X-MOD).
        no_bottleneck: why a bottleneck cannot be computed as in the library.
        no_prefix: why a prefix cannot.
    """

    layers: Mapping[str, str]
    sublayers: Mapping[str, str]
    projections: Mapping[str, tuple[str, ...]]
    attentions: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ("",)
    first: str = "decoder"
    inner: str = ""
    width: int = 1
    heads: int = 0
    depths: tuple[int, ...] = ()
    swapped_mlp: bool = False
    crosses_with_attention: bool = False
    exchanged: bool = False
    no_attention_norm: bool = False
    no_bottleneck: str = ""
    no_prefix: str = ""

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values come out of one module, one after the other."""
        return not self.heads and any("attention.query" in places[:-1] for places in self.projections.values())

    @property
    def fused_mlp(self) -> bool:
        """Whether `intermediate` is the gate and the up-projection in one module."""
        return any("mlp.gate" in places for places in self.projections.values())

    def sublayer(self, layer: str, path: str) -> str | None:
        """The sublayer of a bottleneck's path below a layer (`encoder.3`)."""
        stack = layer.split(".", maxsplit=1)[0]
        return self.sublayers.get(f"{stack}:{path}", self.sublayers.get(path))
