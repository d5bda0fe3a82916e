"""Several adapters over one forward: each takes the steps that it takes alone. And several tasks for one optimiser."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import BertConfig

from adaptrain import AutoAdapterModel
from adaptrain.branches import put
from adaptrain.composition import BatchSplit, Block, Fuse, MultiTask, Parallel, Stack
from adaptrain.config.schema import TaskConfig, TrainerConfig
from adaptrain.errors import AdaptrainError, ConfigError, OutOfMemoryError
from adaptrain.evaluation.metrics import get_metric
from adaptrain.evaluation.predict import predict
from adaptrain.tasks.encoded import Collator, Encoded, text_keys
from adaptrain.tasks.reading import Read
from adaptrain.training.branches import Branch, _forward, _Piece, fit_branches, fit_mixed, joined
from adaptrain.training.display import BranchDisplay
from adaptrain.training.loop import Plan, fit, total_steps
from adaptrain.training.mixed import Mixed, averaged, choosing, mixed, split_batches
from adaptrain.training.part import Part
from adaptrain.training.precision import find_hardware
from adaptrain.training.seeds import seed_everything
from adaptrain.training.state import TrainState, make_optimizer
from tiny_run import MOOD, NUMBER, Recorder

WORDS = 40
HARDWARE = find_hardware("cpu", "fp32", False)
TASKS = {
    "two": replace(MOOD, name="two"),
    "three": replace(MOOD, name="three", labels=("x", "y", "z"), metric="accuracy"),
    "number": replace(NUMBER, name="number", metric="mse", extra_metrics=()),
}


def rows(task: TaskConfig, count: int, seed: int) -> Encoded:
    """Rows of 3 to 12 tokens; their label goes by the first one."""
    chance = np.random.default_rng(seed)
    features = []
    for _ in range(count):
        length = chance.integers(3, 13)
        ids = chance.integers(1, WORDS, size=length)
        features.append({"input_ids": ids, "token_type_ids": (np.arange(length) > length // 2).astype(np.int64)})
    first = [int(feature["input_ids"][0]) for feature in features]
    labels = [word / 10 for word in first] if task.type == "regression" else [word % len(task.labels) for word in first]
    return Encoded.of(features, labels)


def base(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return AutoAdapterModel.from_config(config)


class Cell:
    """What one branch is, or one run of its own."""

    def __init__(self, task: str, method: str, seed: int, count: int, head: int = 2, **trainer: Any) -> None:
        self.task, self.method, self.seed, self.head = TASKS[task], method, seed, head
        self.rows, self.held_out = rows(self.task, count, seed + 100), rows(self.task, 12, 7)
        dtype = torch.float32 if self.task.type == "regression" else torch.long
        self.collate = Collator(text_keys({"input_ids": 0, "token_type_ids": 0}, dtype))
        self.config = TrainerConfig(**{"learning_rate": 1e-2, "epochs": 2, "eval_batch_size": 5} | trainer)

    def add(self, model: Any, name: str) -> None:
        seed_everything(self.seed)
        model.add_adapter(name, self.method)
        outputs = 1 if self.task.type == "regression" else len(self.task.labels)
        model.add_classification_head(name, num_labels=outputs, layers=self.head, dropout=None)

    def plan(self, model: Any, counted: list[Any]) -> Plan:
        metric, size = get_metric(self.task.metric), self.config.eval_batch_size

        def evaluate() -> dict[str, float]:
            reader: Any = SimpleNamespace(collate=self.collate)
            said = predict(
                model, reader, Read(Mock(labels=self.held_out.labels), self.held_out), self.task, size, HARDWARE
            )
            counted.append(said.logits)
            return said.scores()

        steps = total_steps(len(self.rows), self.config)
        return Plan(self.rows, self.collate, evaluate, metric.name, metric.higher_is_better, steps, self.seed)


def alone(cell: Cell, name: str, tree: Any = None, prepare: Any = None) -> tuple[Any, TrainState, Recorder, list[Any]]:
    model, said = base(), []
    if prepare is not None:
        prepare(model)
    cell.add(model, name)
    model.train_adapter(tree or name)
    freeze(model, name)
    state, recorder = TrainState(make_optimizer(model.trainable_parameters(), cell.config, model.rate)), Recorder()
    fit(model, state, cell.plan(model, said), cell.config, HARDWARE, recorder)
    return model, state, recorder, said


def freeze(model: Any, *names: str) -> None:
    for name in model.adapter_names():
        model.get_adapter(name).requires_grad_(name in names)


def together(
    cells: dict[str, Cell], tree: Block, block: Block, prepare: Any = None, model: Any = None
) -> tuple[Any, dict[str, Branch], Recorder, dict[str, list[Any]]]:
    model, said, recorder = model or base(), {name: [] for name in cells}, Recorder()
    if prepare is not None:
        prepare(model)
    for name, cell in cells.items():
        cell.add(model, name)
    model.train_adapter(tree)
    freeze(model, *cells)
    branches = {}
    for (name, cell), child in zip(cells.items(), block.children, strict=True):
        part = Part(model, put(child, block, tree), name)
        state = TrainState(make_optimizer(part.trainable_parameters(), cell.config, model.rate))
        shown = BranchDisplay(recorder, name, get_metric(cell.task.metric))
        branches[name] = Branch(name, part, cell.plan(part, said[name]), state, cell.config, shown)
    fit_branches(model, tree, block, list(branches.values()), HARDWARE, recorder)
    return model, branches, recorder, said


def weights(model: Any, name: str) -> dict[str, torch.Tensor]:
    found = {key: value.detach() for key, value in model.get_adapter(name).tensors().items()}
    return found | {f"head.{key}": value.detach() for key, value in model.heads[f"<{name}>"].named_parameters()}


def same(cells: dict[str, Cell], tree: Block, block: Block, prepare: Any = None) -> Recorder:
    """Every branch is the run of its own: losses, scores, steps, weights."""
    model, branches, recorder, said = together(cells, tree, block, prepare)
    for (name, cell), child in zip(cells.items(), block.children, strict=True):
        own, state, before, logits = alone(cell, name, put(child, block, tree), prepare)
        assert before.of("step")
        mine = branches[name].state
        assert (mine.step, mine.epoch, mine.best, mine.tokens) == (state.step, state.epoch, state.best, state.tokens)
        losses = [progress.loss for progress in recorder.of(f"{name}.step")]
        assert losses == pytest.approx([progress.loss for progress in before.of("step")], abs=1e-5)
        rates = [progress.learning_rate for progress in recorder.of(f"{name}.step")]
        assert rates == [progress.learning_rate for progress in before.of("step")]
        assert len(said[name]) == len(logits) > 0
        gaps = [np.abs(x - y).max() for x, y in zip(said[name], logits, strict=True)]
        assert max(gaps) < 1e-4, (name, gaps)
        found, expected = weights(model, name), weights(own, name)
        assert found.keys() == expected.keys()
        worst = max((found[key] - expected[key]).abs().max().item() for key in found)
        assert worst < 1e-5, (name, worst)
    return recorder


def test_each_branch_is_the_run_of_its_own() -> None:
    """Methods, tasks, rows, rates, schedules, warm-ups, epochs, batches and micro-batches of their own."""
    cells = {
        "a": Cell("two", "lora[r=4]", 1, 37, batch_size=8, epochs=3, warmup=0.2, micro_batch_size=3),
        "b": Cell("number", "prefix_tuning[prefix_length=3]", 2, 21, batch_size=5, schedule="cosine", weight_decay=0.1),
        "c": Cell("three", "seq_bn", 3, 29, head=1, batch_size=16, learning_rate=3e-3, max_grad_norm=0.1, epochs=4),
    }
    tree = Parallel("a", "b", "c")
    same(cells, tree, tree)


def lang(model: Any) -> None:
    """A frozen adapter below all branches."""
    seed_everything(50)
    model.add_adapter("lang", "seq_bn")
    with torch.no_grad():
        for parameter in model.get_adapter("lang").parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def test_cells_of_a_sweep_on_one_task_stop_when_they_would_alone() -> None:
    """One seed, so the same rows in the same order; the rate differs, and so does when each loses its patience."""
    common: dict[str, Any] = {"batch_size": 8, "epochs": 5, "patience": 1}
    cells = {
        "slow": Cell("two", "seq_bn", 4, 24, learning_rate=1e-7, **common),
        "fast": Cell("two", "seq_bn", 4, 24, learning_rate=2e-2, **common),
        "lora": Cell("two", "lora[r=2]", 4, 24, learning_rate=5e-3, keep="last", max_steps=7, batch_size=8),
    }
    block = Parallel(*cells)
    recorder = same(cells, Stack("lang", block), block, lang)
    last = {name: recorder.of(f"{name}.step")[-1].step for name in cells}
    assert last["slow"] == 6 and last["lora"] == 7  # two evaluations of three steps, no better at the second
    assert recorder.of("step")[-1].step == max(last.values())
    best = [better for _, better in recorder.of("slow.evaluated")]
    assert best == [True, False]


def test_frozen_members_stay_and_gradients_do_not_mix() -> None:
    cells = {"a": Cell("two", "lora", 1, 8, epochs=1), "b": Cell("number", "ia3", 1, 8, epochs=1)}
    model, block = base(), Parallel("a", "b")
    lang(model)
    before = {key: value.detach().clone() for key, value in model.base_model.named_parameters()}
    kept = copy.deepcopy(model.get_adapter("lang").state_dict())
    _, branches, _, _ = together(cells, Stack("lang", block), block, model=model)
    own = [{name for name, _ in branch.part.trainable_parameters()} for branch in branches.values()]
    assert not own[0] & own[1]
    assert own[0] | own[1] == {name for name, _ in model.trainable_parameters()}
    assert all(torch.equal(value, kept[key]) for key, value in model.get_adapter("lang").state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.named_parameters())


def test_batches_are_joined_to_the_longest() -> None:
    one = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])}
    two = {
        "input_ids": torch.tensor([[7, 8, 9], [7, 8, 3]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "token_type_ids": torch.tensor([[0, 1, 1], [0, 0, 1]]),
    }
    found = joined([one, two], [{"input_ids": 3, "token_type_ids": 2}, {"input_ids": 3, "token_type_ids": 2}])
    assert found["input_ids"].tolist() == [[5, 6, 3], [7, 8, 9], [7, 8, 3]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert found["token_type_ids"].tolist() == [[2, 2, 2], [0, 1, 1], [0, 0, 1]]


def test_what_goes_wrong_names_the_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {
        "a": Cell("two", "lora", 1, 8, batch_size=4),
        "b": Cell("number", "seq_bn", 1, 8, batch_size=4, learning_rate=1e30, max_grad_norm=None, epochs=6),
    }
    with pytest.raises(AdaptrainError, match=r"^b: The loss is (nan|inf) at step \d+ of 12: training diverged"):
        together(cells, block := Parallel("a", "b"), block)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("adaptrain.training.branches._forward", full)
    with pytest.raises(OutOfMemoryError, match=r"2 branches go through one forward \(a, b\).*micro_batch_size=2"):
        together(cells, block := Parallel("a", "b"), block)


# ---- one optimiser for several tasks


def two_tasks(word: str, share: bool = False) -> tuple[Any, Any, list[Cell]]:
    cells = [Cell("two", "mtl_lora", 1, 14), Cell("number", "mtl_lora", 2, 7)]
    model = base()
    for name, cell in zip("ab", cells, strict=True):
        cell.add(model, name)
    if share:
        model.share_parameters(["a", "b"])
    tree = MultiTask("a", "b") if word == "multitask" else BatchSplit("a", "b", sizes=[3, 2])
    model.train_adapter(tree)
    return model, Mixed(model, tree, tree, "ab", (torch.long, torch.float32)), cells


def test_the_loss_over_tasks_is_the_mean_over_rows() -> None:
    for word in ("multitask", "batchsplit"):
        model, whole, cells = two_tasks(word)
        encoded, collate = mixed([cell.rows for cell in cells], cells[0].collate)
        batch = [0, 3, 5, 14, 16] if word == "batchsplit" else [16, 0, 14, 3, 5]
        found = whole(**collate(encoded, batch)).loss
        expected = torch.zeros(())
        for cell, name, own in zip(cells, "ab", ([0, 3, 5], [0, 2]), strict=True):
            expected += len(own) / 5 * Part(model, name, name)(**cell.collate(cell.rows, own)).loss
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)
        one = whole(**collate(encoded, [16])).loss  # a batch without a row of the first task
        alone = Part(model, "b", "b")(**cells[1].collate(cells[1].rows, [2])).loss
        assert one.item() == pytest.approx(alone.item(), abs=1e-5)


@pytest.mark.parametrize("word", ["multitask", "batchsplit"])
def test_micro_batches_of_several_tasks_are_exact(word: str) -> None:
    ends = []
    for micro in (None, 2):
        model, whole, cells = two_tasks(word, share=True)
        encoded, collate = mixed([cell.rows for cell in cells], cells[0].collate)
        config = TrainerConfig(batch_size=5, micro_batch_size=micro, epochs=2, learning_rate=1e-2)
        batches, _ = split_batches([cell.rows for cell in cells], [3, 2], 0, True)
        steps = total_steps(len(encoded), config)
        plan = Plan(encoded, collate, lambda: {"mean": 0.0}, "mean", True, steps, 0)
        state = TrainState(make_optimizer(model.trainable_parameters(), config, model.rate))
        given = batches if word == "batchsplit" else None
        fit_mixed(whole, Branch("", model, plan, state, config, Recorder(), given), HARDWARE)
        assert state.step == steps
        ends.append(weights(model, "a") | {f"b.{key}": value for key, value in weights(model, "b").items()})
        a, b = weights(model, "a"), weights(model, "b")
        for key in a:
            if key.endswith((".A", ".B")):
                assert torch.equal(a[key], b[key]), key
    assert max((ends[0][key] - ends[1][key]).abs().max().item() for key in ends[0]) < 1e-5


@pytest.mark.parametrize("grouped", [True, False])
def test_split_batches_hold_so_many_rows_of_each_task(grouped: bool) -> None:
    parts = [rows(TASKS["two"], 10, 1), rows(TASKS["two"], 3, 2)]
    batches, count = split_batches(parts, [4, 2], 5, grouped)
    assert count == 3  # 10 rows by 4; the others are used up after 1.5 batches
    epochs = [batches(epoch) for epoch in range(4)]
    assert epochs == [batches(epoch) for epoch in range(4)]
    for batch in (batch for epoch in epochs for batch in epoch):
        assert [row < 10 for row in batch] == [True] * 4 + [False] * 2
    for first, count in ((0, 10), (10, 3)):
        stream = [row - first for epoch in epochs for batch in epoch for row in batch if (row < 10) == (first == 0)]
        passes = [stream[start : start + count] for start in range(0, len(stream) - count + 1, count)]
        assert all(sorted(each) == list(range(count)) for each in passes)
        assert grouped or len({tuple(each) for each in passes}) > 1  # in another order each time


def test_the_mean_chooses() -> None:
    metric = choosing({"a": "mcc", "b": "accuracy"})
    assert (metric.higher_is_better, metric.shown(0.5)) == (True, "50.0")
    assert not choosing({"a": "mse", "b": "mae"}).higher_is_better
    with pytest.raises(ConfigError, match=r"a lower score is better for b \(mse\) alone"):
        choosing({"a": "mcc", "b": "mse"})
    found = averaged({"a": {"mcc": 0.2, "accuracy": 0.9}, "b": {"f1": 0.6}}, {"a": "mcc", "b": "f1"})
    assert found == pytest.approx({"mean": 0.4, "a.mcc": 0.2, "a.accuracy": 0.9, "b.f1": 0.6})


def test_a_fusion_in_a_branch_is_regularised_as_alone() -> None:
    model = base()
    cells = {"a": Cell("two", "seq_bn", 1, 8), "b": Cell("two", "seq_bn", 2, 8), "c": Cell("number", "lora", 3, 6)}
    for name, cell in cells.items():
        cell.add(model, name)
    model.add_adapter_fusion(["a", "b"], "dynamic")
    fuse = Fuse("a", "b")
    for parameter in model.get_fusion(fuse.fusion).parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    tree = Parallel(fuse, "c")
    model.train_adapter_fusion(tree)
    pieces = []
    for name, child in (("b", fuse), ("c", "c")):
        part, cell = Part(model, child, name), cells[name]
        plan = cell.plan(part, [])
        state: Any = None
        pieces.append(_Piece(Branch(name, part, plan, state, cell.config, Recorder()), [0, 1, 2], 0.5))
    children = dict(zip("bc", tree.children, strict=True))
    both = _forward(model, tree, tree, children, pieces, HARDWARE)
    for piece, found in zip(pieces, both, strict=True):
        (one,) = _forward(model, tree, tree, children, [piece], HARDWARE)
        assert found.item() == pytest.approx(one.item(), abs=1e-5)
    with torch.no_grad():
        assert model.get_fusion_regularization_loss(fuse).item() > 1e-3  # else the test would see nothing
