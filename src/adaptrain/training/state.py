"""Everything of a training loop that changes while it runs, in one place.

Whoever has the model's trainable tensors and this state has the run: exact resume, several adapters over one frozen
base (a state each) and fused sweeps need nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptrain.config.schema import TrainerConfig
from adaptrain.training.seeds import random_state, set_random_state


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during training.

    Attributes:
        epoch: passes made so far; a fraction where training ended inside one.
        score: of the metric that chooses.
    """

    epoch: float
    step: int
    score: float
    metrics: dict[str, float]


@dataclass
class TrainState:
    """The state of one training loop.

    Attributes:
        optimizer: over the parameters that train.
        epoch: passes finished.
        position: batches of the current epoch that are done.
        step: optimiser steps done. The learning rate is a function of it, so there is no schedule to keep.
        tokens: tokens seen, without padding.
        evaluations: all so far.
        best: index of the best of them.
        best_weights: the trainable tensors at that time, on the CPU.
        stale: evaluations since without a better score.
    """

    optimizer: torch.optim.Optimizer
    epoch: int = 0
    position: int = 0
    step: int = 0
    tokens: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    best: int | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0

    @property
    def best_evaluation(self) -> Evaluation | None:
        return None if self.best is None else self.evaluations[self.best]

    def remember(self, evaluation: Evaluation, weights: dict[str, Tensor] | None, better: bool) -> None:
        """Take an evaluation in; `weights` are kept when it is the best so far."""
        self.evaluations.append(evaluation)
        if better:
            self.best, self.stale, self.best_weights = len(self.evaluations) - 1, 0, weights or {}
        else:
            self.stale += 1

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`tensors` (name → tensor, fit for safetensors) and `values` (fit for JSON), the generators' included."""
        inner = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        slots: dict[str, dict[str, Any]] = {}
        for index, slot in inner["state"].items():
            for key, value in slot.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    slots.setdefault(str(index), {})[key] = value
        chance_tensors, chance_values = random_state()
        tensors |= {f"random.{name}": tensor for name, tensor in chance_tensors.items()}
        return {
            "tensors": tensors,
            "values": {
                "epoch": self.epoch,
                "position": self.position,
                "step": self.step,
                "tokens": self.tokens,
                "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
                "best": self.best,
                "stale": self.stale,
                "optimizer": {"groups": inner["param_groups"], "slots": slots},
                "random": chance_values,
            },
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Inverse of `state_dict`."""
        tensors, values = state["tensors"], state["values"]
        slots: dict[int, dict[str, Any]] = {int(i): dict(slot) for i, slot in values["optimizer"]["slots"].items()}
        for name, tensor in _under("optimizer.", tensors):
            index, _, key = name.partition(".")
            slots.setdefault(int(index), {})[key] = tensor
        groups = [{**group, "betas": tuple(group["betas"])} for group in values["optimizer"]["groups"]]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.epoch, self.position, self.step = values["epoch"], values["position"], values["step"]
        self.tokens, self.best, self.stale = values["tokens"], values["best"], values["stale"]
        self.evaluations = [Evaluation(**evaluation) for evaluation in values["evaluations"]]
        self.best_weights = dict(_under("best.", tensors))
        set_random_state(dict(_under("random.", tensors)), values["random"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: TrainerConfig, rate: Callable[[str], float] = lambda _: 1.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019). Biases, norms and other vectors do not decay; nor does a fusion's value matrix,
    which is to stay near the identity and not near zero.

    Args:
        rate: what a parameter's learning rate is multiplied with, by its name.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        still = parameter.ndim < 2 or name.endswith(("bias", ".fusion.value.weight"))
        decay = 0.0 if still else config.weight_decay
        groups.setdefault((decay, rate(name)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "lr": config.learning_rate * factor, "rate": factor}
            for (decay, factor), members in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def learning_rate(step: int, total: int, config: TrainerConfig) -> float:
    """The rate of the step after `step` steps: a linear rise over the warm-up, whose last step has the full rate, then
    the schedule, which would be 0 at `total`."""
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    left = max(0, total - step) / max(1, total - warmup)
    factor = left if config.schedule == "linear" else (1 + math.cos(math.pi * (1 - left))) / 2
    return config.learning_rate * factor
