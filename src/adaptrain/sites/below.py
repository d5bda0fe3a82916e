"""The layers below the lowest one that a composition acts in: run alone, or passed over.

What they compute depends on the inputs alone, as nothing in them trains: it can be computed once and given to every
later forward. The layers keep their modules and hooks; for the duration of one forward their instances get another
`forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptrain.composition import Composition
from adaptrain.errors import UnsupportedError, listed
from adaptrain.points import modules_at
from adaptrain.sites.base import first_of
from adaptrain.sites.live import Sites
from adaptrain.upstream import Arguments

FAMILIES = ("bert", "distilbert", "gemma2", "gpt2", "llama", "modernbert", "mpnet", "olmo2", "phi3")
"""Tables of models that hand nothing but hidden states from one layer to the next."""


class Below:
    """The layers below the lowest one that a composition acts in.

    Args:
        sites: of the model.
        tree: the composition.

    Attributes:
        count: how many layers lie below: k, if layer k is the lowest one that the composition acts in; all of them
            where it acts in none.

    Raises:
        UnsupportedError: nothing lies below, or the model cannot begin at a later layer; names the place and the cure.
    """

    def __init__(self, sites: Sites, tree: Composition | None) -> None:
        architecture, self.model = sites.architecture, sites.model
        kind = str(self.model.config.model_type)
        stack = architecture.stacks[0]
        if architecture.name not in FAMILIES or len(architecture.stacks) > 1 or "cross_attention" in stack.attentions:
            raise UnsupportedError(
                f"A {kind} cannot begin at a later layer; models of these tables can, without cross-attention: "
                f"{listed(FAMILIES)}"
            )
        layers = modules_at(self.model.base_model, stack.layers, kind)
        acting = {site.point.layer: site.point.name for site in reversed([*sites.plan(tree)])}
        self.count = min(acting, default=len(layers))
        if self.count < 1:
            cure = "leave the lower layers out (leave_out)" if self.count == 0 else "choose a method of layers alone"
            raise UnsupportedError(f"'{tree}' acts at {acting[self.count]}, below which there is no layer; {cure}")
        self._layers = layers[: self.count]
        self._arguments = Arguments(layers[0])
        self._tuple = False

    def states(self, inputs: Mapping[str, Any]) -> Tensor:
        """The hidden states that leave these layers, (rows, positions, hidden); what lies above is not computed."""

        def stop(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            self._tuple = isinstance(output, tuple)
            raise _ReachedError(first_of(output))

        last = self._layers[-1]
        own = last.forward
        with torch.no_grad(), _forwards({last: stop}):
            try:
                self.model.base_model(**inputs)
            except _ReachedError as reached:
                return reached.hidden
        raise AssertionError("a model's forward left a layer out")

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """Let the forward inside begin behind these layers, with what `states` has returned for its rows.

        Embeddings are looked up all the same, and masks and positions made. For one thread at a time.

        Args:
            states: (rows, positions, hidden), repeated where the composition repeats the rows; anything at padding.
        """

        def passed(*args: Any, **kwargs: Any) -> Any:
            return self._returned(self._arguments.at(0, args, kwargs))

        def begun(*args: Any, **kwargs: Any) -> Any:
            rows = len(self._arguments.at(0, args, kwargs))
            return self._returned(states.repeat(rows // len(states), 1, 1))

        with _forwards({**dict.fromkeys(self._layers[:-1], passed), self._layers[-1]: begun}):
            yield

    def _returned(self, hidden: Tensor) -> Any:
        return (hidden,) if self._tuple else hidden


class _ReachedError(Exception):
    """Ends a forward whose remainder nobody wants."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@contextmanager
def _forwards(others: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give instances of modules another `forward`, and take it back whatever happens."""
    before = {module: vars(module).get("forward") for module in others}
    try:
        for module, other in others.items():
            vars(module)["forward"] = other  # past nn.Module's bookkeeping
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:  # somebody else's, such as accelerate's for offloaded layers
                vars(module)["forward"] = own
