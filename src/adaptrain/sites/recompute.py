"""Gradient checkpointing: layers that are run again in the backward pass see the forward that they repeat.

transformers marks the layers that it recomputes and gives each of them a function, `_gradient_checkpointing_func`.
Whoever has marked them (transformers' own methods, its Trainer, the caller of a base model that has no adapters yet),
that function is wrapped at the next forward, so that the recompute

    runs under the forward's composition, in whatever thread and whatever is active by then;
    is never reentrant: reentrant checkpoints lose the gradients of adapters on frozen inputs, without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adaptrain.context import Forward, current_forward
from adaptrain.errors import UnsupportedError

_FUNCTION = "_gradient_checkpointing_func"


class Recompute:
    """A layer's checkpointing function, under the forward that calls it.

    Args:
        function: what transformers would call with a layer and its inputs.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if function is checkpoint:
            function = partial(checkpoint)
        if isinstance(function, partial):  # of torch's checkpoint, or of transformers' own function around it
            function = partial(function.func, *function.args, **function.keywords | {"use_reentrant": False})
        self.function = function

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        forward = current_forward()
        return self.function(layer if forward is None else _Resumed(layer, forward), *args, **kwargs)


class _Resumed:
    """A layer that runs under a forward."""

    def __init__(self, layer: Callable[..., Any], forward: Forward) -> None:
        self.layer, self.forward = layer, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current_forward() is self.forward:
            return self.layer(*args, **kwargs)
        self.forward.records = None  # the caller has them, and they are not added to
        with self.forward.resume():
            return self.layer(*args, **kwargs)


def recomputable(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that transformers may mark."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def adopt(modules: Iterable[nn.Module]) -> None:
    """Wrap the functions of the modules that are marked."""
    for module in modules:
        function: Any = getattr(module, _FUNCTION, None) if module.gradient_checkpointing else None
        if function is not None and not isinstance(function, Recompute):
            setattr(module, _FUNCTION, Recompute(function))


def refuse_unknown() -> None:
    """Refuse a layer that runs in a backward pass outside of any forward: a checkpoint of the caller's own, which would
    run it without adapters, so that their gradients were lost.

    Raises:
        UnsupportedError: says what to call instead.
    """
    if torch._C._current_graph_task_id() >= 0:
        raise UnsupportedError(
            "A layer with adapters is run again in a backward pass by a checkpoint that does not know the composition "
            "of its forward (torch.utils.checkpoint, FSDP's or DeepSpeed's); take it off, and call "
            "gradient_checkpointing_enable() on the adapted model"
        )
