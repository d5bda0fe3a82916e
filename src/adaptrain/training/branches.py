"""Several trainings over one forward of one frozen base.

K branches of a composition train at once, each with rows, learning rate, schedule and end of its own:

    L = Σ_k L_k(θ_k),   ∂L / ∂θ_k = ∂L_k / ∂θ_k

because no two branches share a parameter θ. One forward, one backward; everything after it is done K times. So each
branch takes the steps that it would take alone, to rounding: a row is padded to the longest of all branches, not of its
own batch. Dropout draws other numbers than in a run of its own; with it the two agree in distribution only.

A branch knows nothing of the others, and what it trains on is its own. K cells of a sweep are K branches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptrain.branches import put
from adaptrain.composition import BatchSplit, Block, Composition
from adaptrain.config.schema import TrainerConfig
from adaptrain.context import AdapterSetup
from adaptrain.errors import AdaptrainError, listed
from adaptrain.training.batching import micro_batches
from adaptrain.training.display import Display, Progress
from adaptrain.training.loop import READ_EVERY, Batches, Course, Plan, course, cures, drive, optimise
from adaptrain.training.memory import memory_used
from adaptrain.training.part import Part
from adaptrain.training.precision import Hardware, memory_errors
from adaptrain.training.state import TrainState


@dataclass
class Branch:
    """One training among several.

    Attributes:
        name: of the branch, and of its head.
        part: what of the model is its own; no other branch trains any of it.
        plan, state, config: those of a run of its own.
        display: told of this branch.
        batches: a function of the epoch; None takes those that `fit` would.
    """

    name: str
    part: Part
    plan: Plan
    state: TrainState
    config: TrainerConfig
    display: Display
    batches: Batches | None = None


def fit_branches(
    model: Any, tree: Composition, block: Block, branches: Sequence[Branch], hardware: Hardware, display: Display
) -> None:
    """Train all branches until the last has ended, and leave each with the weights to keep.

    One that has done its steps or lost its patience leaves the joint batch.

    Args:
        model: an adapted model with what trains chosen and on its device.
        tree: the composition.
        block: the one in it whose children the branches are, in order.
        display: told of the joint steps.

    Raises:
        AdaptrainError: the loss of a branch is not a number; names the branch.
        OutOfMemoryError: the device's memory is too small.
    """
    model.train()
    children = {branch.name: child for branch, child in zip(branches, block.children, strict=True)}
    courses = {branch.name: _course(branch, hardware) for branch in branches}
    coming = [(branch, batch) for branch in branches if (batch := next(courses[branch.name], None)) is not None]
    joint, steps = Joint(branches), 0
    while coming:
        setting = _setting([branch for branch, _ in coming])
        with memory_errors(setting):
            losses = _optimise(model, tree, block, children, coming, hardware)
        steps += 1
        joint.add(losses)
        if steps % READ_EVERY == 0:
            display.step(joint.read(steps, hardware))
        after = []
        for (branch, _), loss in zip(coming, losses, strict=True):
            try:
                after.append((branch, courses[branch.name].send(loss)))
            except StopIteration:
                continue
            except AdaptrainError as error:
                raise type(error)(f"{branch.name}: {error}") from error
        coming = after
    if steps:
        display.step(joint.read(steps, hardware))


def fit_mixed(model: Any, branch: Branch, hardware: Hardware) -> None:
    """Train one branch whose batches are mixed of several tasks' rows, as `fit` would.

    Args:
        model: what takes a batch and returns its mean loss.

    Raises:
        AdaptrainError: the loss is not a number.
        OutOfMemoryError: the device's memory is too small.
    """
    branch.part.train()

    def step(batch: list[int]) -> Tensor:
        with memory_errors(cures(branch.config)):
            return optimise(model, branch.state.optimizer, branch.plan, batch, branch.config, hardware)

    drive(_course(branch, hardware), step)


def _course(branch: Branch, hardware: Hardware) -> Course:
    part, display = branch.part, branch.display
    return course(part, branch.state, branch.plan, branch.config, hardware, display, branch.batches)


@dataclass(frozen=True)
class _Piece:
    """Rows of one branch in one forward.

    Attributes:
        share: of the branch's batch that they are.
    """

    branch: Branch
    rows: list[int]
    share: float


def _optimise(
    model: Any,
    tree: Composition,
    block: Block,
    children: dict[str, Composition],
    coming: Sequence[tuple[Branch, list[int]]],
    hardware: Hardware,
) -> list[Tensor]:
    """One step of every branch, on the mean loss over its own batch; returns these losses.

    Each branch divides its batch by its own micro-batch size; a forward takes one piece of every branch that still has
    one.
    """
    pieces = [
        [_Piece(branch, rows, len(rows) / len(batch)) for rows in micro_batches(batch, branch.config.micro_batch_size)]
        for branch, batch in coming
    ]
    totals = {branch.name: torch.zeros((), device=hardware.device) for branch, _ in coming}
    for number in range(max(map(len, pieces))):
        now = [own[number] for own in pieces if number < len(own)]
        with hardware.forward():
            losses = _forward(model, tree, block, children, now, hardware)
        torch.stack(losses).sum().backward()
        for piece, loss in zip(now, losses, strict=True):
            totals[piece.branch.name] += loss.detach()
    for branch, _ in coming:
        optimizer, limit = branch.state.optimizer, branch.config.max_grad_norm
        if limit is not None:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, limit)
        optimizer.step()
        optimizer.zero_grad()
    return list(totals.values())


def _forward(
    model: Any,
    tree: Composition,
    block: Block,
    children: dict[str, Composition],
    pieces: Sequence[_Piece],
    hardware: Hardware,
) -> list[Tensor]:
    """The weighed loss of every piece.

    Branches whose rows are the same ones still send them through the frozen layers once each; layers below the lowest
    adapter could be shared here.
    """
    batches = [piece.branch.plan.collate(piece.branch.plan.rows, piece.rows) for piece in pieces]
    keys = [piece.branch.plan.collate.keys for piece in pieces]
    paddings = [{name: key.padding for name, key in each.items() if key.padding is not None} for each in keys]
    labels = [batch.pop("labels").to(hardware.device) for batch in batches]
    inputs = {key: value.to(hardware.device) for key, value in joined(batches, paddings).items()}
    if len(pieces) == 1:
        (piece,) = pieces
        return [piece.branch.part(**inputs, labels=labels[0]).loss * piece.share]
    own = [children[piece.branch.name] for piece in pieces]
    split = BatchSplit(*own, sizes=[len(piece.rows) for piece in pieces])
    with AdapterSetup(put(split, block, tree), head_setup=[piece.branch.part.head for piece in pieces]):
        found = model(**inputs, labels=labels).head_outputs
    losses = []
    for piece, output in zip(pieces, found, strict=True):
        held = model.get_fusion_regularization_loss(piece.branch.part.tree)
        held = held if held is not None and held.requires_grad else None
        losses.append((output.loss if held is None else output.loss + held) * piece.share)
    return losses


def joined(batches: Sequence[dict[str, Tensor]], paddings: Sequence[dict[str, float]]) -> dict[str, Tensor]:
    """Batches one after the other, all padded on the right to the longest, (rows, positions) each.

    Args:
        paddings: key → what each batch is padded with; 0 where nothing is said, as in a mask.
    """
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    found = {}
    for key in dict.fromkeys(key for batch in batches for key in batch):
        parts = []
        for batch, padding in zip(batches, paddings, strict=True):
            value, fill = batch.get(key), padding.get(key, 0)
            part = batch["input_ids"].new_full((len(batch["input_ids"]), longest), fill)
            if value is not None:
                part[:, : value.shape[1]] = value
            parts.append(part)
        found[key] = torch.cat(parts)
    return found


def _setting(branches: Sequence[Branch]) -> str:
    """What to change when a joint step does not fit: what the largest branch would."""
    largest = max(branches, key=lambda branch: branch.config.micro_batch_size or branch.config.batch_size)
    if len(branches) == 1:
        return cures(largest.config)
    together = f"{len(branches)} branches go through one forward ({listed(branch.name for branch in branches)})"
    return f"{together}: leave some for a run of their own. {cures(largest.config)}"


class Joint:
    """Where all branches stand together."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        self.branches, self.steps = branches, max(branch.plan.steps for branch in branches)
        self.losses: list[Tensor] = []
        self.loss, self.start, self.tokens = math.nan, time.perf_counter(), 0

    def add(self, losses: Sequence[Tensor]) -> None:
        """The losses of a step, of those that took it."""
        self.losses.append(torch.stack(list(losses)).mean())

    def read(self, step: int, hardware: Hardware) -> Progress:
        """The mean loss over branches and steps since the last reading; the highest learning rate of any branch."""
        loss = float(torch.stack(self.losses).mean()) if self.losses else self.loss
        tokens, now = sum(branch.state.tokens for branch in self.branches), time.perf_counter()
        speed = (tokens - self.tokens) / max(now - self.start, 1e-9)
        self.losses, self.loss, self.start, self.tokens = [], loss, now, tokens
        groups = [branch.state.optimizer.param_groups[0] for branch in self.branches]
        rate = max(group["lr"] / group["rate"] for group in groups)
        return Progress(step, self.steps, loss, rate, speed, memory_used(hardware.device))
