"""How much longer a training step takes with each method than with the head alone.

    python benchmarks/method_step.py [preset …]

A random BERT of MiniLM's size (6 layers of 384), bf16 base, float32 adapters, batches of 32 × 64 tokens. The methods
take turns in every round, so that a busy machine slows all of them; what is printed is the median over rounds of the
ratio to the round's head-only step.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import transformers

import adaptrain
from adaptrain.methods import presets

ROUNDS, WARM = 9, 2


def model_with(preset: str) -> adaptrain.AdaptedModel:
    """The base model with one adapter and its head, ready to train."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = adaptrain.AutoAdapterModel.from_config(config)
    model.base_model.to(torch.bfloat16)
    model.add_adapter("a", preset)
    model.add_classification_head("a")
    model.train_adapter("a")
    return model


def step(model: adaptrain.AdaptedModel, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
    """Seconds of one forward and backward."""
    begun = time.perf_counter()
    model(**inputs, labels=labels).loss.backward()
    return time.perf_counter() - begun


def main(chosen: list[str]) -> None:
    """Print a line a method."""
    names = ["none", *(name for name in chosen or presets() if name != "none")]
    models = {name: model_with(name) for name in names}
    inputs = {"input_ids": torch.randint(5, 1000, (32, 64)), "attention_mask": torch.ones(32, 64, dtype=torch.long)}
    labels = torch.randint(0, 2, (32,))
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM + ROUNDS):
        seconds = {name: step(model, inputs, labels) for name, model in models.items()}
        if number >= WARM:
            for name in names:
                ratios[name].append(seconds[name] / seconds["none"])
    for name in names:
        print(f"{name:20s} {statistics.median(ratios[name]):5.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
