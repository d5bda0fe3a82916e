"""The training loop: functions over a model, a state and a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptrain.config.schema import TrainerConfig
from adaptrain.errors import AdaptrainError
from adaptrain.tasks.encoded import Collator, Encoded
from adaptrain.training.batching import epoch_batches, micro_batches
from adaptrain.training.display import Display, Progress
from adaptrain.training.drop import drawn_layers, dropping
from adaptrain.training.frozen import Begin, from_the_words
from adaptrain.training.memory import memory_used
from adaptrain.training.precision import Hardware, memory_errors
from adaptrain.training.state import Evaluation, TrainState, learning_rate

READ_EVERY = 10
"""Steps between two looks at the loss. Reading it makes the device wait, so it is not done every step."""


@dataclass(frozen=True)
class Plan:
    """What a loop runs over.

    Attributes:
        rows: to train on.
        collate: rows to a batch.
        evaluate: the metrics of the model as it is now.
        metric: the one of them that chooses.
        higher_is_better: its direction.
        steps: optimiser steps in all.
        seed: decides the order of the rows, with the epoch.
        begin: around the forward of some rows.
    """

    rows: Encoded
    collate: Collator
    evaluate: Callable[[], Mapping[str, float]]
    metric: str
    higher_is_better: bool
    steps: int
    seed: int
    begin: Begin = from_the_words

    def better(self, score: float, than: float | None) -> bool:
        if than is None:
            return True
        return score > than if self.higher_is_better else score < than


def total_steps(rows: int, config: TrainerConfig) -> int:
    """Optimiser steps of a whole training; the short last batch of an epoch counts."""
    return config.max_steps or config.epochs * math.ceil(rows / config.batch_size)


def fit(model: Any, state: TrainState, plan: Plan, config: TrainerConfig, hardware: Hardware, display: Display) -> None:
    """Train until the steps are done or the score no longer rises, and leave the model with the weights to keep.

    Args:
        model: an adapted model with what trains chosen and on its device.

    Raises:
        AdaptrainError: the loss is not a number.
        OutOfMemoryError: the device's memory is too small.
    """
    # One process gets its own model and optimiser back; several get the wrapped ones.
    wrapped, state.optimizer = hardware.accelerator.prepare(model, state.optimizer)
    model.train()

    def step(batch: list[int]) -> Tensor:
        here = replace(plan, collate=plan.collate.training(plan.seed, state.epoch))
        with memory_errors(cures(config)), dropping(model, drawn_layers(plan.seed, state.step, config.adapter_drop)):
            return optimise(wrapped, state.optimizer, here, batch, config, hardware)

    drive(course(model, state, plan, config, hardware, display), step)


Course = Generator[list[int], Tensor, None]
"""Batches one after the other, as rows; takes the loss of each step."""

Batches = Callable[[int], list[list[int]]]
"""Epoch → its batches of rows."""


def course(
    model: Any,
    state: TrainState,
    plan: Plan,
    config: TrainerConfig,
    hardware: Hardware,
    display: Display,
    batches_of: Batches | None = None,
) -> Course:
    """The batches of a training, each with its learning rate set, and the evaluations in between; the optimiser steps
    are left to the caller. It ends when the steps are done or the score no longer rises.

    Args:
        model: whose trainable state is kept at its best and put back at the end.
        batches_of: the rows of an epoch, divided; the usual ones when None.

    Raises:
        AdaptrainError: the loss is not a number.
    """
    meter, given = Meter(), batches_of or _usual(plan, config)
    while state.step < plan.steps and not _patience_is_lost(state, config):
        batches = given(state.epoch)
        for batch in batches[state.position :]:
            _set_rate(state.optimizer, learning_rate(state.step, plan.steps, config))
            loss = yield batch
            state.position += 1
            state.step += 1
            state.tokens += sum(plan.rows.lengths[row] for row in batch)
            meter.add(loss)
            if state.step % READ_EVERY == 0:
                display.step(meter.read(state, plan, hardware))
            if state.step == plan.steps:
                break
        if state.position == len(batches):
            state.epoch, state.position = state.epoch + 1, 0
        if state.step == plan.steps or state.epoch % config.eval_every == 0:
            display.step(meter.read(state, plan, hardware))  # a broken loss is told before it is evaluated
            evaluate(model, state, plan, len(batches), config, hardware, display)
            meter.start = time.perf_counter()
    if config.keep == "best" and state.best_weights:
        model.load_trainable_state(state.best_weights)


def drive(running: Course, step: Callable[[list[int]], Tensor]) -> None:
    """Take every step of a course."""
    batch = next(running, None)
    while batch is not None:
        loss = step(batch)
        try:
            batch = running.send(loss)
        except StopIteration:
            return


def _usual(plan: Plan, config: TrainerConfig) -> Batches:
    lengths, size, group = plan.rows.lengths, config.batch_size, config.group_by_length
    return lambda epoch: epoch_batches(lengths, size, plan.seed, epoch, group)


def optimise(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    batch: Sequence[int],
    config: TrainerConfig,
    hardware: Hardware,
) -> Tensor:
    """One optimiser step on the mean loss over the labels of a batch; returns that loss.

    A micro-batch's mean loss counts by its share of the batch's labels (one a row, or as many as a row has masked
    words), so gradients are those of the whole batch
    however unevenly it is divided, over micro-batches and over processes. Engines average gradients over processes,
    hence the factor.
    """
    accelerator = hardware.accelerator
    pieces = micro_batches(batch, config.micro_batch_size, accelerator.process_index, accelerator.num_processes)
    total, whole = torch.zeros((), device=hardware.device), max(1, plan.rows.weight(batch))
    for index, piece in enumerate(pieces):
        # A process without rows of its own still takes part in the exchange, with a weight of zero
        rows = piece or batch[:1]
        inputs = {key: value.to(hardware.device) for key, value in plan.collate(plan.rows, rows).items()}
        last = index == len(pieces) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            with hardware.forward(), plan.begin(rows):
                loss = model(**inputs).loss * (plan.rows.weight(piece) / whole * accelerator.num_processes)
            accelerator.backward(loss)
        total += loss.detach()
    if config.max_grad_norm is not None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        accelerator.clip_grad_norm_(trained, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def evaluate(
    model: Any,
    state: TrainState,
    plan: Plan,
    batches: int,
    config: TrainerConfig,
    hardware: Hardware,
    display: Display,
) -> None:
    """Score the model as it is; remember the weights if none scored better before."""
    metrics = {name: float(value) for name, value in plan.evaluate().items()}
    evaluation = Evaluation(
        epoch=round(state.epoch + state.position / batches, 2),
        step=state.step,
        score=metrics[plan.metric],
        metrics=metrics,
    )
    best = state.best_evaluation
    better = plan.better(evaluation.score, None if best is None else best.score)
    state.remember(evaluation, model.trainable_state() if better and config.keep == "best" else None, better)
    display.evaluated(evaluation, better)


@dataclass
class Meter:
    """Losses on the device that have not been read yet, and the time since the last reading."""

    losses: list[Tensor] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    mean: float = math.nan
    speed: float = 0.0

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss)

    def read(self, state: TrainState, plan: Plan, hardware: Hardware) -> Progress:
        """Look at the losses since the last reading.

        Raises:
            AdaptrainError: one of them is not a number; names the step.
        """
        if self.losses:
            mean: Any = hardware.accelerator.reduce(torch.stack(self.losses), "mean")
            values = mean.tolist()
            for step, value in enumerate(values, start=state.step - len(values) + 1):
                if not math.isfinite(value):
                    raise AdaptrainError(
                        f"The loss is {value} at step {step} of {plan.steps}: training diverged. Lower "
                        "trainer.learning_rate, lengthen trainer.warmup, tighten trainer.max_grad_norm, or try "
                        "trainer.precision=fp32"
                    )
            now = time.perf_counter()
            self.mean = sum(values) / len(values)
            self.speed = (state.tokens - self.tokens) / max(now - self.start, 1e-9)
            self.losses, self.start, self.tokens = [], now, state.tokens
        group = state.optimizer.param_groups[0]
        return Progress(
            state.step, plan.steps, self.mean, group["lr"] / group["rate"], self.speed, memory_used(hardware.device)
        )


def cures(config: TrainerConfig) -> str:
    """What to change when a training step does not fit."""
    size = config.micro_batch_size or config.batch_size
    ideas = []
    if size > 1:
        ideas.append(f"trainer.micro_batch_size={size // 2} (the results stay the same)")
    if not config.gradient_checkpointing:
        ideas.append("trainer.gradient_checkpointing=true")
    return f"Try {', '.join([*ideas, 'a lower data.max_length'])}"


def _patience_is_lost(state: TrainState, config: TrainerConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
