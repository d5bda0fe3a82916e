"""How much sooner K adapters are trained over one forward than one after the other.

    python benchmarks/parallel_training.py [layers or model folder] [adapters]

A random BERT (4 layers of 384 unless said otherwise), float32, `seq_bn` adapters and heads on rows of 8 to 64 tokens.
Both ways train the same adapters by the same steps; they take turns in every round, so that a busy machine slows both.
What is printed is the median over rounds of steps a second of one adapter, and of the ratio within a round; once with
rows of their own, which are padded to the longest of all, and once with the same rows, as cells of a sweep have them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BertConfig

from adaptrain import AutoAdapterModel, Parallel
from adaptrain.config.schema import TrainerConfig
from adaptrain.evaluation.metrics import get_metric
from adaptrain.tasks.encoded import Collator, Encoded, text_keys
from adaptrain.training.branches import Branch, fit_branches
from adaptrain.training.display import BranchDisplay, Displays
from adaptrain.training.loop import Plan, fit
from adaptrain.training.part import Part
from adaptrain.training.precision import find_hardware
from adaptrain.training.state import TrainState, make_optimizer

ROUNDS, STEPS = 7, 4
HARDWARE = find_hardware("auto", "fp32", False)
SILENT = Displays([])


def base(where: str) -> Any:
    """A random BERT with so many layers, or the model in a folder."""
    if not where.isdecimal():
        return AutoAdapterModel.from_pretrained(where)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=int(where), num_attention_heads=12, intermediate_size=1536, vocab_size=8000
    )
    return AutoAdapterModel.from_config(config)


def rows(count: int, seed: int) -> Encoded:
    """Rows of chance."""
    chance = np.random.default_rng(seed)
    features = [{"input_ids": chance.integers(5, 8000, size=chance.integers(8, 65))} for _ in range(count)]
    return Encoded.of(features, [row % 2 for row in range(count)])


def plan(config: TrainerConfig, seed: int) -> Plan:
    """So many steps, and no evaluation that takes time."""
    encoded = rows(STEPS * config.batch_size, seed)
    collate = Collator(text_keys({"input_ids": 0}, torch.long))
    return Plan(encoded, collate, lambda: {"accuracy": 0.0}, "accuracy", True, STEPS, seed)


def apart(model: Any, names: list[str], config: TrainerConfig, seeds: Sequence[int]) -> float:
    """Seconds of one adapter after the other."""
    begun = time.perf_counter()
    for seed, name in zip(seeds, names, strict=True):
        model.train_adapter(name)
        state = TrainState(make_optimizer(model.trainable_parameters(), config, model.rate))
        fit(model, state, plan(config, seed), config, HARDWARE, SILENT)
    return time.perf_counter() - begun


def together(model: Any, names: list[str], config: TrainerConfig, seeds: Sequence[int]) -> float:
    """Seconds of all over one forward."""
    begun = time.perf_counter()
    tree = Parallel(*names)
    model.train_adapter(tree)
    branches = []
    for seed, name in zip(seeds, names, strict=True):
        part = Part(model, name, name)
        state = TrainState(make_optimizer(part.trainable_parameters(), config, model.rate))
        display = BranchDisplay(SILENT, name, get_metric("accuracy"))
        branches.append(Branch(name, part, plan(config, seed), state, config, display))
    fit_branches(model, tree, tree, branches, HARDWARE, SILENT)
    return time.perf_counter() - begun


def main(where: str = "4", adapters: str = "4") -> None:
    """Print a line a batch size."""
    model, names = base(where), [f"a{number}" for number in range(int(adapters))]
    for name in names:
        model.add_adapter(name, "seq_bn")
        model.add_classification_head(name)
    model.to(HARDWARE.device)
    print(f"{len(names)} adapters, {torch.get_num_threads()} threads, {HARDWARE.device}")
    print("rows of each        apart, steps/s  together, steps/s  ratio (lowest … highest)")
    for size, same in ((1, False), (1, True), (16, False), (16, True)):
        config = TrainerConfig(batch_size=size, keep="last", max_steps=STEPS)
        given = [0 if same else number for number in range(len(names))]
        found = [
            (apart(model, names, config, given), together(model, names, config, given)) for _ in range(ROUNDS + 1)
        ][1:]
        ratios = sorted(one / all_ for one, all_ in found)
        speeds = [
            statistics.median(STEPS * len(names) / seconds for seconds in way) for way in zip(*found, strict=True)
        ]
        spread = f"{statistics.median(ratios):5.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
        print(
            f"{size:5d}, {'the same' if same else 'their own':11s}  {speeds[0]:14.1f}  {speeds[1]:17.1f}  {spread}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
