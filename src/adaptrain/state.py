"""What flows at a point of a model: a small dataclass of tensors, divided and joined by rows and positions.

Rows are the batch axis, positions the sequence axis; the axis of each tensor is declared beside it. Tensors of size 1
along an axis (a mask that all rows share) are broadcast, so they are neither divided nor joined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class State:
    """Base class: split, join and weigh for every kind of point.

    `carried` names the fields that a method reads but never changes: they follow a split, and are taken from the whole
    again at a join.

    Attributes:
        tasks: of each row, where a MultiTask is in force.
        earlier: positions in front of the first one, where a sequence goes on; None: it is whole.
    """

    positions_axis: ClassVar[int] = 1
    carried: ClassVar[frozenset[str]] = frozenset()

    tasks: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)
    earlier: int | None = dataclasses.field(default=None, kw_only=True)

    @property
    def rows(self) -> int:
        return max(tensor.shape[0] for tensor in self._tensors().values())

    @property
    def positions(self) -> int:
        return max(tensor.shape[self.positions_axis] for tensor in self._tensors().values())

    def split_rows(self, sizes: Sequence[int]) -> list[Self]:
        """Consecutive pieces along the rows."""
        pieces = self._split(sizes, 0)
        if self.tasks is None:
            return pieces
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        shares = [self.tasks[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return [dataclasses.replace(piece, tasks=share) for piece, share in zip(pieces, shares, strict=True)]

    def take_rows(self, order: Sequence[int]) -> Self:
        """The rows in another order."""
        rows = self.rows

        def taken(tensor: Tensor) -> Tensor:
            if tensor.shape[0] != rows:
                return tensor
            return tensor.index_select(0, torch.tensor(order, dtype=torch.long, device=tensor.device))

        tasks = None if self.tasks is None else tuple(self.tasks[row] for row in order)
        return dataclasses.replace(self, **{key: taken(each) for key, each in self._tensors().items()}, tasks=tasks)

    def split_positions(self, sizes: Sequence[int]) -> list[Self]:
        """Consecutive pieces along the positions."""
        return self._split(sizes, self.positions_axis)

    def join_rows(self, pieces: Sequence[Self]) -> Self:
        """Inverse of `split_rows`; self is the whole that was split."""
        return self._join(pieces, 0)

    def join_positions(self, pieces: Sequence[Self]) -> Self:
        """Inverse of `split_positions`; self is the whole that was split."""
        return self._join(pieces, self.positions_axis)

    def weigh(self, wholes: Sequence[Self], weights: Sequence[float]) -> Self:
        """Σ weightᵢ · wholeᵢ over the tensors that methods change; what is true or false is the first's."""

        def mean(key: str) -> Tensor:
            tensors = [getattr(whole, key) for whole in wholes]
            if not tensors[0].is_floating_point():
                return tensors[0]
            return torch.stack([tensor * weight for tensor, weight in zip(tensors, weights, strict=True)]).sum(0)

        changed = {key: mean(key) for key in wholes[0]._tensors() if key not in self.carried}
        return dataclasses.replace(self, **changed)

    def _split(self, sizes: Sequence[int], axis: int) -> list[Self]:
        pieces: dict[str, Sequence[Tensor]] = {
            key: tensor.split(list(sizes), axis) if tensor.shape[axis] > 1 or sum(sizes) == 1 else [tensor] * len(sizes)
            for key, tensor in self._tensors().items()
        }
        return [dataclasses.replace(self, **{k: piece[i] for k, piece in pieces.items()}) for i in range(len(sizes))]

    def _join(self, pieces: Sequence[Self], axis: int) -> Self:
        return self._map(lambda key: torch.cat([getattr(piece, key) for piece in pieces], axis))

    def _map(self, change: Callable[[str], Tensor]) -> Self:
        changed = {key: change(key) for key in self._tensors() if key not in self.carried}
        return dataclasses.replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value for key, value in values.items() if isinstance(value, Tensor)}


class LinearMap(Protocol):
    """The frozen map at a projection, read when it is needed: weight (out, in), bias (out) or None."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...


@dataclass(frozen=True)
class ProjectionState(State):
    """One linear map of the model, y = W x + b. A word embedding is one too, of one-hot words.

    Attributes:
        x: its input, (rows, positions, in_features); whole numbers (rows, positions) where they are words.
        y: its output, (rows, positions, out_features); what methods change.
        mask: which positions of x are tokens, (rows, positions) of booleans; None: all.
        map: W and b.
    """

    carried = frozenset({"x", "mask"})

    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    map: LinearMap | None = None


@dataclass(frozen=True)
class ActivationState(State):
    """The inner activation of an MLP, the input of its last map.

    Attributes:
        h: (rows, positions, mlp width); what methods change.
    """

    h: Tensor


@dataclass(frozen=True)
class SublayerState(State):
    """The output of an attention or MLP sublayer. The model itself goes on to compute `norm(residual + h)`, or
    `residual + h` where it has no norm there.

    Attributes:
        h: output of the sublayer before the residual is added, (rows, positions, hidden); what methods change.
        residual: what the model will add, (rows, positions, hidden).
        norm: the norm that follows the addition, or None.
        mask: which positions are tokens, (rows, positions) of booleans; None: all.
        final: whether h stands for the sum and its norm already, so that the model's own are skipped.
    """

    carried = frozenset({"residual", "mask"})

    h: Tensor
    residual: Tensor
    norm: Callable[[Tensor], Tensor] | None = None
    mask: Tensor | None = None
    final: bool = False

    def weigh(self, wholes: Sequence[SublayerState], weights: Sequence[float]) -> Self:  # type: ignore[override]
        wholes = _alike(wholes)
        return dataclasses.replace(super().weigh(wholes, weights), final=wholes[0].final)  # type: ignore[arg-type]

    def _join(self, pieces: Sequence[SublayerState], axis: int) -> Self:  # type: ignore[override]
        pieces = _alike(pieces)
        return dataclasses.replace(super()._join(pieces, axis), final=pieces[0].final)  # type: ignore[arg-type]

    def finished(self) -> SublayerState:
        """The same with h in the place of the sum and its norm."""
        if self.final:
            return self
        whole = self.residual + self.h
        return dataclasses.replace(self, h=whole if self.norm is None else self.norm(whole), final=True)


def _alike(states: Sequence[SublayerState]) -> Sequence[SublayerState]:
    """Where one of them stands for the sum and its norm already, all have to."""
    return [state.finished() for state in states] if any(state.final for state in states) else states


@dataclass(frozen=True)
class LayerState(State):
    """The hidden states that a layer returns.

    Attributes:
        h: (rows, positions, hidden); what methods change.
        from_start: number of tokens of the row before this one, (rows or 1, positions); -1 where there is padding.
        from_end: number of tokens of the row's prompt after this one; -1 at padding and at what has been generated.
    """

    carried = frozenset({"from_start", "from_end"})

    h: Tensor
    from_start: Tensor
    from_end: Tensor


@dataclass(frozen=True)
class EmbeddingState(State):
    """The embeddings on their way into the first layer, and hidden states on their way into the output embedding.

    Attributes:
        h: (rows, positions, embedding size); what methods change.
    """

    h: Tensor


@dataclass(frozen=True)
class PromptState(State):
    """Trained vectors that the model reads besides the words.

    Attributes:
        before: in front of the text, (rows, any number, embedding size).
        after: behind the text's first token.
    """

    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class AttentionState(State):
    """Keys and values of one attention, after rotary embedding and cache.

    Attributes:
        keys, values: (rows, key/value heads, positions, head size).
        mask: None (all visible), boolean (True is visible) or additive; (rows or 1, heads or 1, queries, positions).
        bias: position bias added to the scores, shaped as the mask, or None.
        hidden: what the queries are made from, (rows, queries, hidden).
        tokens: which queries are tokens, (rows, queries) of booleans; None: all.
        gates: multiplies each query's scores and weights of each key, (rows, 1, queries, positions); None: one.
        wider: the bias of more keys, given their number, where those in front would be positions too; None: the model's
            bias does not depend on positions.
    """

    positions_axis = 2
    carried = frozenset({"hidden", "tokens"})

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None
    hidden: Tensor | None = None
    tokens: Tensor | None = None
    gates: Tensor | None = None
    wider: Callable[[int], Tensor] | None = None

    def join_rows(self, pieces: Sequence[AttentionState]) -> Self:  # type: ignore[override]
        """Pieces may have got prefixes of different lengths: shorter ones are filled on the left, out of sight."""
        longest = max(piece.keys.shape[2] for piece in pieces)
        grown = [piece.extend_left(longest - piece.keys.shape[2], visible=False) for piece in pieces]
        masks: list[Any] = [piece.mask for piece in grown]
        if any(mask is not None for mask in masks):
            masks = [piece.explicit_mask() for piece in grown]
            if any(mask.dtype != torch.bool for mask in masks):
                masks = [additive(mask, self.keys.dtype) for mask in masks]
            masks = [_rows(m, p.keys.shape[0]) for m, p in zip(masks, grown, strict=True)]
        gated = [piece for piece in grown if piece.gates is not None]
        return dataclasses.replace(
            self,
            keys=torch.cat([piece.keys for piece in grown]),
            values=torch.cat([piece.values for piece in grown]),
            mask=torch.cat(masks) if masks[0] is not None else None,
            bias=None if self.bias is None else torch.cat([_rows(p.bias, p.keys.shape[0]) for p in grown]),
            gates=torch.cat([piece.explicit_gates() for piece in grown]) if gated else None,
        )

    def weigh(self, wholes: Sequence[AttentionState], weights: Sequence[float]) -> Self:  # type: ignore[override]
        """Where one of them has gates, all have."""
        if any(whole.gates is not None for whole in wholes):
            wholes = [dataclasses.replace(whole, gates=whole.explicit_gates()) for whole in wholes]
        return super().weigh(wholes, weights)  # type: ignore[arg-type]

    def extend_left(
        self,
        length: int,
        visible: bool,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        gates: Tensor | None = None,
        counted: bool = False,
    ) -> Self:
        """Put `length` positions before the keys; zeros when no keys are given.

        Args:
            gates: of the new positions for each query, (rows, 1, queries, length); one when None.
            counted: where there is a position bias, they are positions as all others; else they have none.
        """
        if length == 0:
            return self
        rows, heads, _, size = self.keys.shape
        empty = self.keys.new_zeros(rows, heads, length, size)
        mask = self.mask
        if mask is None and not visible:
            mask = self.explicit_mask()
        if mask is not None:
            shape = (*mask.shape[:-1], length)
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            seen = True if mask.dtype == torch.bool else 0.0
            mask = torch.cat([mask.new_full(shape, seen if visible else hidden), mask], -1)
        bias = self.bias
        if counted and self.wider is not None:
            bias = self.wider(self.keys.shape[2] + length)
        elif bias is not None:
            bias = torch.cat([bias.new_zeros(*bias.shape[:-1], length), bias], -1)
        if gates is not None or self.gates is not None:
            old = self.explicit_gates()
            gates = torch.cat([old.new_ones(*old.shape[:-1], length) if gates is None else gates, old], -1)
        return dataclasses.replace(
            self,
            keys=torch.cat([empty if keys is None else keys, self.keys], 2),
            values=torch.cat([empty if values is None else values, self.values], 2),
            mask=mask,
            bias=bias,
            gates=gates,
        )

    def explicit_gates(self) -> Tensor:
        """The gates, or ones."""
        if self.gates is not None:
            return self.gates
        assert self.hidden is not None
        return self.keys.new_ones(self.keys.shape[0], 1, self.hidden.shape[1], self.keys.shape[2])

    def explicit_mask(self) -> Tensor:
        """The mask, or one that shows everything."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.keys.shape[0], 1, 1, self.keys.shape[2], dtype=torch.bool, device=self.keys.device)


def _rows(tensor: Tensor | None, rows: int) -> Tensor:
    assert tensor is not None
    return tensor.expand(rows, *tensor.shape[1:])


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as one that is added to scores: 0 where visible, the least number where not."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
