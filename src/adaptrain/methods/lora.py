"""The LoRA family: LoRA, PiSSA, DoRA, VeRA, DvoRA, MTL-LoRA, and IA³, which shares their keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from adaptrain.errors import ConfigError
from adaptrain.methods.base import Build, MethodConfig, PointLike, Unit, kept_in, register_method, register_preset
from adaptrain.methods.dora import DoRA, DvoRA
from adaptrain.methods.ia3 import ActivationScale, Scale
from adaptrain.methods.layers import at_layer, misnamed, numbers
from adaptrain.methods.low_rank import LoRA, LowRank, PiSSA
from adaptrain.methods.mtl_lora import MTLLoRA
from adaptrain.methods.targets import matches, unmatched
from adaptrain.methods.vera import Frozen, VeRA

_ROLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
_WHERE = ("selfattn_lora", "intermediate_lora", "output_lora", "gate_lora", "embeddings_lora")

Init = Literal["lora", "bert", "ia3", "vera", "pissa"]
Matrix = Literal["q", "k", "v", "o"]


@register_method
@dataclass(frozen=True, kw_only=True)
class LoRAConfig(MethodConfig):
    """Low-Rank Adaptation.

        y = W x + b + (α / r) · g · B A D(x)

    with A (r, in), B (out, r), D dropout, and g = 1 or UniPELT's gate (`methods.gate`). A ~ kaiming-uniform(a = √5)
    and B = 0, so a fresh adapter is the identity; `init_weights="bert"` draws both from N(0, 0.02²).

    PiSSA (`init_weights="pissa"`): y = W x + b + (α / r) · (B A − B₀ A₀) D(x), where (α / r) · B₀ A₀ = U_r S_r V_rᵀ are
    the r largest singular triplets of W. A and B start at A₀ and B₀: a fresh adapter is the identity. A checkpoint
    holds A and B only, so it must be loaded onto the base weights that it was trained on.

    Source: Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, equation 3; Kalajdzievski 2023
    (`use_rslora`); Hayou et al. 2024 (`lora_plus_ratio`); Meng et al. 2024, *PiSSA*; Mao et al. 2022 (`use_gating`).

    Attributes:
        selfattn_lora: on the attention projections named by `attn_matrices` (self- and cross-attention).
        intermediate_lora: on the first linear map of the MLP (`mlp.up`).
        output_lora: on the last linear map of the MLP (`mlp.down`).
        gate_lora: on the gate of a gated MLP (`mlp.gate`).
        embeddings_lora: on the word embedding, the linear map of one-hot words; dropout drops whole words there.
        attn_matrices: of q, k, v, o.
        targets: instead of the flags above: names (`attention.query`, `mlp.down`, `embeddings.words`), or patterns with
            * ? [ ] for them or for whole names (`encoder.3.*`, `*.attention.*`).
        r: rank; or a mapping from the layer's index (as a word) or `default`.
        alpha: numerator of the scaling α / r.
        use_rslora: the scaling is α / √r.
        dropout: on the input of A.
        composition_mode: `add` a low-rank update, or `scale` each feature (IA³).
        init_weights: `lora`, `bert`, `pissa`; `vera` and `ia3` belong to those methods.
        use_gating: with a gate of its own at each projection.
        use_dora: magnitude and direction apart, see `DoRAConfig`.
        vera_d, vera_b: first values of VeRA's vectors.
        vera_seed: of VeRA's frozen matrices.
        lora_plus_ratio: what the learning rate of B is multiplied with.
        dtype: what the parameters are kept in; float32 when None.
        leave_out: layers without units, counted over the whole model.
        as_adapterhub: as AdapterHub computes. Gates count padding and ignore the scaling; DoRA scales the bias, leaves
            the scaling out of the norm and trains through the norm; IA³ scales the output of `mlp.up`.
    """

    method: ClassVar[str] = "lora"

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    gate_lora: bool = False
    embeddings_lora: bool = False
    attn_matrices: tuple[Matrix, ...] = ("q", "v")
    targets: tuple[str, ...] | None = None
    r: int | Mapping[str, int] = 8
    alpha: float = 8
    use_rslora: bool = False
    dropout: float = 0.0
    composition_mode: Literal["add", "scale"] = "add"
    init_weights: Init = "lora"
    use_gating: bool = False
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None
    vera_seed: int = 0
    lora_plus_ratio: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    leave_out: tuple[int, ...] = ()
    as_adapterhub: bool = False

    @property
    def identity_at_start(self) -> bool:  # type: ignore[override]
        if self.composition_mode == "scale":
            return self.alpha == 1
        if self.use_dora and self.dtype in ("bfloat16", "float16"):
            return False  # the magnitudes have been rounded
        return self.init_weights in ("lora", "pissa") or (self.init_weights == "vera" and self.vera_b == 0)

    def problems(self) -> Iterator[str]:
        yield from self._number_problems()
        yield from self._place_problems()
        if self.composition_mode == "scale":
            yield from self._scale_problems()
        else:
            yield from self._update_problems()
        vera = self.init_weights == "vera"
        for key in ("vera_d", "vera_b"):
            if vera and getattr(self, key) is None:
                yield f"{key} is missing; init_weights 'vera' needs it"
            if not vera and getattr(self, key) is not None:
                yield f"{key} is for init_weights 'vera'; leave it out"
        if not vera and self.vera_seed:
            yield "vera_seed is for init_weights 'vera'; leave it out"
        if self.lora_plus_ratio != 1 and (vera or self.composition_mode == "scale"):
            yield "lora_plus_ratio is for a trained B, which VeRA and IA³ do not have; leave it out"

    def _number_problems(self) -> Iterator[str]:
        for where, rank in numbers(self.r):
            if rank < 1:
                yield f"r{where} is {rank}; a rank is at least 1"
        yield from misnamed("r", self.r)
        for key in ("alpha", "lora_plus_ratio"):
            if getattr(self, key) <= 0:
                yield f"{key} is {getattr(self, key)}; it must be positive"
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}; it must lie in [0, 1)"

    def _place_problems(self) -> Iterator[str]:
        if self.targets is not None:
            if not self.targets:
                yield "targets is empty; name projections, or leave it out"
            for key in (*_WHERE, "attn_matrices"):
                if getattr(self, key) != type(self).fields()[key].default:
                    yield f"{key} is set although targets says where; leave one of them out"
            return
        if self.selfattn_lora and not self.attn_matrices:
            yield "attn_matrices is empty although selfattn_lora is true; name some of q, k, v, o"
        if not any(getattr(self, key) for key in _WHERE):
            yield f"{', '.join(_WHERE[:-1])} and {_WHERE[-1]} are all false; nothing would be adapted"

    def _scale_problems(self) -> Iterator[str]:
        if self.init_weights != "ia3":
            yield f"composition_mode is 'scale' with init_weights '{self.init_weights}'; use the method ia3 for scaling"
        if self.r != 1:
            yield f"r is {self.r}; it must be 1 with composition_mode 'scale', which has one factor a feature"
        if 0 < self.dropout < 1:
            yield "dropout is for composition_mode 'add'; set it to 0"
        for key in ("use_gating", "use_dora", "use_rslora"):
            if getattr(self, key):
                yield f"{key} is for composition_mode 'add'; set it to false"

    def _update_problems(self) -> Iterator[str]:
        if self.init_weights == "ia3":
            yield "init_weights 'ia3' is for composition_mode 'scale'; use the method ia3, or 'lora'"
        if self.init_weights == "vera" and isinstance(self.r, Mapping):
            yield "r is a mapping; VeRA's layers share their matrices and have one rank"
        if self.init_weights == "pissa":
            if self.use_dora or self.use_gating:
                yield "init_weights 'pissa' cannot be joined with use_dora or use_gating; choose one of them"
            if self.embeddings_lora:
                yield "embeddings_lora cannot start from singular values; use init_weights 'lora' with it"
        if self.use_gating and self.use_dora:
            yield "use_gating is for an update that is added; set it to false with use_dora"
        if self.use_gating and self.embeddings_lora:
            yield "embeddings_lora has words for an input, which a gate cannot read; set it to false with use_gating"

    def covers(self, point: PointLike) -> bool:
        if point.layer in self.leave_out:
            return False
        scales = self.composition_mode == "scale"
        if self.targets is not None:
            reached = point.kind == "projection" or scales
            return reached and any(matches(target, point) for target in self.targets)
        if point.kind == "activation":
            return scales and self.intermediate_lora and not self.as_adapterhub
        if point.kind != "projection":
            return False
        flags = {
            "up": self.intermediate_lora and not (scales and not self.as_adapterhub),
            "down": self.output_lora,
            "gate": self.gate_lora,
            "words": self.embeddings_lora,
        }
        if point.role in flags:
            return flags[point.role]
        return self.selfattn_lora and point.role in {_ROLES[matrix] for matrix in self.attn_matrices}

    def choose(self, points: Sequence[PointLike]) -> list[PointLike]:
        kinds = ("projection", "activation") if self.composition_mode == "scale" else ("projection",)
        if problems := unmatched(self.targets or (), [point for point in points if point.kind in kinds]):
            raise ConfigError([f"{type(self).__name__}: {problem}" for problem in problems])
        chosen = super().choose(points)
        if any(point.role == "words" for point in chosen) and (self.use_gating or self.init_weights == "pissa"):
            key = "use_gating" if self.use_gating else "init_weights"
            raise self.error(f"{key} is {getattr(self, key)!r}, which the word embedding cannot have; narrow targets")
        return chosen

    def missing(self, points: Sequence[PointLike]) -> Iterator[str]:
        roles = {point.role for point in points}
        if self.targets is None and self.gate_lora and "gate" not in roles:
            yield "gate_lora is true, and the model's MLPs have no gate"
        if self.targets is None and self.embeddings_lora and "words" not in roles:
            yield "embeddings_lora is true, and the model looks up no words"
        yield from super().missing(points)

    def rank(self, point: PointLike) -> int:
        """r at a point.

        Raises:
            ConfigError: the mapping names neither this layer nor a default.
        """
        rank = at_layer(self.r, point.layer)
        if rank is None:
            layer = f"neither layer {point.layer}" if point.layer >= 0 else f"no rank for {point.name}"
            raise self.error(f"r names {layer} nor 'default'")
        return rank

    def scaling(self, rank: int) -> float:
        """What the update is multiplied with."""
        if self.use_gating and self.as_adapterhub:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def build(self, points: Sequence[PointLike]) -> Build:
        if self.init_weights != "vera":
            return Build({point.name: kept_in(self.dtype, self._unit(point)) for point in points})
        width, height = max(point.in_features for point in points), max(point.out_features for point in points)
        frozen = Frozen(self.rank(points[0]), width, height, self.vera_seed)
        kind = DvoRA if self.use_dora else VeRA
        return Build(
            {point.name: kept_in(self.dtype, kind(self, point, frozen)) for point in points}, {"frozen": frozen}
        )

    def start(self, build: Build, points: Sequence[PointLike]) -> None:
        for point in points:
            unit = build.units[point.name]
            if isinstance(unit, LowRank):
                unit.start(point)

    def rate(self, parameter: str) -> float:
        return self.lora_plus_ratio if parameter.endswith(".B") else 1.0

    def _unit(self, point: PointLike) -> Unit:
        if self.composition_mode == "scale":
            return ActivationScale(self, point) if point.kind == "activation" else Scale(self, point)
        if self.use_dora:
            return DoRA(self, point)
        if self.init_weights != "pissa":
            return LoRA(self, point)
        if (rank := self.rank(point)) > (most := min(point.in_features, point.out_features)):
            raise self.error(f"r is {rank}, but {point.name} has only {most} singular values for init_weights 'pissa'")
        return PiSSA(self, point)


@register_method
@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """Weight-decomposed low-rank adaptation.

        y = (m / ‖W + s B A‖) ⊙ (W x + s B A D(x)) + b,   s = α / r

    with m (out,) and a norm for each row, constant to the gradient. m starts at ‖W‖: a fresh adapter is the identity.

    Source: Liu et al. 2024, *DoRA: Weight-Decomposed Low-Rank Adaptation*, equation 5 and section 4.3.
    """

    method: ClassVar[str] = "dora"

    use_dora: bool = True


@register_method
@dataclass(frozen=True, kw_only=True)
class VeraConfig(LoRAConfig):
    """Vector-based random matrix adaptation.

        y = W x + b + (α / r) · diag(b) B diag(d) A D(x)

    with d (r,) and b (out,) trained. A (r, in) and B (out, r) are drawn kaiming-uniform(a = 0) from `vera_seed` for the
    whole adapter, as wide as its widest map, and stay as they are; they are not stored.

    Source: Kopiczko et al. 2024, *VeRA: Vector-based Random Matrix Adaptation*, equation 2.
    """

    method: ClassVar[str] = "vera"

    init_weights: Init = "vera"
    vera_d: float | None = 0.1
    vera_b: float | None = 0.0


@register_method
@dataclass(frozen=True, kw_only=True)
class DvoRAConfig(VeraConfig):
    """DoRA (see `DoRAConfig`) with VeRA's product diag(b) B diag(d) A for its B A. Liu et al. 2024."""

    method: ClassVar[str] = "dvora"

    use_dora: bool = True


@register_method
@dataclass(frozen=True, kw_only=True)
class IA3Config(LoRAConfig):
    """Infused adapter by inhibiting and amplifying inner activations.

        y = α · l ⊙ (W x + b)   at keys and values (or what attn_matrices, output_lora, gate_lora, targets name)
        h ← α · l ⊙ h           at the MLP's inner activation (intermediate_lora, or the target `mlp.activation`)

    with l as wide as y and h, ones at the start.

    Source: Liu et al. 2022, *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning*,
    section 3.3.
    """

    method: ClassVar[str] = "ia3"

    attn_matrices: tuple[Matrix, ...] = ("k", "v")
    intermediate_lora: bool = True
    r: int | Mapping[str, int] = 1
    alpha: float = 1
    composition_mode: Literal["add", "scale"] = "scale"
    init_weights: Init = "ia3"


@register_method
@dataclass(frozen=True, kw_only=True)
class MTLLoRAConfig(LoRAConfig):
    """LoRA for several tasks: tasks can share A and the Bᵢ, each has its own Λ and w.

        y = W x + b + (α / r) · Σᵢ softmax(w / τ)ᵢ Bᵢ Λ A D(x)

    A (r, in) kaiming-uniform(a = √5), Bᵢ (out, r) zero, w (n,) ones, Λ the identity at the start.

    Source: Yang et al. 2024, *MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning*.

    Attributes:
        n_up_projection: n, how many Bᵢ.
        task_specific_matrix_type: Λ is diagonal (`singular_values`) or whole (`linear`).
        weights_sharpness: τ; the smaller, the more one Bᵢ stands out.
    """

    method: ClassVar[str] = "mtl_lora"

    n_up_projection: int = 1
    task_specific_matrix_type: Literal["singular_values", "linear"] = "singular_values"
    weights_sharpness: float = 0.05

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.n_up_projection < 1:
            yield f"n_up_projection is {self.n_up_projection}; at least 1 is needed"
        if self.weights_sharpness <= 0:
            yield f"weights_sharpness is {self.weights_sharpness}; it must be positive"
        if self.init_weights not in ("lora", "bert"):
            yield f"init_weights is '{self.init_weights}'; MTL-LoRA starts as 'lora' or 'bert'"
        if self.composition_mode != "add" or self.use_dora:
            yield "composition_mode must be 'add' and use_dora false; MTL-LoRA's update is added"

    def _unit(self, point: PointLike) -> Unit:
        return MTLLoRA(self, point)


for _config in (LoRAConfig, DoRAConfig, VeraConfig, DvoRAConfig, IA3Config, MTLLoRAConfig):
    register_preset(_config.method, _config)
register_preset("pissa", partial(LoRAConfig, init_weights="pissa"))
register_preset("rslora", partial(LoRAConfig, r=64, use_rslora=True))
