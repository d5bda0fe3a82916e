"""Gates over whole models, and what can be returned of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

import adaptrain
from adaptrain.methods import ConfigUnion, DoubleSeqBnConfig, LoRAConfig, PrefixTuningConfig, SeqBnConfig
from matrix import METHODS, UNITS, adapted, add, base, batch, gap, run

GATED = ConfigUnion(
    PrefixTuningConfig(prefix_length=3, flat=True, use_gating=True),
    DoubleSeqBnConfig(reduction_factor=4, use_gating=True),
    LoRAConfig(r=2, alpha=5, use_gating=True, attn_matrices=("q", "k", "v"), output_lora=True),
)


@torch.no_grad()
def scores(model, inputs):
    return model(**inputs, output_adapter_gating_scores=True).adapter_gating_scores


@pytest.mark.parametrize("arch", ["bert", "mpnet", "gpt2", "llama", "bart"])
def test_scores_come_by_adapter_layer_and_place(arch):
    model, inputs = adapted(arch, GATED), batch(arch)
    expected = run(model, inputs)
    found = scores(model, inputs)
    assert list(found) == ["a"]
    layers = 4 if arch == "bart" else 2
    assert sorted(found["a"]) == list(range(layers))
    prefix = "encoder_prefix" if arch == "bart" else "self_prefix"
    places = {"selfattn_lora": (2, 3), "output_lora": (2, 1), "mh_adapter": (2, 1), "output_adapter": (2, 1)}
    assert {key: value.shape for key, value in found["a"][0].items()} == places | {prefix: (2, 1)}
    if arch == "bart":
        own = places | {"self_prefix": (2, 1), "cross_prefix": (2, 1), "crossattn_lora": (2, 3)}
        assert {key: value.shape for key, value in found["a"][2].items()} == own
    every = [value for layer in found["a"].values() for value in layer.values()]
    assert all(isinstance(value, np.ndarray) and ((value > 0) & (value < 1)).all() for value in every)
    assert torch.equal(run(model, inputs), expected)  # asking changes nothing


def test_nothing_is_kept_where_nothing_was_asked_for():
    model, inputs = adapted("bert", GATED), batch("bert")
    assert not hasattr(model(**inputs), "adapter_gating_scores")
    outputs = model(**inputs, output_adapter_fusion_attentions=True)
    assert outputs.adapter_fusion_attentions == {}  # no fusion is active
    assert not hasattr(outputs, "adapter_gating_scores")


def test_scores_come_with_heads_and_tuples():
    model, inputs = adapted("bert", GATED), batch("bert")
    expected = scores(model, inputs)
    *_, found = model(**inputs, return_dict=False, output_adapter_gating_scores=True)
    assert np.array_equal(found["a"][0]["output_adapter"], expected["a"][0]["output_adapter"])
    model.add_classification_head("a", num_labels=3)
    outputs = model(**inputs, labels=torch.tensor([0, 2]), output_adapter_gating_scores=True)
    assert outputs.logits.shape == (2, 3)
    assert np.array_equal(outputs.adapter_gating_scores["a"][0]["self_prefix"], expected["a"][0]["self_prefix"])


def test_an_open_gate_is_no_gate_and_a_shut_one_no_adapter():
    for config in (
        SeqBnConfig(reduction_factor=4),
        LoRAConfig(r=2, alpha=5),
        METHODS["prefix_tuning_flat"],
    ):
        for arch in ("bert", "llama", "bart"):
            inputs, plain = batch(arch), adapted(arch, config)
            gated = adapted(arch, config.replace(use_gating=True))
            tensors = plain.get_adapter("a").tensors()
            for bias, expected in ((60.0, run(plain, inputs)), (-120.0, None)):
                with torch.no_grad():
                    for key, value in gated.get_adapter("a").tensors().items():
                        if ".gate." in key:
                            value.fill_(bias if key.endswith("bias") else 0.0)
                        else:
                            value.copy_(tensors[key])
                found = run(gated, inputs)
                if expected is not None:
                    assert gap(found, expected) < 1e-10, (config.method, arch)
                elif config.method != "prefix_tuning":  # a prefix of zeros still takes attention
                    assert gap(found, run(adapted(arch), inputs)) < 1e-10, (config.method, arch)


@pytest.mark.parametrize("method", ["lora-gated", "bn-gated", "prefix-gated", "unipelt"])
def test_imported_semantics_see_padding_and_ours_does_not(method):
    inputs = batch("bert", (4, 7))
    wider = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in inputs.items()}
    model = adapted("bert", UNITS[method])
    assert gap(run(model, inputs), run(model, wider)[:, :7]) < 1e-10
    config = UNITS[method]
    members = [member.replace(as_adapterhub=True) for member in config.members()]
    theirs = adapted("bert", ConfigUnion(*members) if len(members) > 1 else members[0])
    assert gap(run(theirs, inputs), run(theirs, wider)[:, :7]) > 1e-4


def test_gated_prefixes_agree_between_kernels_and_with_generation():
    model = adapted("llama", UNITS["prefix-gated"], auto=hf.AutoModelForCausalLM)
    eager = adapted("llama", UNITS["prefix-gated"], attention="eager", auto=hf.AutoModelForCausalLM)
    inputs = batch("llama")
    seen = inputs["attention_mask"].bool()
    assert gap(run(model, inputs)[seen], run(eager, inputs)[seen]) < 1e-10


def test_gates_see_the_softcap_of_gemma_2():
    """Scores are bent before the softmax; an open gate, written out, must bend them as the model's own attention."""
    config = METHODS["prefix_tuning_flat"]
    inputs, models = batch("gemma2"), []
    for use in (False, True):
        plain = base("gemma2")
        for layer in plain.layers:
            layer.self_attn.attn_logit_softcapping = 0.7  # far below the scores
        model = adaptrain.init(plain).eval()
        add(model, "a", config.replace(use_gating=use))
        model.set_active_adapters("a")
        models.append(model)
    plain, gated = models
    tensors = plain.get_adapter("a").tensors()
    with torch.no_grad():
        for key, value in gated.get_adapter("a").tensors().items():
            if ".gate." in key:
                value.fill_(60.0 if key.endswith("bias") else 0.0)
            else:
                value.copy_(tensors[key])
    seen = inputs["attention_mask"].bool()
    assert gap(run(gated, inputs)[seen], run(plain, inputs)[seen]) < 1e-10
    assert gap(run(adapted("gemma2", config), inputs)[seen], run(plain, inputs)[seen]) > 0.01  # the cap does something
