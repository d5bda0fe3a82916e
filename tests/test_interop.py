"""AdapterHub folders: equal to the reference library where it saved them, and folders that are written in its form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import adaptrain
from adaptrain.methods import (
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    ConfigUnion,
    DiReftConfig,
    DoRAConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MethodConfig,
    MTLLoRAConfig,
    NoReftConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from foreign_folders import BN, LORA, PLAIN_BN, REFERENCE, WHERE, bn_tensors, folder_of, lora_tensors, refused
from matrix import adapted, base, batch, gap, run

ALL, ENCODERS = ("bert", "gpt2", "bart"), ("bert", "bart")
GATED: dict[str, Any] = {"use_gating": True, "as_adapterhub": True}
CASES: dict[str, tuple[MethodConfig, tuple[str, ...]]] = {
    "seq_bn": (SeqBnConfig(), ALL),
    "double_seq_bn": (DoubleSeqBnConfig(), ALL),
    "par_bn": (ParBnConfig(), ALL),
    "scaled_par_bn": (ParBnConfig(scaling="learned"), ALL),
    "seq_bn_inv": (SeqBnInvConfig(inv_adapter_at_head=False), ALL),
    "double_seq_bn_inv": (DoubleSeqBnInvConfig(inv_adapter_at_head=False), ALL),
    "compacter39": (CompacterConfig(phm_dim=2, reduction_factor=4), ("gpt2",)),
    "compacter++41": (CompacterPlusPlusConfig(phm_dim=2, reduction_factor=4), ("gpt2",)),
    "prefix_tuning49": (PrefixTuningConfig(prefix_length=5, bottleneck_size=16), ALL),
    "prefix_tuning_flat35": (PrefixTuningConfig(prefix_length=5, flat=True), ALL),
    "prompt_tuning30": (PromptTuningConfig(prompt_length=4, as_adapterhub=True), ("bert",)),
    "lora13": (LoRAConfig(alpha=3), ALL),
    "lora57": (LoRAConfig(r=4, alpha=8, intermediate_lora=True, output_lora=True), ALL),
    "ia3": (IA3Config(as_adapterhub=True), ALL),
    "dora13": (DoRAConfig(as_adapterhub=True), ENCODERS),
    "mtl_lora": (MTLLoRAConfig(), ENCODERS),
    "loreft19": (LoReftConfig(dropout=0.0), ALL),
    "noreft19": (NoReftConfig(dropout=0.0), ALL),
    "direft19": (DiReftConfig(dropout=0.0), ALL),
    "mam": (ConfigUnion(PrefixTuningConfig(prefix_length=5, bottleneck_size=16), ParBnConfig(reduction_factor=4)), ALL),
    "unipelt": (
        ConfigUnion(
            PrefixTuningConfig(prefix_length=3, bottleneck_size=16, **GATED),
            SeqBnConfig(reduction_factor=8, **GATED),
            LoRAConfig(r=4, alpha=4, **GATED),
        ),
        ALL,
    ),
}
WITHOUT_SHARED = [(arch, case) for arch in ENCODERS for case in ("compacter39", "compacter++41", "vera")]


def golden(arch: str, attention: str = "sdpa") -> tuple[adaptrain.AdaptedModel, dict[str, Tensor]]:
    auto = hf.AutoModelForCausalLM if arch == "gpt2" else hf.AutoModel
    model = auto.from_pretrained(REFERENCE / arch / "base", attn_implementation=attention).double()
    inputs = {key: torch.tensor(value) for key, value in np.load(REFERENCE / arch / "inputs.npz").items()}
    return adaptrain.init(model).eval(), inputs


def golden_folder(arch: str, case: str, tmp_path: Path) -> Path:
    """The folder of a case; of those that the library writes alike, a copy that says which it is."""
    folder = REFERENCE / arch / case
    if not case.startswith(("noreft", "direft")):
        return folder
    copy = shutil.copytree(folder, tmp_path / case)
    values = json.loads((copy / WHERE).read_text())
    values["config"]["subtract_projection"] = case.startswith("noreft")
    (copy / WHERE).write_text(json.dumps(values))
    return copy


def test_every_golden_case_is_read_or_refused():
    named = {(arch, case) for case, (_, archs) in CASES.items() for arch in archs} | set(WITHOUT_SHARED)
    assert named == {
        (path.parts[-3], path.parts[-2]) for path in REFERENCE.glob(f"*/*/{WHERE}") if path.parts[-3] in ALL
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("arch", "case"), [(arch, case) for case, (_, archs) in CASES.items() for arch in archs])
def test_parity_with_the_reference_library(arch, case, attention, tmp_path):
    model, inputs = golden(arch, attention)
    plain = run(model, inputs)
    assert gap(plain, torch.tensor(np.load(REFERENCE / arch / "base.npy"))) < 1e-5
    assert model.load_adapter(golden_folder(arch, case, tmp_path), set_active=True) == "t"
    found, expected = run(model, inputs), torch.tensor(np.load(REFERENCE / arch / case / "expected.npy"))
    assert found.shape == expected.shape
    assert gap(found, expected) < 1e-5
    if case != "prompt_tuning30":  # whose output is longer
        assert gap(found, plain) > 0.01
    assert model.get_adapter("t").config.to_dict() == CASES[case][0].to_dict()
    assert list(model.heads) == []


@pytest.mark.parametrize(("arch", "case"), WITHOUT_SHARED)
def test_what_the_library_did_not_save_is_missed(arch, case):
    """Models without a head were saved without the numbers that all layers share."""
    model_class = {"bert": "BertModel", "bart": "BartModel"}[arch]
    refused(REFERENCE / arch / case, "'shared_parameters.t'", model_class, model=golden(arch)[0])


@pytest.mark.parametrize("case", ["noreft19", "direft19"])
def test_a_reft_that_can_be_one_of_two_is_refused(case):
    refused(REFERENCE / "bert" / case, '"subtract_projection": true (NoReFT)', model=golden("bert")[0])


def test_the_two_refts_are_not_the_same(tmp_path):
    """The key decides, and wrongly set it gives other outputs."""
    folder = golden_folder("bert", "direft19", tmp_path)
    values = json.loads((folder / WHERE).read_text())
    values["config"]["subtract_projection"] = True
    (folder / WHERE).write_text(json.dumps(values))
    model, inputs = golden("bert")
    model.load_adapter(folder, set_active=True)
    assert gap(run(model, inputs), torch.tensor(np.load(folder / "expected.npy"))) > 0.05


@pytest.mark.parametrize(
    ("arch", "case"),
    [
        *((arch, case) for arch in ALL for case in ("lora57", "double_seq_bn", "prefix_tuning49", "unipelt")),
        *(("bert", case) for case in ("seq_bn_inv", "ia3", "dora13", "mtl_lora", "loreft19", "prompt_tuning30")),
        ("gpt2", "compacter39"),
    ],
)
def test_an_import_can_be_saved_as_our_own(arch, case, tmp_path):
    model, inputs = golden(arch)
    model.load_adapter(REFERENCE / arch / case, load_as="mine", set_active=True)
    expected = run(model, inputs)
    model.save_adapter(tmp_path, "mine", with_head=False)
    other, _ = golden(arch)
    assert other.load_adapter(tmp_path, set_active=True) == "mine"
    assert torch.equal(run(other, inputs), expected)


def test_an_imported_prefix_can_be_ejected():
    model, inputs = golden("bart")
    model.load_adapter(REFERENCE / "bart" / "prefix_tuning49", set_active=True)
    model.eject_prefix_tuning("t")
    expected = torch.tensor(np.load(REFERENCE / "bart" / "prefix_tuning49" / "expected.npy"))
    assert gap(run(model, inputs), expected) < 1e-5


def test_the_head_of_a_model_class_is_left_alone():
    model, _ = golden("gpt2")
    assert (REFERENCE / "gpt2" / "seq_bn" / "head_config.json").exists()
    before = model.base_model.lm_head.weight.clone()
    model.load_adapter(REFERENCE / "gpt2" / "seq_bn")
    assert list(model.heads) == []
    assert torch.equal(model.base_model.lm_head.weight, before)


# ---- folders that are written here, in the library's form


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("name", ["t", "en.wiki", "a,b", "a+b"])
def test_a_lora_folder(tmp_path, safe, prefix, name):
    tensors = {prefix + key: value for key, value in lora_tensors(name=name).items()}
    model = adapted("bert")
    assert model.load_adapter(folder_of(tmp_path, LORA, tensors, name, safe)) == name
    model.set_active_adapters(name)
    own = model.get_adapter(name).tensors()
    assert len(own) == 4
    for layer in (0, 1):
        for letter in "AB":
            key = f"{prefix}encoder.layer.{layer}.attention.self.query.loras.{name}.lora_{letter}"
            assert torch.equal(own[f"encoder.{layer}.attention.query.lora.{letter}"], tensors[key])
    plain = base("bert")
    for layer in (0, 1):
        a, b = (own[f"encoder.{layer}.attention.query.lora.{letter}"] for letter in "AB")
        plain.encoder.layer[layer].attention.self.query.weight.data += 2.5 * b @ a
    assert gap(run(model, batch("bert")), run(plain, batch("bert"))) < 1e-5


@pytest.mark.parametrize("version", ["adapters.0.2.1", "adapters.1.0.0", "adapters.1.0.1"])
def test_versions_that_ignored_alpha_are_read_as_they_computed(tmp_path, version):
    model = adapted("bert")
    model.load_adapter(folder_of(tmp_path, LORA, lora_tensors(), version=version))
    assert model.get_adapter("t").config.alpha == model.get_adapter("t").config.r == 2


@pytest.mark.parametrize("version", ["adapters.1.1.0", "adapters.1.3.0", "adapters.1.10.0"])
def test_later_versions_keep_alpha(tmp_path, version):
    model = adapted("bert")
    model.load_adapter(folder_of(tmp_path, LORA, lora_tensors(), version=version))
    assert model.get_adapter("t").config.alpha == 5


def test_llamas_mlp_has_its_two_names_exchanged(tmp_path):
    config = LORA | {"selfattn_lora": False, "intermediate_lora": True}
    tensors = lora_tensors("model.layers.{}.mlp.down_proj", sizes=(48, 32))
    model = adapted("llama")
    model.load_adapter(folder_of(tmp_path, config, tensors, model_type="llama"), set_active=True)
    assert {key.rsplit(".", 2)[0] for key in model.get_adapter("t").tensors()} == {
        "decoder.0.mlp.down",
        "decoder.1.mlp.down",
    }
    assert not model.get_adapter("t").config.intermediate_lora
    assert model.get_adapter("t").config.output_lora


def test_gpt2s_fused_tensors_are_taken_apart(tmp_path):
    torch.manual_seed(0)
    config = LORA | {"attn_matrices": ["q", "k", "v"]}
    place = "transformer.h.{}.attn.c_attn.loras.t.lora_{}"
    tensors = {place.format(i, "A"): torch.randn(6, 32) for i in (0, 1)}
    tensors |= {place.format(i, "B"): torch.randn(96, 2) for i in (0, 1)}
    model, plain = adapted("gpt2"), base("gpt2")
    model.load_adapter(folder_of(tmp_path, config, tensors, model_type="gpt2"), set_active=True)
    for i in (0, 1):
        a, b = tensors[place.format(i, "A")], tensors[place.format(i, "B")]
        for part in range(3):  # query, key, value
            rows = slice(32 * part, 32 * part + 32)
            delta = 2.5 * b[rows] @ a[2 * part : 2 * part + 2]
            plain.h[i].attn.c_attn.weight.data[:, rows] += delta.T
    assert gap(run(model, batch("gpt2")), run(plain, batch("gpt2"))) < 1e-5


def test_norms_inside_a_bottleneck_and_their_doubles(tmp_path):
    """With `ln_before` the library stores the norm twice and moves the down-projection to index 1."""
    places = {"adapter_down.0.weight": (32,), "adapter_down.0.bias": (32,), "adapter_down.1.weight": (2, 32)}
    places |= {"adapter_down.1.bias": (2,), "adapter_up.weight": (32, 2), "adapter_up.bias": (32,)}
    places |= {"adapter_norm_after.weight": (32,), "adapter_norm_after.bias": (32,), "scaling": (32,)}
    tensors = bn_tensors(places)
    for key in list(tensors):
        if "adapter_down.0" in key:
            tensors[key.replace("adapter_down.0", "adapter_norm_before")] = tensors[key].clone()
    config = BN | {"ln_before": True, "ln_after": True, "scaling": "channel"}
    model = adapted("bert")
    model.load_adapter(folder_of(tmp_path, config, tensors))
    own, start = model.get_adapter("t").tensors(), "encoder.layer.1.output.adapters.t."
    assert len(own) == 2 * 9
    for ours, theirs in {
        "norm_before.weight": "adapter_down.0.weight",
        "down.weight": "adapter_down.1.weight",
        "up.bias": "adapter_up.bias",
        "norm_after.bias": "adapter_norm_after.bias",
        "scaling": "scaling",
    }.items():
        assert torch.equal(own[f"encoder.1.mlp.bottleneck.{ours}"], tensors[start + theirs])


def test_a_double_with_other_values_is_refused(tmp_path):
    places = {"adapter_down.0.weight": (32,), "adapter_down.0.bias": (32,), "adapter_norm_before.weight": (32,)}
    refused(folder_of(tmp_path, BN | {"ln_before": True}, bn_tensors(places)), "twice with different values")


def test_a_whole_number_as_scaling(tmp_path):
    model = adapted("bert")
    model.load_adapter(folder_of(tmp_path, BN | {"scaling": 3}, bn_tensors(PLAIN_BN)), set_active=True)
    config = model.get_adapter("t").config
    assert isinstance(config, BnConfig)
    assert config.scaling == 3.0
