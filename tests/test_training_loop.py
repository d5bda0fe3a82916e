"""The loop on a stand-in model with the few things of an adapted model that it uses."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adaptrain
from adaptrain.config.schema import TrainerConfig
from adaptrain.errors import AdaptrainError, OutOfMemoryError
from adaptrain.evaluation.predict import predict
from adaptrain.tasks.encoded import Collator, Encoded, text_keys
from adaptrain.tasks.reading import Read
from adaptrain.training.loop import Plan, fit, optimise, total_steps
from adaptrain.training.precision import find_hardware
from adaptrain.training.state import TrainState, make_optimizer
from tiny_run import MOOD, Recorder

WORDS = 30


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None


class Small(nn.Module):
    """Mean of word vectors, then a linear map: loss is the mean over rows."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 6)
        self.out = nn.Linear(6, 2)
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        mask = attention_mask[..., None].double()
        z = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        logits = self.out(self.dropout(z))
        return Output(logits, None if labels is None else nn.functional.cross_entropy(logits, labels))

    def trainable_parameters(self) -> Any:
        return self.named_parameters()

    def trainable_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict(state)


class Layered(Small):
    """With a map in one layer, which can be skipped: it has no gradient in some steps."""

    skip_layers: Sequence[int] = ()

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(6, 6).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        mask = attention_mask[..., None].float()
        z = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        logits = self.out(z if 0 in self.skip_layers else z + self.low(z))
        return Output(logits, None if labels is None else nn.functional.cross_entropy(logits, labels))


def rows(count: int = 37) -> Encoded:
    chance = np.random.default_rng(0)
    features = [{"input_ids": chance.integers(1, WORDS, size=chance.integers(1, 9))} for _ in range(count)]
    return Encoded.of(features, [int(feature["input_ids"].sum() % 2) for feature in features])


def given(collate: Collator) -> tuple[Any, Read]:
    """A reader that only collates, and the rows."""
    return SimpleNamespace(collate=collate), Read(Mock(), rows())


def plan(config: TrainerConfig, encoded: Encoded | None = None, scores: Sequence[float] = (), seed: int = 0) -> Plan:
    encoded = rows() if encoded is None else encoded
    coming = iter(scores)
    evaluate: Callable[[], dict[str, float]] = lambda: {"accuracy": next(coming, 0.0)}  # noqa: E731
    collate = Collator(text_keys({"input_ids": 0}, torch.long))
    return Plan(encoded, collate, evaluate, "accuracy", True, total_steps(len(encoded), config), seed)


def trained(config: TrainerConfig, model: nn.Module | None = None, **options: Any) -> tuple[Any, TrainState, Recorder]:
    model = Small() if model is None else model
    state = TrainState(make_optimizer(model.named_parameters(), config))
    recorder = Recorder()
    fit(model, state, plan(config, **options), config, find_hardware("cpu", "fp32", False), recorder)
    return model, state, recorder


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# ---- gradients


@pytest.mark.parametrize("micro", [None, 1, 2, 3, 5, 8])
def test_accumulation_is_exact_for_uneven_micro_batches_and_short_batches(micro: int | None) -> None:
    # 37 rows in batches of 8: the last batch has 5 rows, which pieces of 2 and 3 divide unevenly once more
    options: dict[str, Any] = {"batch_size": 8, "epochs": 2, "learning_rate": 0.05, "max_grad_norm": 0.5}
    whole, _, one = trained(TrainerConfig(**options), scores=[0.1, 0.2])
    parts, _, two = trained(TrainerConfig(**options, micro_batch_size=micro), scores=[0.1, 0.2])
    assert torch.allclose(weights(whole), weights(parts), rtol=0, atol=1e-10)
    assert [p.loss for p in one.of("step")] == pytest.approx(
        [p.loss for p in two.of("step")], abs=1e-6
    )  # kept in float32


def test_the_step_is_on_the_mean_over_the_batch() -> None:
    config = TrainerConfig(micro_batch_size=3, max_grad_norm=None, batch_size=7)
    model, twin = Small(), Small()
    this = plan(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = [3, 1, 4, 15, 9, 2, 6]
    loss = optimise(model, optimizer, this, batch, config, find_hardware("cpu", "fp32", False))
    expected = twin(**this.collate(this.rows, batch)).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)  # kept in float32
    for moved, parameter in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(moved, parameter - parameter.grad, rtol=0, atol=1e-10)


def test_clipping_bounds_the_gradient() -> None:
    config = TrainerConfig(max_grad_norm=1e-3, micro_batch_size=2)
    model = Small()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimise(model, optimizer, plan(config), [0, 1, 2], config, find_hardware("cpu", "fp32", False))
    assert (weights(model) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.long
def test_several_processes_take_the_same_step_as_one() -> None:
    """Two gloo processes; a batch that does not divide, and one that has fewer rows than processes."""
    script = "import test_training_loop; test_training_loop.distributed()"
    here = os.path.dirname(__file__)
    source = os.path.dirname(os.path.dirname(adaptrain.__file__))
    common = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "LOCAL_WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join([source, here]),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    losses = [output.splitlines()[-1] for output, _ in outputs]
    assert losses[0] == losses[1]
    config = TrainerConfig(**DISTRIBUTED)
    model, _, recorder = trained(config, scores=[0.1])
    found = [float(word) for word in losses[0].split()]
    assert found[0] == pytest.approx(weights(model).double().sum().item(), abs=1e-10)
    assert found[1] == pytest.approx(weights(model).double().square().sum().item(), abs=1e-10)
    assert found[2] == pytest.approx(recorder.of("step")[-1].loss, abs=1e-10)
    other, *_ = trained(TrainerConfig(**DISTRIBUTED, adapter_drop=1), Layered(), scores=[0.1])
    assert found[4] == pytest.approx(weights(other).double().square().sum().item(), abs=1e-10)
    alone = predict(model, *given(plan(config).collate), MOOD, 6, find_hardware("cpu", "fp32", False))
    assert found[3] == pytest.approx(checksum(alone.logits), abs=1e-3)


DISTRIBUTED: dict[str, Any] = {"batch_size": 9, "micro_batch_size": 2, "epochs": 1, "learning_rate": 0.05}


def distributed() -> None:
    """What each of the two processes runs. 37 rows in batches of 9 leave one row for the last."""
    hardware = find_hardware("cpu", "fp32", False)
    assert hardware.accelerator.num_processes == 2
    config, model, recorder = TrainerConfig(**DISTRIBUTED), Small(), Recorder()
    state = TrainState(make_optimizer(model.named_parameters(), config))
    fit(model, state, plan(config, scores=[0.1]), config, hardware, recorder)
    values = weights(model).double()
    said = checksum(predict(model, *given(plan(config).collate), MOOD, 6, hardware).logits)
    config, layered = TrainerConfig(**DISTRIBUTED, adapter_drop=1), Layered()
    state = TrainState(make_optimizer(layered.named_parameters(), config))
    fit(layered, state, plan(config, scores=[0.1]), config, find_hardware("cpu", "fp32", False, drops=True), Recorder())
    dropped = weights(layered).double().square().sum().item()
    print(values.sum().item(), values.square().sum().item(), recorder.of("step")[-1].loss, said, dropped)
    torch.distributed.destroy_process_group()


def checksum(logits: np.ndarray) -> float:
    """A number that tells rows that changed places."""
    return float((logits[:, 0].astype(np.float64) * np.arange(1, len(logits) + 1)).sum())


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_predicting_keeps_the_mode_and_the_order() -> None:
    model, hardware = Small(dropout=0.9), find_hardware("cpu", "fp32", False)
    this = plan(TrainerConfig())
    first = predict(model.train(), *given(this.collate), MOOD, 5, hardware)
    assert model.training
    again = predict(model.eval(), *given(this.collate), MOOD, 37, hardware)
    assert not model.training
    assert np.allclose(first.logits, again.logits, rtol=0, atol=1e-10)  # no dropout, and rows at their places
    alone = model(**this.collate(this.rows, [11])).logits
    assert np.allclose(first.logits[11], alone.detach().numpy(), rtol=0, atol=1e-6)


# ---- when it ends, and with which weights


def test_the_best_weights_are_put_back() -> None:
    kept: list[Tensor] = []
    config = TrainerConfig(epochs=4, batch_size=8, learning_rate=0.1)
    model = Small()
    this = plan(config)
    scores = iter([0.3, 0.9, 0.5, 0.9])

    def evaluate() -> dict[str, float]:
        kept.append(weights(model))
        return {"accuracy": next(scores)}

    state = TrainState(make_optimizer(model.named_parameters(), config))
    this = Plan(this.rows, this.collate, evaluate, "accuracy", True, this.steps, 0)
    fit(model, state, this, config, find_hardware("cpu", "fp32", False), Recorder())
    assert torch.equal(weights(model), kept[1])  # of equal scores the first
    assert state.best_evaluation is not None and state.best_evaluation.epoch == 2


def test_the_last_weights_can_be_kept() -> None:
    config = TrainerConfig(epochs=3, batch_size=8, learning_rate=0.1, keep="last")
    straight, *_ = trained(config, scores=[0.9, 0.5, 0.1])
    rising, *_ = trained(TrainerConfig(epochs=3, batch_size=8, learning_rate=0.1), scores=[0.1, 0.5, 0.9])
    assert torch.equal(weights(straight), weights(rising))


def test_a_lower_error_is_better() -> None:
    config = TrainerConfig(epochs=3, batch_size=8)
    this = plan(config, scores=[0.5, 0.2, 0.4])
    this = Plan(this.rows, this.collate, this.evaluate, "accuracy", False, this.steps, 0)
    model = Small()
    state = TrainState(make_optimizer(model.named_parameters(), config))
    fit(model, state, this, config, find_hardware("cpu", "fp32", False), Recorder())
    assert state.best == 1


def test_patience() -> None:
    config = TrainerConfig(epochs=9, batch_size=8, patience=2)
    _, state, recorder = trained(config, scores=[0.3, 0.5, 0.4, 0.5, 0.9])
    assert [evaluation.score for evaluation, _ in recorder.of("evaluated")] == [0.3, 0.5, 0.4, 0.5]
    assert state.epoch == 4


def test_evaluation_every_few_epochs_and_at_the_end() -> None:
    _, _, recorder = trained(TrainerConfig(epochs=5, batch_size=8, eval_every=2), scores=[0.1] * 9)
    assert [evaluation.epoch for evaluation, _ in recorder.of("evaluated")] == [2, 4, 5]


@pytest.mark.parametrize(("steps", "epoch"), [(3, 0.6), (5, 1), (12, 2.4)])
def test_max_steps_decides_whatever_epochs_says(steps: int, epoch: float) -> None:
    _, state, recorder = trained(TrainerConfig(epochs=1, max_steps=steps, batch_size=8), scores=[0.1] * 9)
    assert state.step == steps == recorder.of("step")[-1].step
    assert state.evaluations[-1].epoch == epoch and state.evaluations[-1].step == steps


def test_the_rate_follows_the_schedule() -> None:
    config = TrainerConfig(epochs=4, batch_size=8, learning_rate=0.2)
    _, state, recorder = trained(config, scores=[0.1] * 9)
    assert recorder.of("step")[0].learning_rate == pytest.approx(0.2 * (1 - 4 / 20))
    assert state.optimizer.param_groups[-1]["lr"] == pytest.approx(0.2 / 20)


def test_a_run_cut_in_two_is_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that changes is in the state: the second half from a copy of it ends with the same weights."""
    config = TrainerConfig(epochs=3, batch_size=8, learning_rate=0.05)
    hardware = find_hardware("cpu", "fp32", False)
    torch.manual_seed(5)
    straight, *_ = trained(config, Small(dropout=0.3), scores=[0.1, 0.2, 0.3])

    class Stop(Exception):
        pass

    def stop_after(steps: int) -> Callable[..., Tensor]:
        def stopping(*args: Any) -> Tensor:
            if state.step == steps:
                raise Stop
            return optimise(*args)

        return stopping

    first = Small(dropout=0.3)
    state = TrainState(make_optimizer(first.named_parameters(), config))
    monkeypatch.setattr("adaptrain.training.loop.optimise", stop_after(8))
    with pytest.raises(Stop):
        fit(first, state, plan(config, scores=[0.1]), config, hardware, Recorder())
    saved, model_state = state.state_dict(), {key: value.clone() for key, value in first.state_dict().items()}
    assert (state.epoch, state.position) == (1, 3)

    torch.manual_seed(77)
    second = Small(dropout=0.3)
    second.load_state_dict(model_state)
    other = TrainState(make_optimizer(second.named_parameters(), config))
    other.load_state_dict(saved)
    monkeypatch.setattr("adaptrain.training.loop.optimise", optimise)
    fit(second, other, plan(config, scores=[0.2, 0.3]), config, hardware, Recorder())
    assert torch.equal(weights(second), weights(straight))


# ---- what goes wrong


class Broken(Small):
    """Fails at one step."""

    def __init__(self, at: int, failure: Exception | None) -> None:
        super().__init__()
        self.at, self.failure, self.calls = at, failure, 0

    def forward(self, *args: Any, **inputs: Any) -> Output:
        self.calls += 1
        output = super().forward(*args, **inputs)
        if self.calls == self.at and output.loss is not None:
            if self.failure is not None:
                raise self.failure
            output.loss = output.loss * math.nan
        return output


def test_a_loss_that_is_no_number_names_the_step() -> None:
    with pytest.raises(AdaptrainError, match=r"loss is nan at step 7 of 10: .*trainer\.learning_rate"):
        trained(TrainerConfig(epochs=2, batch_size=8), Broken(7, None), scores=[0.1] * 2)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_has_a_cure(failure: Exception) -> None:
    with pytest.raises(OutOfMemoryError, match=r"trainer\.micro_batch_size=4 .*gradient_checkpointing=true"):
        trained(TrainerConfig(epochs=1, batch_size=8), Broken(2, failure))


def test_other_errors_are_not_told_as_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        trained(TrainerConfig(epochs=1, batch_size=8), Broken(2, RuntimeError("shapes do not match")))
