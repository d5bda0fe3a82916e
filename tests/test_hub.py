"""Hub ids, through the real client, against a stand-in server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import adaptrain
from hub_server import COMMIT, serve

SCRIPT = """
import torch
import adaptrain
from adaptrain.errors import AdaptrainError

model = adaptrain.AutoAdapterModel.from_pretrained("org/tiny")
name = model.load_adapter("org/lora-task", set_active=True)
model.eval()
print(name, f"{model(input_ids=torch.arange(8)[None]).last_hidden_state.sum().item():.6f}")
for load in (model.load_adapter, adaptrain.AutoAdapterModel.from_pretrained):
    try:
        load("org/absent")
    except AdaptrainError as error:
        print(type(error).__name__, error.exit_code, "org/absent" in str(error))
"""


@pytest.fixture
def hub(tmp_path: Path) -> tuple[Path, float]:
    """A hub with a base model and an adapter, and what the adapted model answers."""
    base = BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
        add_pooling_layer=False,
    )
    base.save_pretrained(tmp_path / "org" / "tiny")
    model = adaptrain.init(base)
    model.add_adapter("task", "lora[r=2,init_weights='bert']")
    model.save_adapter(tmp_path / "org" / "lora-task", "task")
    model.set_active_adapters("task")
    model.eval()
    return tmp_path, float(model(input_ids=torch.arange(8)[None]).last_hidden_state.detach().sum())


def test_base_and_adapter_come_from_the_hub(hub: tuple[Path, float]) -> None:
    folder, expected = hub
    with serve(folder) as endpoint:
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
        )
    assert ran.returncode == 0, ran.stderr
    first, *errors = ran.stdout.splitlines()
    assert first.split()[0] == "task"
    assert float(first.split()[1]) == pytest.approx(expected, abs=1e-4)
    assert errors == ["CheckpointError 3 True", "ModelError 3 True"]
    assert list((folder / "home").rglob(f"snapshots/{COMMIT}/adapter.safetensors"))
