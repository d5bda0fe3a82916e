"""Laws over the ways a model is run: checkpointed, copied, in bf16, under autocast, compiled."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adaptrain.composition import Stack
from adaptrain.context import AdapterSetup, current_forward
from adaptrain.errors import UnsupportedError
from adaptrain.methods import SeqBnConfig
from matrix import (
    ARCHITECTURES,
    FAMILIES,
    METHODS,
    QUICK,
    UNITS,
    adapted,
    add,
    bare,
    base,
    batch,
    gap,
    long,
    pairs,
    randomise,
    run,
    said,
    visible,
)

kept = pairs(*UNITS, archs=FAMILIES, turns=True)
RECOMPUTED = [arch for arch in ARCHITECTURES if base(arch).supports_gradient_checkpointing]


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(7)  # dropout is on
    said(model(**inputs)).pow(2).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters()}


# ---- gradient checkpointing


@pairs(*UNITS, archs=RECOMPUTED, turns=True, quick=QUICK)
def test_recomputed_layers_give_the_same_gradients(arch, method, monkeypatch):
    model, inputs = adapted(arch, UNITS[method]), batch(arch)
    if arch == "gemma2":
        model.float()  # its attention to a row's padding is no number in float64
    inputs["use_cache"] = False
    model.train_adapter("a")
    adapter = model.get_adapter("a")
    runs = count_calls(monkeypatch, adapter)
    stored, once = gradients(model, inputs), Counter(runs)
    runs.clear()
    model.gradient_checkpointing_enable()
    recomputed = gradients(model, inputs)
    assert max(gap(recomputed[name], stored[name]) for name in stored) < 1e-10
    # every layer ran twice, with its units; what is outside of the layers, once; hooks of the layer itself run inside
    # the recomputed part in older releases of transformers, and outside of it in newer ones
    points = {name: model.sites.by_name[name].point for name in adapter.units}
    behind = {name for name, point in points.items() if point.kind == "layer"}
    inside = {name for name, point in points.items() if point.layer >= 0} - behind
    assert {name: count for name, count in runs.items() if name not in behind} == {
        name: count * (2 if name in inside else 1) for name, count in once.items() if name not in behind
    }
    assert all(runs[name] in (once[name], 2 * once[name]) for name in behind & once.keys())
    assert all(once[name] == 1 for name in adapter.shared)  # what does not depend on the batch, once
    assert current_forward() is None


def count_calls(monkeypatch, adapter) -> Counter[str]:
    """How often units and shared modules of an adapter run from now on."""
    runs: Counter[str] = Counter()

    def counted(owner, attribute, key):
        original = getattr(owner, attribute)

        def call(*args):
            runs[key] += 1
            return original(*args)

        monkeypatch.setattr(owner, attribute, call)

    for place, units in adapter.units.items():
        for unit in units:
            counted(unit, "forward", place)
    for place, shared in adapter.shared.items():
        counted(shared, "compute", place)
    return runs


@pytest.mark.parametrize("method", ["lora", "double_seq_bn", "prefix_tuning"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["this-thread", "another-thread"])
def test_the_recompute_sees_the_composition_of_its_forward(method, elsewhere):
    """Layers are recomputed after the setup has ended, when another composition is active."""
    model, inputs = adapted("bert", UNITS[method]), batch("bert")
    add(model, "b", UNITS[method], seed=8)
    model.train_adapter("stack(a, b)")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def loss() -> torch.Tensor:
        model.zero_grad()
        with AdapterSetup("b"):
            return model(**inputs).last_hidden_state.pow(2).mean()

    def found() -> dict[str, torch.Tensor]:
        return {name: p.grad.clone() for name, p in model.trainable_parameters() if p.grad is not None}

    loss().backward()
    expected = found()
    assert expected and all(name.startswith("adapters.<b>") for name in expected)
    model.gradient_checkpointing_enable()
    recomputed = loss()
    model.active_adapters = "a"
    if elsewhere:
        thread = threading.Thread(target=recomputed.backward)
        thread.start()
        thread.join()
    else:
        recomputed.backward()
    assert found().keys() == expected.keys()
    assert max(gap(grad, expected[name]) for name, grad in found().items()) < 1e-10


def test_a_family_without_checkpointing_is_refused_by_name():
    model = adapted("mpnet", METHODS["lora"])
    with pytest.raises(UnsupportedError, match="mpnet"):
        model.gradient_checkpointing_enable()


# ---- copies


@pairs(archs=["bert", "gpt2", "bart"], turns=True, quick=["bart"])
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_equal_and_independent(arch, method, way):
    model, inputs = adapted(arch, METHODS[method]), batch(arch)
    expected = run(model, inputs)
    other = way(model)
    assert torch.equal(run(other, inputs), expected)
    randomise(other.adapters, 0.3, seed=20)
    changed = gap(run(other, inputs), expected)
    assert changed > 0.01 if METHODS[method].has_units else changed == 0
    add(other, "b", UNITS["lora"])  # hooks are made anew: none of the copied ones may stay
    other.delete_adapter("a")
    other.set_active_adapters("b")
    assert torch.equal(run(other, inputs), run(adapted(arch, UNITS["lora"]), inputs))
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize(
    "activation",
    [
        "linear",
        "gelu_new",
        "swish",
    ],
)
def test_every_activation_can_be_pickled(activation):
    model = adapted("bert", SeqBnConfig(reduction_factor=4, non_linearity=activation))
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), batch("bert")), run(model, batch("bert")))


# ---- precision


@pairs(*UNITS, archs=["bert", "llama"], turns=True, quick=["llama"])
@pytest.mark.parametrize("mode", ["bf16-base", "autocast"])
def test_a_float32_adapter_trains_on_low_precision(arch, method, mode):
    model, inputs = adapted(arch, UNITS[method], trained=False).float(), batch(arch, (7, 4, 6, 5))
    if mode == "bf16-base":
        model.base_model.to(torch.bfloat16)
    model.add_classification_head("a")
    model.train_adapter("a")
    model.eval()
    labels = torch.tensor([0, 1, 1, 0])
    optimiser = torch.optim.AdamW([parameter for _, parameter in model.trainable_parameters()], lr=1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            out = model(**inputs, labels=labels)
        out.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(out.loss.item())
    assert out.logits.dtype == out.loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for _, parameter in model.trainable_parameters())
    assert losses[-1] < 0.8 * losses[0]


@kept
def test_a_bf16_base_answers_in_bf16_near_float32(arch, method):
    model, inputs = adapted(arch, UNITS[method]), batch(arch)
    exact = run(model, inputs)
    model.base_model.to(torch.bfloat16)
    rough = run(model, inputs)
    assert rough.dtype == torch.bfloat16
    seen = visible(arch, inputs, exact)
    assert 0 < (rough.float() - exact)[seen].abs().mean() < 0.1 * exact[seen].abs().mean()


# ---- torch.compile


# A config of every method, and every way to a model's keys and values. Several adapters are a stack, in one graph: the
# model itself takes longer to compile than their units, and where a graph breaks torch names the line.
COMPILED = [
    ("bert", "prefix_tuning", "prefix-gated", "prompt_tuning"),
    ("bert", "lora-gated", "lora-o-words", "pissa", "dora", "vera", "dvora", "ia3", "mtl_lora"),
    ("bert", "seq_bn", "bn-norms", "bn-gated", "adapterplus", "compacter", "seq_bn_inv", "loreft"),
    ("bert", "unipelt"),
    ("llama", "dora", "seq_bn_inv", "prefix-gated", "prompt-after-bos", "loreft"),
    *((arch, "prefix_tuning") for arch in ("deberta", "deberta-v2", "gptj", "mpnet", "t5")),
    ("phi3", "lora-everywhere"),
]


@pytest.mark.parametrize("row", [COMPILED[0], *map(long, COMPILED[1:])], ids="-".join)
def test_a_compiled_model_has_one_graph_and_the_same_output(row):
    arch, *methods = row
    model, inputs = adapted(arch).float(), batch(arch)  # in eager mode a graph is the very calls that were traced
    for seed, method in enumerate(methods):
        add(model, method, UNITS[method], seed=2 + seed)
    model.set_active_adapters(Stack(*methods) if len(methods) > 1 else methods[0])
    expected = run(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert gap(run(compiled, inputs), expected) < 1e-10 * (1 + expected.abs().max())


@pytest.mark.parametrize("arch", ["bert", long("llama")])
def test_a_compiled_model_without_an_adapter_is_the_base_model(arch):
    model, inputs = adapted(arch, UNITS["lora"]), batch(arch)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert gap(run(compiled, inputs), run(model, inputs)) < 1e-10
    model.set_active_adapters(None)
    assert gap(run(compiled, inputs), bare(arch, inputs)) < 1e-10


def test_a_compiled_model_has_the_same_gradients():
    model, inputs = adapted("bert", UNITS["prefix_tuning"]), batch("bert")
    model.train_adapter("a")
    model.eval()
    expected = gradients(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(**inputs).last_hidden_state.pow(2).mean().backward()
    found = {name: parameter.grad / 2 for name, parameter in model.trainable_parameters()}  # added to the first
    assert max(gap(found[name], expected[name]) for name in expected) < 1e-10


@pytest.mark.long
def test_a_compiled_model_obeys_a_setup():
    model, inputs = adapted("bert", UNITS["lora"]), batch("bert")
    expected = run(model, inputs), bare("bert", inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    def check() -> None:
        for _ in range(3):  # until nothing is compiled anew
            assert gap(run(compiled, inputs), expected[0]) < 1e-10
        with AdapterSetup(None):
            assert gap(run(compiled, inputs), expected[1]) < 1e-10

    with ThreadPoolExecutor(1) as fresh:  # a thread that has never had a setup
        fresh.submit(check).result()
