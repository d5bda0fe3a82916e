"""What a stranger can send: base models, runs, recipes, packages and pickles whose Python leaves a mark if it runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CODE = "import pathlib\npathlib.Path({mark!r}).touch()\n"
CLASSES = """\
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
class StrangerConfig(BertConfig):
    model_type = "stranger"
class StrangerModel(BertModel):
    config_class = StrangerConfig
class StrangerTokenizer(PreTrainedTokenizerFast):
    pass
"""
PACKAGE = "evilpackage.deep"
"""A package inside another: Python imports the outer one to locate it."""

RECIPE = """\
defaults:
  - override /model: minilm
  - override /adapter: lora
  - override /task: verdict
"""


class Marking:
    """An object that leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


def change_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; those of a section by a mapping."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    for key, value in changes.items():
        values[key] = values.get(key) | value if isinstance(value, dict) and key in values else value
    file.write_text(json.dumps(values))


def save_base_with_code(folder: Path, base: Path, mark: Path, model_type: str = "stranger") -> Path:
    """A copy of a base model whose config, model and tokenizer have classes of their own."""
    shutil.copytree(base, folder)
    (folder / "stranger.py").write_text(CODE.format(mark=str(mark)) + CLASSES)
    classes = {"AutoConfig": "stranger.StrangerConfig", "AutoModel": "stranger.StrangerModel"}
    change_json(folder / "config.json", model_type=model_type, auto_map=classes)
    tokenizer = {"AutoTokenizer": [None, "stranger.StrangerTokenizer"]}
    change_json(folder / "tokenizer_config.json", tokenizer_class="StrangerTokenizer", auto_map=tokenizer)
    return folder


def save_package(folder: Path, mark: Path) -> None:
    """`evilpackage.deep` with rows, for a folder where Python looks for modules."""
    data = folder / "evilpackage" / "deep" / "data"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text('{"sentence": "kind", "label": 1}\n')
    for module in (data.parent.parent, data.parent):
        (module / "__init__.py").write_text(CODE.format(mark=str(mark)))


def save_run(folder: Path, run: Path, **changes: Any) -> Path:
    """A copy of a run, with other things in its `task.json`. What the call says of places does not hide them."""
    shutil.copytree(run, folder)
    change_json(folder / "task.json", places={"model.name": "/nowhere"}, **changes)
    values = json.loads((folder / "task.json").read_text())
    values["places"] = {}
    (folder / "task.json").write_text(json.dumps(values))
    return folder


def save_pickles(folder: Path, mark: Path) -> None:
    """An adapter and embeddings of AdapterHub's form, an archive of rows, and weights, all pickled."""
    for name in ("adapter", "words", "base"):
        (folder / name).mkdir(parents=True)
    config = {"config": {"architecture": "lora", "r": 2}, "name": "a", "model_type": "bert", "hidden_size": 32}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    torch.save(Marking(mark), folder / "adapter" / "pytorch_adapter.bin")
    torch.save(Marking(mark), folder / "words" / "embedding.pt")
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    torch.save(Marking(mark), folder / "base" / "pytorch_model.bin")
    rows = np.empty(2, dtype=object)
    rows[:] = [Marking(mark), Marking(mark)]
    np.savez(folder / "rows.npz", text=rows, label=rows)
    with (folder / "rows.pkl").open("wb") as file:
        pickle.dump(Marking(mark), file)
