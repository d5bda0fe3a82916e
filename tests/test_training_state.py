from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adaptrain.config.schema import TrainerConfig
from adaptrain.training.loop import _set_rate
from adaptrain.training.seeds import seed_everything
from adaptrain.training.state import Evaluation, TrainState, learning_rate, make_optimizer


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def step(model: nn.Module, state: TrainState) -> None:
    model(torch.randn(5, 3)).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1


def test_vectors_do_not_decay() -> None:
    model = small()
    optimizer = make_optimizer(model.named_parameters(), TrainerConfig(weight_decay=0.1))
    decaying, other = ({id(parameter) for parameter in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {name for name, parameter in model.named_parameters() if id(parameter) in decaying} == {
        "0.weight",
        "2.weight",
    }
    assert {name for name, parameter in model.named_parameters() if id(parameter) in other} == {
        "0.bias",
        "1.weight",
        "1.bias",
        "2.bias",
    }


def test_a_rate_of_its_own_follows_the_schedule() -> None:
    """LoRA+: B learns faster than A, at every step of the schedule."""
    model = small()
    config = TrainerConfig(learning_rate=0.01, weight_decay=0.1)
    rates = {"2.weight": 16.0}
    optimizer = make_optimizer(model.named_parameters(), config, lambda name: rates.get(name, 1.0))
    for rate in (0.01, 0.002):
        _set_rate(optimizer, rate)
        found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            assert found[id(parameter)] == pytest.approx(rate * rates.get(name, 1.0))
    with_it, without = small(), small()
    gradient = torch.randn(5, 3)
    for model, rate in ((with_it, lambda name: rates.get(name, 1.0)), (without, lambda _: 1.0)):
        optimizer = make_optimizer(model.named_parameters(), config.__class__(learning_rate=0.01), rate)
        model(gradient).square().mean().backward()
        optimizer.step()
    start = small().state_dict()
    moved, plain = (
        {key: (value - start[key]).abs().max().item() for key, value in each.state_dict().items()}
        for each in (with_it, without)
    )
    assert moved["2.weight"] == pytest.approx(16 * plain["2.weight"], rel=1e-3)
    assert moved["0.weight"] == pytest.approx(plain["0.weight"])


def test_only_vectors_make_one_group() -> None:
    optimizer = make_optimizer(nn.LayerNorm(3).named_parameters(), TrainerConfig())
    assert len(optimizer.param_groups) == 1


def test_state_survives_files_and_training_goes_on_as_if_nothing_was(tmp_path: Path) -> None:
    seed_everything(3)
    model = small()
    state = TrainState(make_optimizer(model.named_parameters(), TrainerConfig(learning_rate=0.1)))
    for _ in range(3):
        step(model, state)
    state.epoch, state.position, state.tokens = 1, 2, 70
    state.remember(Evaluation(1.0, 3, 0.5, {"accuracy": 0.5}), {"w": torch.ones(2)}, better=True)
    state.remember(Evaluation(2.0, 3, 0.4, {"accuracy": 0.4}), None, better=False)

    saved = state.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in saved["tensors"].items()}, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(saved["values"]))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        step(model, state)
    expected = [parameter.clone() for parameter in model.parameters()]
    drawn = random.random(), np.random.random(), torch.rand(1).item()

    seed_everything(99)
    again = small()
    again.load_state_dict(weights)
    other = TrainState(make_optimizer(again.named_parameters(), TrainerConfig()))
    other.load_state_dict(
        {
            "tensors": load_file(tmp_path / "state.safetensors"),
            "values": json.loads((tmp_path / "state.json").read_text()),
        }
    )
    assert (other.epoch, other.position, other.step, other.tokens, other.stale) == (1, 2, 3, 70, 1)
    assert other.evaluations == state.evaluations and other.best_evaluation == state.evaluations[0]
    assert torch.equal(other.best_weights["w"], torch.ones(2))
    for _ in range(3):
        step(again, other)
    assert all(torch.equal(one, two) for one, two in zip(expected, again.parameters(), strict=True))
    assert (random.random(), np.random.random(), torch.rand(1).item()) == drawn


def test_remembering() -> None:
    state = TrainState(make_optimizer(small().named_parameters(), TrainerConfig()))
    assert state.best_evaluation is None
    state.remember(Evaluation(1, 1, 0.1, {}), {"w": torch.zeros(1)}, better=True)
    state.remember(Evaluation(2, 2, 0.1, {}), None, better=False)
    assert state.stale == 1
    state.remember(Evaluation(3, 3, 0.2, {}), {"w": torch.ones(1)}, better=True)
    assert state.stale == 0 and state.best == 2 and state.best_weights["w"] == 1


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.2, [1, 1, 0.75, 0.5, 0.25]),
        ("linear", 1, [1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 1, [1, 1, 0.853553, 0.5, 0.146447]),
        ("linear", 5, [0.2, 0.4, 0.6, 0.8, 1]),
        ("linear", 9, [1 / 9, 2 / 9, 3 / 9, 4 / 9, 5 / 9]),
    ],
)
def test_learning_rates(schedule: str, warmup: float, expected: list[float]) -> None:
    config = TrainerConfig(learning_rate=2.0, schedule=schedule, warmup=warmup)  # pyright: ignore[reportArgumentType]
    assert [learning_rate(step, 5, config) / 2 for step in range(5)] == pytest.approx(expected, abs=1e-6)
