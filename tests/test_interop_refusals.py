"""AdapterHub folders whose heads come along, and what is refused: configs, tensors, damaged files, code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from adaptrain.errors import CheckpointError
from adaptrain.interop import adapterhub
from adaptrain.methods import LoRAConfig
from foreign_folders import BN, LORA, REFERENCE, WHERE, folder_of, lora_tensors, refused
from matrix import adapted, batch, gap, run

# ---- heads


def head_files(path: Path, config: dict[str, Any] | None, tensors: dict[str, Tensor], name: str | None = "t") -> None:
    values = {
        "config": config,
        "hidden_size": 32,
        "model_class": "BertAdapterModel",
        "model_type": "bert",
        "name": name,
    }
    (path / "head_config.json").write_text(json.dumps(values | {"version": "adapters.1.3.0"}))
    torch.save(tensors, path / "pytorch_model_head.bin")


HEAD = {
    "head_type": "classification",
    "num_labels": 3,
    "layers": 2,
    "activation_function": "tanh",
    "bias": True,
    "use_pooler": False,
    "dropout_prob": None,
    "label2id": {"no": 0, "perhaps": 2, "yes": 1},
}


def head_tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    shapes = {"1.weight": (32, 32), "1.bias": (32,), "4.weight": (3, 32), "4.bias": (3,)}
    return {f"heads.t.{key}": torch.randn(shape) for key, shape in shapes.items()}


def test_a_flexible_classification_head_comes_along(tmp_path):
    head_files(folder_of(tmp_path, LORA, lora_tensors()), HEAD, head_tensors())
    model, inputs = adapted("bert"), batch("bert")
    model.load_adapter(tmp_path, set_active=True)
    assert model.active_head == "t"
    out = run(model, inputs)
    assert model.heads["<t>"].to_dict()["id2label"] == ["no", "yes", "perhaps"]
    model.active_head = None
    t = {key: value.double() for key, value in head_tensors().items()}
    z = torch.tanh(run(model, inputs)[:, 0] @ t["heads.t.1.weight"].T + t["heads.t.1.bias"])
    assert gap(out, z @ t["heads.t.4.weight"].T + t["heads.t.4.bias"]) < 1e-5


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_head_that_does_not_fit_is_refused(tmp_path, change):
    tensors = head_tensors()
    if change == "missing":
        del tensors["heads.t.4.bias"]
    else:
        tensors["heads.t.4.bias"] = torch.ones(2)
    head_files(folder_of(tmp_path, LORA, lora_tensors()), HEAD, tensors)
    refused(tmp_path, "heads.t.4.bias", "missing or of another shape")


def test_a_head_for_a_model_that_has_its_own_is_refused_as_a_whole(tmp_path):
    head_files(folder_of(tmp_path, LORA, lora_tensors()), HEAD, head_tensors())
    model = adapted("bert", auto=hf.AutoModelForSequenceClassification)
    refused(tmp_path, "BertForSequenceClassification", model=model)


# ---- refusals


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "lorra", "r": 1}, "did you mean 'lora'"),
        ({"architecture": "union", "configs": [LORA, LORA]}, "LoRA"),
        ({"architecture": "union", "configs": [LORA, {"architecture": "glue"}]}, "'glue'"),
        (LORA | {"composition_mode": "scale", "use_gating": True, "r": 1}, "use_gating is for"),
        (LORA | {"composition_mode": "scale", "dropout": 0.1, "r": 1}, "dropout is for"),
        (LORA | {"use_dora": True, "use_gating": True}, "use_gating"),
        (LORA | {"composition_mode": "subtract"}, "composition_mode"),
        (BN | {"inv_adapter": "glow", "inv_adapter_reduction_factor": 2}, "'glow', which the library cannot compute"),
        (BN | {"non_linearity": "relo"}, "did you mean 'relu'"),
        (BN | {"colour": 1}, "'colour'"),
        (BN | {"phm_colour": 1}, "'phm_colour'"),
        ({"architecture": "prefix_tuning", "prefix_lenght": 1}, "did you mean 'prefix_length'"),
        ({"architecture": "prompt_tuning", "combine": "suffix"}, "combine"),
        ("lora", "the config is the word 'lora'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, config, said):
    refused(folder_of(tmp_path, config, lora_tensors()), str(tmp_path / WHERE), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop("encoder.layer.1.attention.self.query.loras.t.lora_B"),
            "'encoder.1.attention.query.lora.B' is missing",
        ),
        (
            lambda t: t.update({"encoder.layer.0.attention.self.query.loras.t.lora_C": torch.ones(1)}),
            "no place here.*lora_C",
        ),
        (lambda t: t.update({"encoder.layer.0.attention.self.query.loras.u.lora_A": torch.ones(1)}), "no place here"),
        (lambda t: t.update({"something": torch.ones(1)}), "no place here: something"),
        (
            lambda t: t.update({"encoder.layer.0.attention.self.query.loras.t.lora_A": torch.ones(3, 32)}),
            "is \\(3, 32\\)",
        ),
        (
            lambda t: t.update({"encoder.layer.2.attention.self.query.loras.t.lora_A": torch.ones(2, 32)}),
            "encoder.2.*no place",
        ),
        (
            lambda t: t.update({"encoder.layer.0.attention.self.key.loras.t.lora_A": torch.ones(2, 32)}),
            "key.lora.A' has no place",
        ),
        (lambda t: t.clear(), "is missing"),
    ],
    ids=["missing", "extra", "other-name", "something", "shape", "layer", "matrix", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, said):
    tensors = lora_tensors()
    change(tensors)
    model = adapted("bert")
    with pytest.raises(CheckpointError, match=said):
        model.load_adapter(folder_of(tmp_path, LORA, tensors))
    assert model.adapter_names() == []


def test_another_model_type_is_refused():
    refused(REFERENCE / "bert" / "seq_bn", "was made for a bert", "this model is a gpt2", model=adapted("gpt2"))


def test_a_family_that_the_library_does_not_have_is_refused(tmp_path):
    folder = folder_of(tmp_path, LORA, lora_tensors(), model_type="mpnet")
    refused(folder, "AdapterHub folders are read for bert, roberta", "mpnet", model=adapted("mpnet"))


def test_a_folder_without_weights_is_refused(tmp_path):
    shutil.copy(REFERENCE / "bert" / "seq_bn" / WHERE, tmp_path)
    refused(tmp_path, "neither adapter.safetensors nor pytorch_adapter.bin")


@pytest.mark.parametrize(
    "damage",
    [
        "cut-off",
        "empty",
        "text",
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    shutil.copytree(REFERENCE / "bert" / "seq_bn", tmp_path / "x")
    path = tmp_path / "x" / "pytorch_adapter.bin"
    path.write_bytes({"cut-off": path.read_bytes()[:700], "empty": b"", "text": b"hello, world"}[damage])
    refused(tmp_path / "x", str(path), "weights-only loader")


class Bomb:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Strange(nn.Module):
    """A class that no weights-only loader makes."""


@pytest.mark.parametrize("file", ["pytorch_adapter.bin", "pytorch_model_head.bin"])
def test_code_in_a_file_is_not_run(tmp_path, file):
    marker = tmp_path / "ran"
    folder = folder_of(tmp_path / "x", LORA, lora_tensors())
    head_files(folder, HEAD, head_tensors())
    torch.save({**torch.load(folder / file, weights_only=True), "x": Bomb(str(marker))}, folder / file)
    refused(folder, file, "weights-only loader")
    assert not marker.exists()
    torch.save({"x": Strange()}, folder / file)
    refused(folder, file, "weights-only loader")


@pytest.mark.parametrize("case", ["prefix-length", "fused-parts", "string-config", "not-a-dict", "not-tensors", "no-r"])
def test_other_nonsense_is_refused_too(tmp_path, case):
    if case == "prefix-length":
        config = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 7}
        key = "prefix_tuning.prefix_tunings.t.self_prefix.control_trans"
        refused(folder_of(tmp_path, config, {key: torch.ones(640)}))
    elif case == "fused-parts":
        tensors = {"transformer.h.0.attn.c_attn.loras.t.lora_A": torch.ones(1, 32)}
        config = LORA | {"attn_matrices": ["q", "v"]}
        refused(folder_of(tmp_path, config, tensors, model_type="gpt2"), model=adapted("gpt2"))
    elif case == "string-config":
        folder = folder_of(tmp_path, LORA, lora_tensors())
        values = json.loads((folder / WHERE).read_text()) | {"config": "pfeiffer"}
        (folder / WHERE).write_text(json.dumps(values))
        refused(folder)
    elif case == "not-a-dict":
        refused(folder_of(tmp_path, LORA, [torch.ones(1)]))  # type: ignore[arg-type]
    elif case == "not-tensors":
        refused(folder_of(tmp_path, LORA, lora_tensors() | {next(iter(lora_tensors())): 3}))  # type: ignore[arg-type]
    else:
        config = {key: value for key, value in LORA.items() if key != "r"}
        refused(folder_of(tmp_path, config, lora_tensors(), version="adapters.1.0.0"))


def test_our_own_folders_are_not_taken_for_theirs(tmp_path):
    adapted("bert", LoRAConfig()).save_adapter(tmp_path, "a")
    assert not adapterhub.recognises(tmp_path)
    assert adapterhub.recognises(REFERENCE / "bert" / "seq_bn")
