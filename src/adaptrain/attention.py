"""Keys and values, reached through transformers' attention registry. The only file that touches the registry.

A model with prefixes runs under our name for its implementation, `adaptrain_sdpa` or `adaptrain_eager`. The function
behind it looks for a site on the attention module it is given, lets it change keys and values, and delegates to what
the model would have used. Without a prefix it changes nothing.

Masks are always explicit under our names: an absent mask means "causal" to sdpa and aligns queries with the *first*
keys, so a prefix in front of the keys would hide the text itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptrain.errors import UnsupportedError
from adaptrain.state import AttentionState, additive
from adaptrain.upstream import Arguments, attribute, missing, strange

PREFIX = "adaptrain_"
SERVED = ("sdpa", "eager")

_MARK = "_adaptrain_site"
_SKIP = "allow_is_causal_skip"
_OWN = "eager_attention_forward"
_KNOWN = ("scaling", "dropout", "softcap", "is_causal", "position_bias", "s_aux")
"""What `attend_gated` takes into account, or refuses."""


class KeyValueSite(Protocol):
    """What changes keys and values at one attention module."""

    def change(self, state: AttentionState) -> AttentionState: ...


def install(model: PreTrainedModel) -> None:
    """Let the model's attentions be reached.

    Raises:
        UnsupportedError: the model uses an implementation that cannot take a prefix.
    """
    implementation = attribute(model.config, "_attn_implementation") or "eager"
    if implementation.startswith(PREFIX):
        return
    Arguments(ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]).require(_SKIP)
    if implementation not in SERVED:
        raise UnsupportedError(
            f"Prefix tuning works with the attention implementations {', '.join(SERVED)}, and this "
            f"{model.config.model_type} uses '{implementation}'; load it with attn_implementation='sdpa'"
        )
    model.set_attn_implementation(PREFIX + implementation)
    models = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    if deaf := [part for part in models if not (part.config._attn_implementation or "").startswith(PREFIX)]:
        uninstall(model)
        raise UnsupportedError(
            f"Prefix tuning cannot reach the attention of {type(deaf[0]).__name__}: transformers does not let its "
            "implementation be chosen. A module that calls ALL_ATTENTION_FUNCTIONS.get_interface can be reached; for "
            "one that attends in a method of its own, the architecture can name it (attentions.attention.method)"
        )


def uninstall(model: PreTrainedModel) -> None:
    """Give the model its own implementation back."""
    implementation = model.config._attn_implementation or ""
    if implementation.startswith(PREFIX):
        model.set_attn_implementation(implementation.removeprefix(PREFIX))


def registered(module: nn.Module) -> bool:
    """Whether the file that a module's class is in has transformers' attention registry."""
    source = vars(sys.modules[type(module).__module__])
    return any(each is ALL_ATTENTION_FUNCTIONS for each in source.values())


def mark(module: nn.Module, site: KeyValueSite | None) -> None:
    """Say which site serves an attention module; None takes it back."""
    if site is None:
        module.__dict__.pop(_MARK, None)
    else:
        module.__dict__[_MARK] = site  # past nn.Module's bookkeeping: it must not look like a part of the base model


def _attend(inner: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        own = sys.modules[type(module).__module__].__dict__.get(_OWN)
        delegate = own if inner == "eager" and own is not None else ALL_ATTENTION_FUNCTIONS.get(inner)
        if delegate is None:
            raise missing(f"the function `{_OWN}`", type(module).__module__)
        site: KeyValueSite | None = module.__dict__.get(_MARK)
        if site is None:
            return delegate(module, query, key, value, attention_mask, **kwargs)
        state = site.change(AttentionState(key, value, attention_mask, kwargs.get("position_bias")))
        if state.keys is key:
            return delegate(module, query, key, value, attention_mask, **kwargs)
        if attention_mask is None and query.shape[2] > 1 and _causal(module, kwargs):
            mask = _causal_mask(query.shape[2], key.shape[2], state.keys.shape[2], query.device)
            state = replace(state, mask=additive(mask, query.dtype) if inner == "eager" else mask)
        if state.gates is not None:
            if not torch.compiler.is_compiling():
                _check_known(delegate, kwargs)
            return attend_gated(query, state, module.training, **kwargs), None
        if state.bias is not None:
            kwargs["position_bias"] = state.bias
        return delegate(module, query, state.keys, state.values, state.mask, **kwargs)

    return attend


def _check_known(delegate: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Refuse what the model's own function would read, where ours is called in its place and does not know it."""
    read = Arguments(delegate).names
    for name, value in kwargs.items():
        if value is not None and name in read and name not in _KNOWN:
            raise strange(f"the argument `{name}`", f"{delegate.__module__}.{delegate.__name__}")


def attend_gated(
    query: Tensor,
    state: AttentionState,
    training: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **rest: Any,
) -> Tensor:
    """Σ_j g_j softmax(g_j · q kⱼᵀ · scaling + bias + mask) vⱼ: no kernel of torch has a gate a query and key.

    Returns:
        (rows, queries, heads, head_dim).
    """
    if rest.get("s_aux") is not None:
        raise UnsupportedError("gated prefixes do not go with attention sinks; use a prefix without use_gating")
    assert state.gates is not None
    times = query.shape[1] // state.keys.shape[1]  # grouped queries
    keys, values = (part.repeat_interleave(times, 1) for part in (state.keys, state.values))
    scores = query @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores * state.gates.to(scores.dtype)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    for part in (state.bias, state.mask):
        if part is not None:
            scores = scores + additive(part, scores.dtype)
    weights = torch.softmax(scores, -1, torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, dropout, training) * state.gates.to(query.dtype)
    return (weights @ values).transpose(1, 2).contiguous()


def _causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _causal_mask(queries: int, keys: int, with_prefix: int, device: torch.device) -> Tensor:
    """(1, 1, queries, with_prefix): the prefix is visible to all, of the keys those up to the query."""
    text = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return F.pad(text, (with_prefix - keys, 0), value=True)[None, None]


def attend_with_state(
    query: Tensor, state: AttentionState, dropout: float, training: bool, scale: float | None = None
) -> Tensor:
    """softmax(scale · q kᵀ + bias + mask) v for modules that compute attention themselves.

    Args:
        query: (rows, heads, positions, head_dim).
        scale: 1 / √head_dim when None.

    Returns:
        (rows, positions, heads · head_dim).
    """
    mask = state.mask
    if state.bias is not None:
        mask = state.bias if mask is None else state.bias + additive(mask, state.bias.dtype)
    if mask is not None:
        mask = mask.to(query.dtype) if mask.dtype != torch.bool else mask
    out = F.scaled_dot_product_attention(
        query, state.keys, state.values, mask, dropout if training else 0.0, scale=scale
    )
    return out.transpose(1, 2).flatten(2)


def _explicit(inner: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        kwargs[_SKIP] = False
        return ALL_MASK_ATTENTION_FUNCTIONS[inner](*args, **kwargs)

    return mask


for _inner in SERVED:
    AttentionInterface.register(PREFIX + _inner, _attend(_inner))
    AttentionMaskInterface.register(PREFIX + _inner, _explicit(_inner))
