"""The library's configs in our terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptrain.errors import CheckpointError, listed, unknown
from adaptrain.interop.adapterhub.family import Family
from adaptrain.methods import BnConfig, MethodConfig, config_from_dict, config_from_string

_OLD_PRESETS = ("pfeiffer", "houlsby", "pfeiffer+inv", "houlsby+inv")
"""What adapter-transformers 1 wrote for a config that it knew by name."""

_OLD_KEYS = {
    "LN_before": "ln_before",
    "LN_after": "ln_after",
    "MH_Adapter": "mh_adapter",
    "Output_Adapter": "output_adapter",
}
"""Keys of adapter-transformers 1. `attention_type` and `new_attention_norm` of the same version belong to its fusion
layers."""

_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What the names meant before files had a version."""


@dataclass(frozen=True)
class Origin:
    """What a folder says around its config, and what in its tensors decides how the config is read.

    Attributes:
        family: of the model.
        version: of the library: `adapters.1.3.0`, `3.2.1` (adapter-transformers), or None (before 2).
        model_class: that the folder was saved from.
        is_task: saved as a task adapter, when adapter-transformers 1 distinguished those from language adapters.
        inverts: whether the file holds an invertible adapter.
        matrices: which of q, k, v a LoRA adapts.
    """

    family: Family
    version: str | None
    model_class: str
    is_task: bool
    inverts: bool
    matrices: tuple[str, ...] = ()

    @property
    def alpha_was_ignored(self) -> bool:
        """`adapters` before 1.1 trained LoRA with a scaling of 1, whatever alpha said; adapter-transformers did not."""
        return re.match(r"adapters\.(0\.|1\.0)", self.version or "") is not None

    @property
    def inverts_at_head(self) -> bool:
        """Whether embeddings were changed back before the LM head: `adapters` does so in its flexible heads only."""
        return not (self.version or "").startswith("adapters.") or self.model_class.endswith("AdapterModel")


def convert_config(values: Any, origin: Origin) -> MethodConfig:
    """The config of one of the library's folders.

    `as_adapterhub` is set where our formula is another. A VeRA of the library has whole matrices where the paper has
    diagonals: it is exactly a LoRA of the same rank and scaling, with A' = D A and B' = B_v B, and becomes one; a DvoRA
    becomes a DoRA. `init_weights_seed` is left out: it would draw other numbers here.

    Raises:
        CheckpointError: a method or an option that cannot be computed as the library did.
        ConfigError: unknown keys, or values that are impossible for us.
    """
    if isinstance(values, str):
        if values not in _OLD_PRESETS:
            raise CheckpointError(f"the config is the word '{values}'; as a word only {listed(_OLD_PRESETS)} are known")
        if values == "pfeiffer" and origin.inverts:  # at first the name meant both, for adapters of a language
            values = "pfeiffer+inv"
        values = {key: value for key, value in config_from_string(values).to_dict().items() if key != "method"}
    return config_from_dict(_converted(dict(values or {}), origin))


def _converted(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    kind = values.pop("architecture", None)
    values.pop("init_weights_seed", None)
    if kind == "union":
        made = [_converted(dict(member), origin) for member in values["configs"]]
        return {"method": "union", "configs": [each for one in made for each in one.get("configs", [one])]}
    known = {
        None: _bottleneck,
        "lora": _lora,
        "mtl_lora": _mtl_lora,
        "prefix_tuning": _prefix_tuning,
        "prompt_tuning": _prompt_tuning,
        "reft": _reft,
    }
    if kind not in known:
        raise CheckpointError(unknown("method of the library", str(kind), [*filter(None, known), "union"], "Known are"))
    return known[kind](_counted_over_all(values, origin.family.depths), origin)


def _counted_over_all(values: dict[str, Any], depths: tuple[int, ...]) -> dict[str, Any]:
    """Indices of layers over the whole model, where the library counts those of each part from 0."""

    def moved(indices: Iterable[int]) -> list[int]:
        starts = [sum(depths[:part]) for part in range(len(depths))]
        return [start + i for start, depth in zip(starts, depths, strict=True) for i in indices if i < depth]

    if not depths:
        return values
    for key in ("leave_out", "layers"):
        if isinstance(values.get(key), list):
            values[key] = moved(values[key])
    factors = values.get("reduction_factor")
    if isinstance(factors, Mapping):
        own = {int(key): factor for key, factor in factors.items() if key != "default"}
        rest = {key: factor for key, factor in factors.items() if key == "default"}
        values["reduction_factor"] = rest | {str(j): own[i] for i in own for j in moved([i])}
    return values


def _bottleneck(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    values, family = _renewed(values, origin), origin.family
    if family.no_bottleneck:
        raise CheckpointError(f"a bottleneck cannot be computed as in the library: {family.no_bottleneck}")
    reads_norm = values.get("original_ln_before") or not values.get("original_ln_after", True)
    if family.no_attention_norm and values.get("mh_adapter") and reads_norm:
        raise CheckpointError(
            "mh_adapter with original_ln_before, or without original_ln_after: the library leaves out the norm after "
            "this family's attention, so that a bottleneck there cannot be computed as it did"
        )
    if family.crosses_with_attention:
        values["cross_adapter"] = values["mh_adapter"]
    if isinstance(values.get("scaling"), int):
        values["scaling"] = float(values["scaling"])
    if values.get("inv_adapter") == "glow":
        raise CheckpointError("inv_adapter is 'glow', which the library cannot compute; there is nothing to reproduce")
    if origin.is_task and not origin.inverts:  # adapter-transformers 1 wrote it down for task adapters, and made none
        values["inv_adapter"] = None
    if values.get("inv_adapter") is None:
        values.pop("inv_adapter_reduction_factor", None)
    else:
        values["inv_adapter_at_head"] = origin.inverts_at_head
    if not values.get("phm_layer", False):
        defaults = BnConfig.fields()
        ignored = re.compile(r"(shared_|factorized_)?phm_.*|learn_phm|shared_W_phm|factorized_phm_W|hypercomplex_.*")
        values = {key: value for key, value in values.items() if not (ignored.fullmatch(key) and key in defaults)}
    else:
        if values.get("learn_phm") is False:
            values["learn_phm"] = True  # the library's frozen rule is random numbers, and only the file has them
        if not values.get("factorized_phm_W", True):
            values.pop("phm_rank", None)  # it has no meaning there, and neither has the range below
        if values.get("phm_c_init") == "uniform" or not values.get("shared_phm_rule", True):
            values.pop("phm_init_range", None)
    values |= {"method": "bottleneck", "as_adapterhub": bool(values.get("use_gating"))}
    return _exchanged(values) if family.exchanged and values.get("mh_adapter") else values


def _exchanged(values: dict[str, Any]) -> dict[str, Any]:
    """The config where the library's bottleneck after attention reads the residual r, and adds its output h to it.

    Of their sum both are the same. Else its sequential form r + f(r), to which h is added, is the parallel form
    h + f(r), to which r is added; and the other way round. Elsewhere the form stays, which makes two bottlenecks.
    """
    before, after = bool(values.get("original_ln_before")), values.get("original_ln_after", True)
    if before and (after or values.get("residual_before_ln", True) is not True):
        return values
    shares = values.get("phm_layer") and (values.get("shared_phm_rule", True) or values.get("shared_W_phm"))
    wrong = {
        "original_ln_after is false": not after,
        "adapter_residual_before_ln is true": values.get("adapter_residual_before_ln"),
        "stochastic_depth is not 0": values.get("stochastic_depth"),
        "its PHM layers share numbers": shares and values.get("output_adapter"),
    }
    for problem in (problem for problem, found in wrong.items() if found):
        raise CheckpointError(
            f"mh_adapter, and {problem}: on this family the library takes the residual for the attention's output "
            "there, which cannot be computed with that"
        )
    rest = values | {"mh_adapter": False}
    own = {key: value for key, value in values.items() if not key.startswith("inv_adapter")}
    own |= {"output_adapter": False, "cross_adapter": False, "residual_before_ln": True}
    own["is_parallel"] = not values.get("is_parallel", False)
    if not (rest.get("output_adapter") or rest.get("inv_adapter")):
        return own
    return {"method": "union", "configs": [own, rest]}


def _renewed(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """The config of a bottleneck with the keys and names of `adapters` 1."""
    for key in ("attention_type", "new_attention_norm"):
        values.pop(key, None)
    values = {_OLD_KEYS.get(key, key): value for key, value in values.items()}
    if origin.version is None:
        values["non_linearity"] = _OLD_ACTIVATIONS.get(values["non_linearity"], values["non_linearity"])
    inverse = values.pop("invertible_adapter", None)
    if isinstance(inverse, Mapping):
        own = inverse.get("non_linearity", values["non_linearity"])
        own = _OLD_ACTIVATIONS.get(own, own) if origin.version is None else own
        if own != values["non_linearity"] and not (origin.is_task and not origin.inverts):
            raise CheckpointError(
                f"invertible_adapter has the activation '{own}' and the bottleneck '{values['non_linearity']}'; an "
                "adapter has one for both here"
            )
        values["inv_adapter"] = inverse["block_type"]
        values["inv_adapter_reduction_factor"] = inverse["reduction_factor"]
    return values


def _lora(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    family = origin.family
    if origin.alpha_was_ignored:
        values["alpha"] = values["r"]
    if family.swapped_mlp:
        up, down = values.pop("output_lora", False), values.pop("intermediate_lora", False)
        values |= {"intermediate_lora": up, "output_lora": down}
    if family.fused_mlp:
        values["gate_lora"] = values.get("intermediate_lora", False)
    scales, dora = values.get("composition_mode") == "scale", bool(values.get("use_dora"))
    gated, up = bool(values.get("use_gating")), bool(values.get("intermediate_lora"))
    if values.get("init_weights") == "vera":
        values["init_weights"] = "lora"
        values["vera_d"] = values["vera_b"] = None
    if scales:
        values["init_weights"] = "ia3"  # the library's other initial values leave no trace in a trained adapter
        rest = set("qkv") - set(values["attn_matrices"])
        if family.fused and values.get("selfattn_lora", True) and values["alpha"] != 1 and rest:
            raise CheckpointError(
                f"alpha is {values['alpha']} with composition_mode 'scale': where queries, keys and values come out of "
                "one module, the library multiplies all of them with it, adapted or not"
            )
    if family.heads and values.get("selfattn_lora", True):
        values |= _of_all_heads(values, len(origin.matrices), scales, gated)
    method = "ia3" if scales else "dora" if dora else "lora"
    return values | {"method": method, "as_adapterhub": gated or dora or (scales and up)}


def _of_all_heads(values: dict[str, Any], adapted: int, scales: bool, gated: bool) -> dict[str, Any]:
    """The config where the library's q, k, v are thirds of the heads and each of ours has a part of all of them.

    The rank is that of all adapted ones together, and the scaling α / r stays.
    """
    matrices = {"attn_matrices": ["q", "k", "v"]}
    if scales:
        return matrices
    if gated and adapted > 1:
        raise CheckpointError(
            "use_gating where the rows of queries, keys and values lie head by head: the library gates thirds of the "
            "heads, each with its own gate, and there is one for a whole projection here"
        )
    return matrices | {"r": values["r"] * adapted, "alpha": values["alpha"] * adapted}


def _mtl_lora(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    return _lora(values, origin) | {"method": "mtl_lora"}


def _prefix_tuning(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    if origin.family.no_prefix:
        raise CheckpointError(f"a prefix cannot be computed as in the library: {origin.family.no_prefix}")
    gated = bool(values.get("use_gating"))
    if not gated:
        values.pop("shared_gating", None)
    if origin.family.depths:
        values["encoder_prefix"] = True  # the encoder's is named as that of a model of its own, which always has one
    return values | {"method": "prefix_tuning", "as_adapterhub": gated}


def _prompt_tuning(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    return values | {"method": "prompt_tuning", "as_adapterhub": True}


def _reft(values: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Whether R h is subtracted is not among what the library saves: a DiReFT's file is a NoReFT's.

    With orthogonality it always is in the library's presets. Without, the file must say so itself.
    """
    if not values.get("orthogonality") and "subtract_projection" not in values:
        raise CheckpointError(
            "the library writes NoReFT and DiReFT alike, so this file can be either; say which by adding to its config "
            '"subtract_projection": true (NoReFT) or "subtract_projection": false (DiReFT)'
        )
    return values | {"method": "reft"}
