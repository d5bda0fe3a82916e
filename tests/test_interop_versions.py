"""AdapterHub folders of other versions: where embeddings were changed back, and adapter-transformers 1 and 2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foreign_folders import BN, PLAIN_BN, bn_tensors, folder_of, loaded, random_tensors, refused, same
from matrix import base, batch, run

# ---- invertible adapters

INV = BN | {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2.0}
HALVES = {
    f"{half}.{index}.{name}": shape
    for half in "FG"
    for index, sizes in {0: (8, 16), 2: (16, 8)}.items()
    for name, shape in {"weight": sizes, "bias": sizes[:1]}.items()
}


@pytest.mark.parametrize(
    ("version", "model_class", "at_head"),
    [
        ("adapters.1.3.0", "BertForMaskedLM", False),
        ("adapters.0.2.0", "BertModel", False),
        ("adapters.1.3.0", "BertAdapterModel", True),
        ("3.2.1", "BertForMaskedLM", True),
        (None, "BertModelWithHeads", True),
    ],
)
def test_embeddings_are_changed_back_where_the_library_did(tmp_path, version, model_class, at_head):
    tensors = bn_tensors(PLAIN_BN) | random_tensors(HALVES, ("invertible_adapters.t.{}",))
    model = loaded(folder_of(tmp_path, INV, tensors, version=version, model_class=model_class))
    assert model.get_adapter("t").config.inv_adapter_at_head is at_head
    key = "encoder.embeddings.output.bottleneck.F.up.weight"
    assert torch.equal(model.get_adapter("t").tensors()[key], tensors["invertible_adapters.t.F.2.weight"])


# ---- adapter-transformers 1 and 2

V1 = {
    "LN_after": False,
    "LN_before": False,
    "MH_Adapter": False,
    "Output_Adapter": True,
    "adapter_residual_before_ln": False,
    "attention_type": "sent-lvl-dynamic",
    "invertible_adapter": {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2},
    "new_attention_norm": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "reduction_factor": 16,
    "residual_before_ln": True,
}


def old_names(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    names = {".output.adapters.": f".output.layer_text_{kind}_adapters.", "invertible_ad": "invertible_lang_ad"}
    for new, old in names.items():
        tensors = {key.replace(new, old): tensor for key, tensor in tensors.items()}
    return {f"bert.{key}": tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("config", [V1, "pfeiffer"], ids=["keys", "word"])
@pytest.mark.parametrize("kind", ["task", "lang"])
def test_folders_of_the_first_version(tmp_path, config, kind):
    """A task's adapter had no inverse, though its config says so; a language's had."""
    tensors = bn_tensors(PLAIN_BN)
    if kind == "lang":
        tensors |= random_tensors(HALVES, ("invertible_adapters.t.{}",))
    now = folder_of(tmp_path / "now", INV if kind == "lang" else BN, tensors)
    options = {"version": None, "model_class": None, "type": f"text_{kind}"}
    old = loaded(folder_of(tmp_path / "old", config, old_names(tensors, kind), **options))
    new = loaded(now)
    assert old.get_adapter("t").config.inv_adapter == ("nice" if kind == "lang" else None)
    assert torch.equal(run(old, batch("bert")), run(new, batch("bert")))
    assert not same(old, base("bert"))


def test_bottlenecks_after_attention_of_the_first_version(tmp_path):
    tensors = bn_tensors(PLAIN_BN)
    attention = {
        key.replace(".output.adapters.", ".attention.output.attention_text_task_adapters."): tensor
        for key, tensor in tensors.items()
    }
    config = V1 | {"MH_Adapter": True, "non_linearity": "swish", "original_ln_before": False}
    options = {"version": None, "type": "text_task"}
    model = loaded(folder_of(tmp_path, config, old_names(tensors, "task") | attention, **options))
    assert len(model.get_adapter("t").tensors()) == 16
    assert model.get_adapter("t").config.non_linearity == "swish"


@pytest.mark.parametrize(
    ("version", "name", "ours"),
    [(None, "gelu", "gelu_new"), (None, "gelu_orig", "gelu"), ("2.0.0", "gelu", "gelu"), (None, "relu", "relu")],
)
def test_what_gelu_meant_before_files_had_a_version(tmp_path, version, name, ours):
    model = loaded(folder_of(tmp_path, BN | {"non_linearity": name}, bn_tensors(PLAIN_BN), version=version))
    assert model.get_adapter("t").config.non_linearity == ours


def test_an_inverse_with_an_activation_of_its_own_is_refused(tmp_path):
    tensors = bn_tensors(PLAIN_BN) | random_tensors(HALVES, ("invertible_adapters.t.{}",))
    folder = folder_of(tmp_path, V1 | {"non_linearity": "swish"}, tensors, version=None, type="text_lang")
    refused(folder, "'relu' and the bottleneck 'swish'")


def test_tensors_of_a_fusion_are_refused(tmp_path):
    key = "encoder.layer.0.output.adapter_fusion_layer.a,b.query.weight"
    refused(folder_of(tmp_path, BN, bn_tensors(PLAIN_BN) | {key: torch.ones(32, 32)}), "no place here", key)
