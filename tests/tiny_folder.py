"""An adapter folder as tests read it, load it and damage it: a LoRA and a head, made by a tiny BERT."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from matrix import METHODS, adapted, randomise

CONFIG, TENSORS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_TENSORS = "head_config.json", "head.safetensors"
CLASSIFIER = hf.AutoModelForSequenceClassification
"""Of the models that have a head of their own."""


def save_folder(folder: Path) -> Path:
    """The adapter `a` with a head for three labels, and a base that says which one it is."""
    model = adapted("bert", METHODS["lora"])
    model.add_classification_head("a", num_labels=3, id2label={0: "x", 1: "y", 2: "z"})
    randomise(model.heads, 0.3, seed=1)
    model.set_base_identity(name="tiny", revision="r1", fingerprint="f00")
    model.save_adapter(folder, "a")
    return folder
