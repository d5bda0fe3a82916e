"""The generic laws: every method on every architecture, with weights as after training and padded batches."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

import adaptrain
from adaptrain.composition import Stack
from adaptrain.context import AdapterSetup
from adaptrain.errors import UnsupportedError
from adaptrain.methods import LoRAConfig
from matrix import (
    ARCHITECTURES,
    FAMILIES,
    KINDS,
    METHODS,
    QUICK,
    SHAPES,
    UNITS,
    adapted,
    add,
    alone,
    bare,
    base,
    batch,
    gap,
    long,
    pairs,
    randomise,
    run,
    said,
    supported,
    visible,
)

archs = pytest.mark.parametrize("arch", ARCHITECTURES)
kept = pairs(archs=FAMILIES, turns=True)
"""For laws about the keeping of things, which depend on the table alone."""

EVERY = pytest.mark.parametrize(
    ("arch", "method"),
    [
        (arch, method) if arch in FAMILIES or method in KINDS else long(arch, method)
        for arch in ARCHITECTURES
        for method in METHODS
        if supported(arch, method)
    ],
)
HEADED = [arch for arch, row in ARCHITECTURES.items() if row.reads == "texts" and row.auto is hf.AutoModel]
"""Where a classification head can be put: what has a base without a head, and reads texts."""

STACK = r"(encoder|decoder|text|vision)"
LINEAR = r"\.(weight|bias)"
PROJECTION = rf"{STACK}\.(\d+\.((cross_)?attention\.(query|key|value|output)|mlp\.(up|gate|down))|embeddings\.words)"
CANONICAL = re.compile(
    "|".join(
        [
            rf"{PROJECTION}\.lora\.([AB]|gate{LINEAR})",
            rf"{PROJECTION}\.dora\.[ABm]",
            rf"{PROJECTION}\.dvora\.[dbm]",
            rf"{PROJECTION}\.vera\.[db]",
            rf"({PROJECTION}|{STACK}\.\d+\.mlp\.activation)\.ia3\.scale",
            rf"{PROJECTION}\.mtl_lora\.(A|B|weights|values|task)",
            rf"{STACK}\.\d+\.((cross_)?attention|mlp)\.bottleneck\.((down|up|norm_before|norm_after|gate){LINEAR}|scaling)",
            rf"{STACK}\.\d+\.((cross_)?attention|mlp)\.bottleneck\.(down|up)\.(left|right|rule|rule_left|rule_right)",
            r"phm\.bottleneck\.(rule|rule_left|rule_right|(down|up)_(left|right|weight))",
            rf"{STACK}\.embeddings\.output\.bottleneck\.[FG]\.(down|up){LINEAR}",
            rf"{STACK}\.(cross_)?attention\.prefix_tuning\.(prefix|embedding|(down|up){LINEAR})",
            rf"{STACK}\.\d+\.(cross_)?attention\.key_value\.prefix_tuning\.gate{LINEAR}",
            rf"{STACK}\.embeddings\.prompt\.prompt_tuning\.prompt",
            rf"{STACK}\.\d+\.hidden\.reft\.(prefix|suffix)\.(source{LINEAR}|projection)",
        ]
    )
)


def hooks(model: nn.Module) -> int:
    """Everything that adaptrain may have left on somebody else's modules."""
    modules = list(model.modules())
    marks = sum(any("adaptrain" in key for key in vars(module)) for module in modules)
    return marks + sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@kept
def test_an_adapter_changes_nothing_until_it_is_active(arch, method):
    model, padded = adaptrain.init(base(arch)), batch(arch)
    full = {key: value for key, value in batch(arch, (6, 6)).items() if key != "attention_mask"}
    expected = bare(arch, padded), bare(arch, full)
    add(model, "a", METHODS[method])
    assert model.active_adapters is None
    assert torch.equal(run(model, padded), expected[0])
    assert torch.equal(run(model, full), expected[1])


@pairs(turns=True)
def test_a_fresh_adapter_is_the_identity_where_its_config_says_so(arch, method):
    config = METHODS[method]
    inputs = batch(arch)
    change = gap(run(adapted(arch, config, trained=False), inputs), bare(arch, inputs))
    if config.identity_at_start:
        assert change == 0
    else:
        assert change > 0


@EVERY
def test_every_method_changes_every_architecture_and_no_row_another(arch, method):
    model, inputs = adapted(arch, METHODS[method]), batch(arch, (4, 7))
    short = run(model, alone(arch, inputs, 0))
    together = run(model, inputs)
    assert gap(together[:1][:, visible(arch, inputs, together)[0]], short) < 1e-10 * (1 + short.abs().max())
    change = gap(together, bare(arch, inputs))
    assert change > 0.02 if METHODS[method].has_units else change == 0


@pytest.mark.parametrize(("arch", "method"), [(a, m) for a in ARCHITECTURES for m in METHODS if not supported(a, m)])
def test_what_does_not_go_together_is_refused_by_name(arch, method):
    model = adapted(arch)
    with pytest.raises(UnsupportedError) as caught:
        model.add_adapter("a", METHODS[method])
    message = str(caught.value)
    assert f"The adapter 'a' ({METHODS[method].method}) does not fit a {model.config.model_type}: " in message
    assert re.search("no gate|no words|no embeddings of words|no place where a prompt", message)
    assert model.adapter_names() == []


@pytest.mark.parametrize("arch", ["bert", "llama", "whisper"])
def test_a_fusion_of_what_has_none_is_refused_when_it_is_activated(arch):
    model = adapted(arch)
    add(model, "a", METHODS["lora"])
    add(model, "b", METHODS["ia3"])
    expected = run(model, batch(arch))
    with pytest.raises(UnsupportedError) as caught:
        model.set_active_adapters("fuse(a, b)")
    assert all(part in str(caught.value) for part in ("Fuse over lora", model.config.model_type))
    assert torch.equal(run(model, batch(arch)), expected)


@pairs(archs=HEADED, turns=True, quick=QUICK)
def test_only_the_adapter_and_its_head_train(arch, method):
    model, config, inputs = adapted(arch), METHODS[method], batch(arch)
    add(model, "a", config)
    add(model, "other", LoRAConfig(r=2, alpha=3), seed=5)
    model.add_classification_head("a", num_labels=3)
    model.add_classification_head("other", num_labels=2)
    model.train_adapter("a")
    model.eval()  # no dropout: every unit takes part
    before = snapshot(model)
    model(**inputs, labels=torch.tensor([2, 0])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained <= {name for name, _ in model.trainable_parameters()}
    own = {name for name in trained if name.startswith(("adapters.<a>.", "heads.<a>."))}
    idle = {name for name in own if model.get_parameter(name).grad.abs().sum() == 0}
    assert all(".reft." in name for name in idle)  # what is edited behind the last layer, the head may not read
    assert not own or idle < own
    assert {name for name in before if name.startswith(("adapters.<a>.", "heads.<a>."))} == own
    assert trained == own or config.trains_base

    torch.optim.SGD([parameter for _, parameter in model.trainable_parameters()], lr=0.5).step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert own - idle <= changed
    if config.trains_base:
        assert any(name.startswith("base_model.") for name in changed)
        assert not any(name.startswith(("adapters.<other>", "heads.<other>")) for name in changed)
    else:
        assert changed == own - idle


@pairs(archs=SHAPES, turns=True)
def test_saved_and_loaded_the_outputs_are_equal(arch, method, tmp_path: Path):
    config, inputs = METHODS[method], batch(arch)
    model = adapted(arch, config)
    if config.trains_base:
        randomise(model.base_model, 0.15, seed=11)
    if arch in HEADED:
        model.add_classification_head("a", num_labels=3)
        randomise(model.heads, 0.3, seed=12)
    expected = run(model, inputs)
    model.save_adapter(tmp_path, "a")

    fresh = adaptrain.init(base(arch)).eval()
    assert fresh.load_adapter(tmp_path, load_as="b", set_active=True) == "b"
    assert fresh.adapter_names() == ["b"]
    assert str(fresh.active_adapters) == "b"
    assert fresh.active_head == ("b" if arch in HEADED else None)
    assert fresh.get_adapter("b").config.to_dict() == config.to_dict()
    assert torch.equal(run(fresh, inputs), expected)
    assert fresh.load_adapter(tmp_path) == "a"  # its own name
    fresh.set_active_adapters("a")
    assert torch.equal(run(fresh, inputs), expected)


@kept
def test_a_file_holds_the_trained_numbers_once_under_canonical_names(arch, method, tmp_path: Path):
    config = METHODS[method]
    model = adapted(arch, config)
    model.train_adapter("a")
    model.save_adapter(tmp_path, "a")
    data = (tmp_path / "adapter.safetensors").read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    trainable = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    assert model.parameter_count("a") == trainable
    assert len(data) == 8 + header + 8 * trainable  # the base is float64 here, and so is the adapter
    keys = re.findall(r'"([^"]+)":\{"dtype"', data[8 : 8 + header].decode())
    if config.trains_base:
        assert sorted(keys) == sorted(name for name, _ in model.base_model.named_parameters())  # tied ones once
    else:
        assert sorted(keys) == sorted(model.get_adapter("a").tensors())
        assert all(CANONICAL.fullmatch(key) for key in keys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter.safetensors"][::-1]


@kept
def test_a_deleted_adapter_leaves_nothing_behind(arch, method):
    model, inputs = adaptrain.init(base(arch)), batch(arch)
    expected, untouched = bare(arch, inputs), hooks(model.base_model)
    attention = model.config._attn_implementation
    for _ in range(2):  # a second adapter under the same name is as good as the first
        add(model, "a", METHODS[method])
        model.set_active_adapters("a")
        run(model, inputs)
        model.delete_adapter("a")
        assert model.active_adapters is None
        assert model.adapter_names() == []
        assert hooks(model.base_model) == untouched
        assert model.config._attn_implementation == attention
        assert torch.equal(run(model, inputs), expected)


@pairs(archs=SHAPES, turns=True)
def test_without_an_active_adapter_the_output_is_the_base_models(arch, method):
    model, inputs = adapted(arch, METHODS[method]), batch(arch)
    expected = bare(arch, inputs)
    active = run(model, inputs)
    with AdapterSetup(None):
        assert torch.equal(run(model, inputs), expected)
        with AdapterSetup("a"):
            assert torch.equal(run(model, inputs), active)
    assert torch.equal(run(model, inputs), active)
    model.set_active_adapters(None)
    assert torch.equal(run(model, inputs), expected)


@kept
def test_the_base_models_keys_values_and_types_stay(arch, method, tmp_path: Path):
    plain, inputs = base(arch), batch(arch)
    before, types = snapshot(plain), [(name, type(module)) for name, module in plain.named_modules()]
    model = adaptrain.init(base(arch))
    add(model, "a", METHODS[method])
    if not METHODS[method].trains_base:
        model.train_adapter("a")
        loss = said(model(**inputs)).pow(2).mean()
        if loss.requires_grad:
            loss.backward()
            torch.optim.SGD(model.get_adapter("a").parameters(), lr=0.1).step()
    model.save_adapter(tmp_path, "a")
    assert same_state(model.base_model, before)
    model.delete_adapter("a")
    assert same_state(model.base_model, before)
    assert [(name, type(module)) for name, module in model.base_model.named_modules()] == types


@pairs(archs=[arch for arch, row in ARCHITECTURES.items() if len(row.attention) > 1], turns=True, quick=QUICK)
def test_eager_equals_sdpa(arch, method):
    inputs = batch(arch)
    eager, sdpa = (run(adapted(arch, METHODS[method], attention=each), inputs) for each in ("eager", "sdpa"))
    seen = visible(arch, inputs, eager)
    assert gap(eager[seen], sdpa[seen]) < 1e-10 * (1 + sdpa[seen].abs().max())


@archs
def test_a_stack_of_loras_adds_their_deltas(arch):
    """Stack(a, b) is one LoRA whose A and B are those of a and b side by side, at the same scale."""
    model, inputs = adapted(arch), batch(arch, (6, 6))  # in float64, some models fill padding with what is no number
    config = LoRAConfig(r=2, alpha=5, attn_matrices=("q", "k", "v"), intermediate_lora=True, output_lora=True)
    add(model, "a", config, seed=1)
    add(model, "b", config.replace(r=3, alpha=7.5), seed=2)
    add(model, "both", config.replace(r=5, alpha=12.5), seed=3)
    model.double()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    one, other, both = (model.get_adapter(name).tensors() for name in ("a", "b", "both"))
    for key in both:
        both[key].copy_(torch.cat([one[key], other[key]], 0 if key.endswith("A") else 1))
    model.set_active_adapters("both")
    expected = run(model, inputs)
    for composition in (Stack("a", "b"), Stack("b", "a"), "stack(a, stack(b))"):
        model.set_active_adapters(composition)
        assert gap(run(model, inputs), expected) < 1e-9


@pairs(*UNITS, archs=SHAPES, turns=True)
def test_a_stack_with_an_adapter_that_has_no_units_is_the_other(arch, method):
    model, inputs = adapted(arch, UNITS[method]), batch(arch)
    expected = run(model, inputs)
    model.add_adapter("empty", "none")
    model.set_active_adapters(Stack("empty", "a"))
    assert torch.equal(run(model, inputs), expected)


@pairs(*UNITS, archs=FAMILIES, turns=True)
def test_leave_out_is_an_adapter_without_those_layers(arch, method):
    config, inputs = UNITS[method], batch(arch)
    if "leave_out" not in config.fields() or ("targets" in config.fields() and config.targets):
        pytest.skip("the config has no leave_out")
    if "reduction_factor" in config.fields():
        config = config.replace(reduction_factor=4)
    if config.leave_out or config.fields().get("layers"):
        config = config.replace(leave_out=(), **{"layers": "all"} if "layers" in config.fields() else {})
    whole, part = adapted(arch, config), adapted(arch)
    part.add_adapter("a", config.replace(leave_out=(1,)))
    left_out = {site.point.name for site in part.sites.by_name.values() if site.point.layer == 1}
    assert not left_out & set(part.get_adapter("a").units)
    assert set(part.get_adapter("a").units) | left_out >= set(whole.get_adapter("a").units)
    part.get_adapter("a").take(whole.get_adapter("a"))
    for name, site in whole.sites.by_name.items():
        if name in left_out:
            site.units.clear()
    whole.sites.refresh()
    part.set_active_adapters("a")
    assert torch.equal(run(part, inputs), run(whole, inputs))
