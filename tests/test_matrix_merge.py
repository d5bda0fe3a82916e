"""Merging over the matrix: the merged base says what the adapter said, and is itself again after a reset."""

from __future__ import annotations

import copy

import pytest
import torch

import adaptrain
from adaptrain.context import AdapterSetup
from adaptrain.errors import AdapterNameError, UnsupportedError
from adaptrain.methods import LoRAConfig, MTLLoRAConfig
from matrix import METHODS, UNITS, adapted, add, bare, batch, gap, pairs, run

MERGE = [
    name
    for name, config in UNITS.items()
    if config.method in ("lora", "ia3", "vera", "dora", "dvora", "mtl_lora") and "gated" not in name
]
TIED = {("lora-o-words", arch) for arch in ("bart",)}


def weights(model: adaptrain.AdaptedModel) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.base_model.state_dict().items()}


@pairs(*MERGE)
def test_merged_equals_unmerged_and_a_reset_restores_every_bit(arch, method):
    model, inputs = adapted(arch, UNITS[method]), batch(arch)
    expected, before, plain = run(model, inputs), weights(model), bare(arch, inputs)
    if (method, arch) in TIED:
        with pytest.raises(UnsupportedError, match="is shared by"):
            model.merge_adapter("a")
        assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())
        assert torch.equal(run(model, inputs), expected)
        return
    model.merge_adapter("a")
    assert model.merged_adapter == "a"
    assert model.active_adapters is None
    assert gap(run(model, inputs), expected) < 1e-10 * (1 + expected.abs().max())
    assert gap(expected, plain) > 0.05
    model.reset_adapter()
    assert model.merged_adapter is None
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())
    assert str(model.active_adapters) == "a"
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize("method", [name for name in UNITS if name not in MERGE])
def test_what_cannot_be_merged_is_refused_and_changes_nothing(method):
    model, inputs = adapted("bert", UNITS[method]), batch("bert")
    expected, before = run(model, inputs), weights(model)
    with pytest.raises(UnsupportedError, match="The adapter 'a' cannot be merged"):
        model.merge_adapter("a")
    assert model.merged_adapter is None
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())
    assert torch.equal(run(model, inputs), expected)


def test_an_interrupted_merge_leaves_the_base_as_it_was(monkeypatch):
    model = adapted("bert", UNITS["lora"])
    before, calls = weights(model), []
    unit = list(model.get_adapter("a").units.values())[2][0]

    def interrupt(*_):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(unit, "merged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.merge_adapter("a")
    assert calls
    assert model.merged_adapter is None
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())


@pytest.mark.parametrize("method", ["full", "none"])
def test_an_adapter_without_units_has_nothing_to_merge(method):
    with pytest.raises(UnsupportedError, match="nothing to merge"):
        adapted("bert", METHODS[method]).merge_adapter("a")


def test_activating_takes_the_merged_adapter_out_first():
    model, inputs = adapted("bert", UNITS["lora"]), batch("bert")
    add(model, "b", UNITS["ia3"], seed=9)
    model.set_active_adapters("b")
    expected, before = run(model, inputs), weights(model)
    model.merge_adapter("a")
    model.set_active_adapters("b")
    assert model.merged_adapter is None
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())
    assert torch.equal(run(model, inputs), expected)


def test_a_merged_adapter_is_in_nobodys_way():
    model, inputs = adapted("bert", UNITS["lora"]), batch("bert")
    add(model, "b", UNITS["ia3"], seed=9)
    model.merge_adapter("a")
    with pytest.raises(UnsupportedError, match=r"'a' is merged already; call reset_adapter\(\) first"):
        model.merge_adapter("b")
    with pytest.raises(AdapterNameError, match="'a' is merged into the base model"):
        model.delete_adapter("a")
    with pytest.raises(AdapterNameError, match="'a' is merged into the base model"):
        model.add_adapter("a", "lora", overwrite_ok=True)
    for composition in ("b", None):
        with pytest.raises(UnsupportedError, match="while 'a' is merged"), AdapterSetup(composition):
            run(model, inputs)
    expected = run(model, inputs)
    copied = copy.deepcopy(model)
    copied.reset_adapter()
    assert torch.equal(run(model, inputs), expected)  # the copy has weights of its own
    copied.set_active_adapters("a")
    assert gap(run(copied, inputs), expected) < 1e-10


@pytest.mark.parametrize("method", ["lora-everywhere", "dora", "ia3-everywhere", "vera", "mtl_lora"])
def test_merging_into_a_bf16_base_rounds_once(method):
    model, inputs = adapted("llama", UNITS[method]), batch("llama")
    model.base_model.to(torch.bfloat16)
    before = weights(model)
    expected = run(model, inputs).float()
    model.merge_adapter("a")
    seen = inputs["attention_mask"].bool()
    assert (run(model, inputs).float() - expected)[seen].abs().mean() < 0.1 * expected[seen].abs().mean()
    model.reset_adapter()
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())


def test_a_merged_model_generates_and_saves_the_adapter_as_it_was(tmp_path):
    import transformers as hf

    model = adapted("gpt2", UNITS["lora-everywhere"], auto=hf.AutoModelForCausalLM)
    inputs = {key: batch("gpt2", (6, 3))[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**inputs, **options)
    tensors = {key: value.clone() for key, value in model.get_adapter("a").tensors().items()}
    model.merge_adapter("a")
    assert torch.equal(model.generate(**inputs, **options), expected)
    model.save_adapter(tmp_path, "a")
    other = adapted("gpt2", auto=hf.AutoModelForCausalLM)
    other.load_adapter(tmp_path, set_active=True)
    assert all(torch.equal(value, tensors[key]) for key, value in other.get_adapter("a").tensors().items())
    assert torch.equal(other.generate(**inputs, **options), expected)


# ---- sharing between tasks


def test_tasks_of_mtl_lora_share_what_the_paper_shares():
    config, inputs = MTLLoRAConfig(r=3, alpha=5, n_up_projection=2), batch("bert")
    model = adapted("bert")
    for index, name in enumerate("abc"):
        add(model, name, config, seed=index)
    model.share_parameters(["a", "b"])
    one, other = model.get_adapter("a").tensors(), model.get_adapter("b").tensors()
    for key in one:
        shared = key.endswith((".A", ".B"))
        assert (one[key].data_ptr() == other[key].data_ptr()) == shared
    model.train_adapter("b")
    model.eval()
    model(**inputs).last_hidden_state.pow(2).mean().backward()
    with torch.no_grad():
        for parameter in model.get_adapter("b").parameters():
            parameter -= 0.1 * parameter.grad
    assert all(torch.equal(one[key], other[key]) for key in one if key.endswith((".A", ".B")))
    assert not all(torch.equal(one[key], other[key]) for key in one)

    expected = run(model, inputs)
    model.unshare_parameters("b")
    assert torch.equal(run(model, inputs), expected)
    one, other = model.get_adapter("a").tensors(), model.get_adapter("b").tensors()
    assert not any(one[key].data_ptr() == other[key].data_ptr() for key in one)


def test_what_cannot_be_shared_is_refused_by_name():
    model = adapted("bert")
    add(model, "a", MTLLoRAConfig(r=3))
    add(model, "b", MTLLoRAConfig(r=4))
    add(model, "c", LoRAConfig())
    with pytest.raises(UnsupportedError, match="'b' and 'a' have different configs"):
        model.share_parameters(["a", "b"])
    with pytest.raises(UnsupportedError, match="'c' is lora; only MTL-LoRA shares"):
        model.share_parameters(["a", "c"])
    with pytest.raises(AdapterNameError, match="'d'"):
        model.share_parameters(["a", "d"])
