"""What holds for one forward in one thread: the composition in force, values computed once, residuals in flight.

`AdapterSetup` overrides the active composition inside a `with` block; it nests, and other threads do not see it.
Gradient checkpointing recomputes layers later and perhaps in another thread: `Forward.resume` puts the forward that was
recorded back in force there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptrain.composition import Composition, parse
from adaptrain.errors import AdaptrainError, UnsupportedError


class Tokens:
    """Which positions of one stack hold tokens in a forward; what follows from it is worked out once.

    Args:
        past: positions that the cache holds already, or the error for whoever asks, where their number is not known.

    Attributes:
        visible: (rows, past + positions) of booleans; None: all.
        prompt: how many of the positions the caller gave to `generate`, which goes on with its own; None: all.
    """

    def __init__(
        self, visible: Tensor | None = None, past: int | Tensor | AdaptrainError = 0, prompt: int | None = None
    ) -> None:
        self.visible, self.prompt, self._past = visible, prompt, past
        self._known: dict[str, Tensor] = {}

    @property
    def past(self) -> int | Tensor:
        """Positions that the cache holds already.

        Raises:
            AdaptrainError: their number is not known.
        """
        if isinstance(self._past, AdaptrainError):
            raise self._past
        return self._past

    def with_visible(self, visible: Tensor | None) -> Tokens:
        """The same positions with others between them that a prompt takes, which nothing has counted yet."""
        return Tokens(visible, self._past, self.prompt)

    def mask(self, length: int) -> Tensor | None:
        """Of the last `length` positions, (rows, length)."""
        return None if self.visible is None else self.visible[:, -length:]

    def from_start(self, h: Tensor) -> Tensor:
        """Tokens before each of the positions of h, -1 at padding; (rows or 1, positions). What is visible may end with
        the prompt: what follows it are tokens.

        Raises:
            UnsupportedError: what is visible is a window that is shorter than h.
        """
        if "start" not in self._known:
            here = torch.arange(h.shape[1], device=h.device) + self.past
            before = here[None]
            if self.visible is not None:
                count, length = self.visible.cumsum(1), self.visible.shape[1]
                if length < h.shape[1]:
                    raise UnsupportedError(
                        f"A mask of {length} positions does not say which of {h.shape[1]} are tokens; give "
                        "attention_mask with one number a position (rows, positions)"
                    )
                rank = (count - 1).masked_fill(~self.visible, -1).index_select(1, here.clamp(max=length - 1))
                before = torch.where(here < length, rank, count[:, -1:] + here - length)
            self._known["start"] = before
        return self._known["start"]

    def from_end(self, h: Tensor) -> Tensor:
        """Tokens of the prompt after each of the positions of h, -1 elsewhere; (rows or 1, positions)."""
        if "end" not in self._known:
            seen = self.from_start(h) >= 0
            if self.prompt is not None:
                seen = seen & (torch.arange(h.shape[1], device=h.device) < self.prompt)
            after = (seen.flip(1).cumsum(1).flip(1) - 1).masked_fill(~seen, -1)
            decoding = torch.as_tensor(self.past, device=h.device) > 0  # what is decoded follows a prompt that is past
            self._known["end"] = after.masked_fill(decoding, -1)
        return self._known["end"]


class Records:
    """What units tell beside the outputs.

    Attributes:
        gates: adapter → layer → place → scores, (rows, gates).
        fusions: fusion → layer → place → attentions, (rows, positions, adapters).
        place: adapter, layer and place of the unit that is running.
    """

    def __init__(self) -> None:
        self.gates: dict[str, dict[int, dict[str, Any]]] = {}
        self.fusions: dict[str, dict[int, dict[str, Any]]] = {}
        self.place: tuple[str, int, str] = ("", -1, "")

    def gate(self, scores: Tensor) -> None:
        """Keep the scores of the unit that is running; those of one place stand side by side."""
        name, layer, place = self.place
        here = self.gates.setdefault(name, {}).setdefault(layer, {})
        found = scores.detach().float().cpu().numpy()
        here[place] = np.concatenate([here[place], found], -1) if place in here else found

    def fusion(self, attentions: Tensor) -> None:
        """Keep the attentions of the fusion that is running."""
        name, layer, place = self.place
        self.fusions.setdefault(name, {}).setdefault(layer, {})[place] = attentions.detach().float().cpu().numpy()


class Forward:
    """One pass through the model.

    Attributes:
        owner: whose pass it is; a model inside another one does not mistake it for its own.
        entrance: the module that it entered by.
        plan: site → the composition pruned to it.
        once: values that do not depend on the batch, by the shared module that computes them.
        taken: what sites took on the way in (residuals, queries) and have not yet consumed.
        tokens: stack → which of its positions are tokens.
        depth: how many entry modules of the owner are running, one inside the other.
        records: what the caller wants to be told beside the outputs, or None.
        tasks: of each row, for MultiTask.
        past: stack → positions that its cache holds, for Split where the sequence goes on.
        before: the forward that was in force when this one began.
    """

    __slots__ = ("before", "depth", "entrance", "once", "owner", "past", "plan", "records", "taken", "tasks", "tokens")

    def __init__(self, owner: object, plan: Mapping[Any, Composition], entrance: object = None) -> None:
        self.owner = owner
        self.entrance = entrance
        self.plan = plan
        self.once: dict[Any, Any] = {}
        self.taken: dict[Any, Any] = {}
        self.tokens: dict[str, Tokens] = {}
        self.depth = 1
        self.records = _local.records
        self.tasks: tuple[int, ...] | None = None
        self.past: Mapping[str, int] = {}
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
        self.records: Records | None = None
        self.prompt: int | None = None
        self.rows: int | None = None
        self.seen: Tensor | None = None
        self.tasks: Sequence[int | str] | None = None


_local = _Local()


class AdapterSetup:
    """Override the active composition and heads inside a `with` block of this thread.

    `AdapterSetup(None)` is the base model.

    Args:
        composition: a name, a block, an expression, or None.
        head_setup: name of a head, or of one for each branch; None takes those that bear the composition's names, and
            the active ones where there are none.
        skip_layers: layers, counted over the whole model, whose adapters do nothing.

    Raises:
        CompositionError: it cannot be read; or, at the next forward, a model does not have an adapter, head or layer
            that is named.
    """

    def __init__(
        self, composition: Any, head_setup: str | Sequence[str] | None = None, skip_layers: Iterable[int] = ()
    ) -> None:
        self.composition: Composition | None = parse(composition)
        self.heads = head_setup if head_setup is None or isinstance(head_setup, str) else tuple(head_setup)
        self.skip_layers = tuple(skip_layers)

    def __enter__(self) -> AdapterSetup:
        _local.setups = (*_local.setups, self)
        return self

    def __exit__(self, *_: object) -> None:
        _local.setups = _local.setups[:-1]


@contextmanager
def recording(records: Records | None) -> Iterator[None]:
    """Let the forwards inside tell `records`."""
    before = _local.records
    _local.records = records
    try:
        yield
    finally:
        _local.records = before


@contextmanager
def routing(tasks: Sequence[int | str] | None) -> Iterator[None]:
    """Say which task each row of the forwards inside has, for MultiTask."""
    before = _local.tasks
    _local.tasks = tasks
    try:
        yield
    finally:
        _local.tasks = before


def current_tasks() -> Sequence[int | str] | None:
    """The task of each row; None where nobody has said."""
    return _local.tasks


@contextmanager
def generating(prompt: int, rows: int, seen: Tensor | None = None) -> Iterator[None]:
    """Say that the first `prompt` positions of the forwards inside are given, and that what follows is generated.

    Args:
        rows: that are given, repeated for Parallel already.
        seen: which of the given positions are tokens, (rows, prompt); None: not known.
    """
    before = _local.prompt, _local.rows, _local.seen
    _local.prompt, _local.rows, _local.seen = prompt, rows, seen
    try:
        yield
    finally:
        _local.prompt, _local.rows, _local.seen = before


def current_seen() -> Tensor | None:
    """Which positions of the prompt of the generation in force are tokens, (rows, prompt); None where that is not
    known."""
    return _local.seen


def current_rows() -> int | None:
    """How many rows the generation in force was given, repeated for Parallel already; None outside one."""
    return _local.rows


def current_prompt() -> int | None:
    """How many positions the prompt of the generation in force has; None outside one."""
    return _local.prompt


def record_gate(scores: Tensor) -> None:
    """Keep a unit's gates, (rows, gates), where the caller of this forward has asked for them."""
    forward = _local.forward
    if forward is not None and forward.records is not None:
        forward.records.gate(scores)


def record_fusion(attentions: Tensor) -> None:
    """Keep a fusion's attentions, (rows, positions, adapters), where the caller of this forward has asked for them."""
    forward = _local.forward
    if forward is not None and forward.records is not None:
        forward.records.fusion(attentions)


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
