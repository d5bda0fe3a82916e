"""How much shorter a training step gets when only the upper half of the layers has adapters, and when what the lower
half makes of the rows is kept.

    python benchmarks/adapter_drop.py [--preset NAME] [--steps N] [MODEL_FOLDER]

With a model folder, its weights; else a random BERT of 12 layers of 256. float32 on the CPU, batches of 32 rows of
16 to 64 tokens. The variants take turns in every round, so that a busy machine slows all of them. Printed is the
median over rounds of the ratio to the round's step with adapters in all layers, and the median of the milliseconds;
the last line is what it takes to compute the kept states of a batch, once for all epochs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import transformers

import adaptrain
from adaptrain.methods import read_config
from adaptrain.tasks.encoded import Collator, Encoded, text_keys
from adaptrain.training.frozen import Kept, keep, layers_below
from adaptrain.training.precision import find_hardware

WARM, ROWS, LENGTH = 2, 32, 64
COLLATE = Collator(text_keys({"input_ids": 0}, torch.long))


def model_with(folder: str | None, preset: str, half: bool, checkpointing: bool) -> Any:
    """A model with an adapter in all layers, or in the upper half of them, ready to train."""
    torch.manual_seed(0)
    if folder is None:
        config = transformers.BertConfig(
            hidden_size=256, num_hidden_layers=12, num_attention_heads=4, intermediate_size=1024
        )
        model: Any = adaptrain.AutoAdapterModel.from_config(config)
    else:
        model = adaptrain.AutoAdapterModel.from_pretrained(folder)
    layers = 1 + max(point.layer for point in model.sites.points)
    model.add_adapter("a", read_config(preset).without(range(layers // 2) if half else ()))
    model.add_classification_head("a")
    model.train_adapter("a")
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model


def batch() -> Encoded:
    """Rows of different lengths."""
    chance = np.random.default_rng(0)
    lengths = [LENGTH, *chance.integers(LENGTH // 4, LENGTH, size=ROWS - 1).tolist()]
    features = [{"input_ids": chance.integers(5, 1000, size=length)} for length in lengths]
    return Encoded.of(features, [int(label) for label in chance.integers(0, 2, size=ROWS)])


def step(model: Any, rows: Encoded, kept: Kept | None) -> float:
    """Seconds of one forward and backward."""
    begun = time.perf_counter()
    with nullcontext() if kept is None else kept.begin(range(ROWS)):
        loss = model(**COLLATE(rows, range(ROWS))).loss
    loss.backward()
    return time.perf_counter() - begun


def main() -> None:
    """Print a line a variant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--preset", default="seq_bn")
    parser.add_argument("--steps", type=int, default=9)
    given, rows, hardware = parser.parse_args(), batch(), find_hardware("cpu", "fp32", False)
    variants: dict[str, tuple[Any, Kept | None]] = {}
    for checkpointing in (False, True):
        name = ", checkpointing" if checkpointing else ""
        half = model_with(given.folder, given.preset, True, checkpointing)
        variants[f"all layers{name}"] = model_with(given.folder, given.preset, False, checkpointing), None
        variants[f"upper half{name}"] = half, None
        variants[f"upper half, kept{name}"] = half, keep(half, layers_below(half), rows, COLLATE, ROWS, hardware)
    seconds: dict[str, list[float]] = {name: [] for name in [*variants, "keeping once"]}
    for number in range(WARM + given.steps):
        found = {name: step(model, rows, kept) for name, (model, kept) in variants.items()}
        half = variants["upper half"][0]
        begun = time.perf_counter()
        keep(half, layers_below(half), rows, COLLATE, ROWS, hardware)
        found["keeping once"] = time.perf_counter() - begun
        if number >= WARM:
            for name, times in seconds.items():
                times.append(found[name])
    for name, times in seconds.items():
        ratios = [each / whole for each, whole in zip(times, seconds["all layers"], strict=True)]
        print(f"{name:32s} {statistics.median(ratios):5.2f}   {1000 * statistics.median(times):7.1f} ms")


if __name__ == "__main__":
    main()
