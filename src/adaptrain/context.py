"""What holds for one forward in one thread: the composition in force, values computed once, residuals in flight.

`AdapterSetup` overrides the active composition inside a `with` block; it nests, and other threads do not see it.
Gradient checkpointing recomputes layers later and perhaps in another thread: `Forward.resume` puts the forward that was
recorded back in force there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adaptrain.composition import Composition, parse


class Forward:
    """One pass through the model.

    Attributes:
        owner: whose pass it is; a model inside another one does not mistake it for its own.
        entrance: the module that it entered by.
        plan: site → the composition pruned to it.
        once: values that do not depend on the batch, by the shared module that computes them.
        taken: what sites took on the way in (residuals, queries) and have not yet consumed.
        depth: how many entry modules of the owner are running, one inside the other.
        before: the forward that was in force when this one began.
    """

    __slots__ = ("before", "depth", "entrance", "once", "owner", "plan", "taken")

    def __init__(self, owner: object, plan: Mapping[Any, Composition], entrance: object = None) -> None:
        self.owner = owner
        self.entrance = entrance
        self.plan = plan
        self.once: dict[Any, Any] = {}
        self.taken: dict[Any, Any] = {}
        self.depth = 1
        self.before = _local.forward

    @contextmanager
    def resume(self) -> Iterator[None]:
        """Put this forward in force again in the current thread."""
        before = _local.forward
        _local.forward = self
        try:
            yield
        finally:
            _local.forward = before


class _Local(threading.local):
    def __init__(self) -> None:
        # in each thread's own dict, not on the class: compiled graphs guard on the former only
        self.forward: Forward | None = None
        self.setups: tuple[AdapterSetup, ...] = ()


_local = _Local()


class AdapterSetup:
    """Override the active composition, and the active head, inside a `with` block of this thread.

    `AdapterSetup(None)` is the base model.

    Args:
        composition: a name, a block, an expression, or None.
        head_setup: name of a head; None keeps the active one.

    Raises:
        CompositionError: it cannot be read; or, at the next forward, a model does not have an adapter that is named.
    """

    def __init__(self, composition: Any, head_setup: str | None = None) -> None:
        self.composition: Composition | None = parse(composition)
        self.head = head_setup

    def __enter__(self) -> AdapterSetup:
        _local.setups = (*_local.setups, self)
        return self

    def __exit__(self, *_: object) -> None:
        _local.setups = _local.setups[:-1]


def current_setup() -> AdapterSetup | None:
    """The innermost setup of this thread."""
    return _local.setups[-1] if _local.setups else None


def current_forward() -> Forward | None:
    """The forward in force in this thread."""
    return _local.forward


def enter(forward: Forward) -> None:
    """Put a forward in force until `leave`."""
    _local.forward = forward


def leave(forward: Forward) -> None:
    """Put the forward before it back in force."""
    _local.forward = forward.before
