"""Heads of AdapterHub: the library's numbers, for every type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import adaptrain
from adaptrain.errors import CheckpointError
from foreign_folders import REFERENCE
from matrix import gap

FOLDERS = sorted(path.parent for path in REFERENCE.glob("*/heads/*/head_config.json"))
cases = pytest.mark.parametrize("folder", FOLDERS, ids=[f"{path.parts[-3]}-{path.name}" for path in FOLDERS])


def bare(arch: str) -> adaptrain.AdaptedModel:
    """The base with its pooler, where it has one."""
    model = hf.AutoModel.from_pretrained(REFERENCE / arch / "base", attn_implementation="eager")
    return adaptrain.init(model).eval()


def inputs_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in np.load(folder / "inputs.npz").items()}


def check(model, folder: Path) -> None:
    """Everything that the library says, where it is not padding."""
    inputs = inputs_of(folder)
    if folder.name == "qa":
        inputs.pop("decoder_input_ids", None)  # the decoder reads the text, as the library gave it
    with torch.no_grad():
        out = model(**inputs)
    for key, value in np.load(folder / "expected.npz").items():
        wanted, found = torch.tensor(value), getattr(out, key)
        if key in ("start_logits", "end_logits"):
            seen = inputs["attention_mask"].bool()
            wanted, found = wanted[seen], found[seen]
        if key in ("arc_preds", "rel_preds"):  # the library fills words up to the row's positions
            words = found.shape[1]
            wanted = wanted[:, :words, : words + 1]
            there = found.reshape(*found.shape[:3], -1)[..., :1] > -1e30
            there = there & (inputs["word_starts"][:, 1:, None, None] > 0)
            found, wanted = (each.reshape(*there.shape[:3], -1) * there for each in (found, wanted))
        assert gap(found, wanted) < 1e-5, key


@cases
def test_the_librarys_numbers(folder, tmp_path):
    """And again, from a folder of ours."""
    arch = folder.parts[-3]
    model = bare(arch)
    model.load_adapter(folder, set_active=True)
    assert model.active_head == "t"
    check(model, folder)
    model.save_adapter(tmp_path / "own", "t")
    again = bare(arch)
    again.load_adapter(tmp_path / "own", set_active=True)
    assert again.heads["<t>"].to_dict() == model.heads["<t>"].to_dict()
    check(again, folder)


def test_every_type_of_head_has_a_case():
    found = {json.loads((folder / "head_config.json").read_text())["config"]["head_type"] for folder in FOLDERS}
    assert found == {
        *("classification", "multilabel_classification", "image_classification", "multiple_choice", "tagging"),
        *("question_answering", "dependency_parsing", "masked_lm", "causal_lm", "seq2seq_lm"),
    }


def test_words_that_are_not_the_models_stay_the_heads_own():
    """LLaMA does not tie them, GPT-2 does."""
    for arch, tied in (("llama", False), ("gpt2", True)):
        model = bare(arch)
        model.load_adapter(REFERENCE / arch / "heads" / "causal_lm", set_active=True)
        head = model.heads["<t>"]
        assert (head.words is None) == tied
        assert head.to_dict().get("tied", True) == tied


def changed(folder: Path, to: Path, config: dict | None = None, tensors=None) -> Path:
    shutil.copytree(folder, to)
    values = json.loads((to / "head_config.json").read_text())
    values["config"] |= config or {}
    (to / "head_config.json").write_text(json.dumps(values))
    if tensors is not None:
        save_file(tensors(load_file(to / "model_head.safetensors")), to / "model_head.safetensors")
    return to


@pytest.mark.parametrize(
    ("case", "config", "tensors", "said"),
    [
        ("tagging", {"head_type": "taging"}, None, "type 'taging'"),
        ("tagging", {"layers": 2}, None, "missing or of another shape"),
        ("tagging", {"activation_function": "gulu"}, None, "did you mean 'gelu'"),
        ("qa", {"num_labels": 3}, None, "a start and an end are 2"),
        ("parsing", {"num_labels": 4, "label2id": None}, None, "biaffine_rels.weight"),
        ("masked_lm", {"vocab_size": 7}, None, "missing or of another shape"),
        ("masked_lm", {"shift_labels": True}, None, "shift_labels"),
        ("tagging", {}, lambda old: old | {"heads.t.9.weight": torch.ones(2)}, "tensors that its type does not"),
    ],
    ids=["type", "layers", "activation", "two", "relations", "words", "shift", "more"],
)
def test_a_head_that_does_not_fit_is_refused(case, config, tensors, said, tmp_path):
    folder = changed(REFERENCE / "bert" / "heads" / case, tmp_path / "it", config, tensors)
    model = bare("bert")
    with pytest.raises(CheckpointError, match=said):
        model.load_adapter(folder)
    assert (list(model.heads), model.adapter_names()) == ([], [])


def test_a_pooler_that_is_not_there_is_refused():
    model = adaptrain.AutoAdapterModel.from_pretrained(REFERENCE / "roberta" / "base")
    folder = REFERENCE / "roberta" / "heads" / "pooler"
    with pytest.raises(CheckpointError, match="use_pooler.*load it with transformers' AutoModel"):
        model.load_adapter(folder)
    model.load_adapter(folder, with_head=False)
