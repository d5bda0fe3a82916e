"""AdapterFusion: the formula in float64, its places, training, regularisation, folders."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import adaptrain
from adaptrain.composition import Average, Fuse, Parallel, Stack
from adaptrain.config.schema import TrainerConfig
from adaptrain.context import AdapterSetup
from adaptrain.errors import AdapterNameError, CheckpointError, CompositionError, ConfigError, UnsupportedError
from adaptrain.methods import (
    AdapterFusionConfig,
    BnConfig,
    ParBnConfig,
    SeqBnConfig,
    StaticAdapterFusionConfig,
    config_from_string,
)
from adaptrain.methods.fusion import Fusion
from adaptrain.training.state import make_optimizer
from matrix import METHODS, adapted, add, batch, gap, randomise, run

ARCHS = ["bert", "gpt2", "llama", "bart", "mpnet", "vit", "modernbert", "whisper"]
FUSED = ["seq_bn", "double_seq_bn", "par_bn", "bn-norms", "bn-gated", "adapterplus", "compacter"]


def fused(arch: str = "bert", *methods: str, config=None, name: str | None = None, **changes):
    """A model with adapters a, b, … and a trained-like fusion over them."""
    model = adapted(arch)
    for index, (each, method) in enumerate(zip("abc", methods or ("seq_bn", "seq_bn"), strict=False)):
        add(model, each, METHODS[method], seed=40 + index)
    names = list("abc"[: len(methods) or 2])
    model.add_adapter_fusion(names, AdapterFusionConfig(**changes) if config is None else config, name=name)
    randomise(model.get_fusion(name or ",".join(names)), 0.2, 50)
    return model


def expected(unit: Fusion, offers) -> torch.Tensor:
    """The formula, adapter by adapter."""
    config, final = unit.config, offers[-1]
    x = final.raw if config.query_before_ln else final.query
    query = x if unit.query is None else F.linear(x, unit.query.weight, unit.query.bias)
    keys = [o.added if unit.key is None else F.linear(o.added, unit.key.weight, unit.key.bias) for o in offers]
    scores = torch.stack([(query * key).sum(-1) for key in keys], -1)
    p = scores.softmax(-1)
    values = [offer.added + (final.rest if config.residual_before else 0) for offer in offers]
    values = [value if unit.value is None else F.linear(value, unit.value.weight) for value in values]
    out = sum(p[..., i : i + 1] * value for i, value in enumerate(values))
    return out if config.residual_before else out + final.rest


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value": False, "regularization": False, "value_initialized": False},
        {"query": False},
        {"key": False},
        {"query_before_ln": True, "residual_before": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", FUSED)
def test_a_fusion_is_its_formula(method, changes, monkeypatch):
    model = fused("bert", method, "seq_bn", method, **changes).double()
    seen = []
    forward = Fusion.forward

    def checked(unit, offers):
        finished = []
        offers[-1] = offers[-1]._replace(finish=lambda h, finish=offers[-1].finish: finished.append(h) or finish(h))
        out = forward(unit, offers)
        seen.append(gap(finished[0], expected(unit, offers)))
        return out

    monkeypatch.setattr(Fusion, "forward", checked)
    model.set_active_adapters(Fuse("a", "b", "c"))
    run(model, batch("bert"))
    assert len(seen) == len(model.get_fusion("a,b,c").units) and max(seen) < 1e-12


@pytest.mark.parametrize("arch", ARCHS)
def test_attentions_sum_to_one_at_every_place(arch):
    model = fused(arch, "double_seq_bn", "seq_bn", "par_bn")
    model.set_active_adapters(Fuse("a", "b", "c"))
    outputs = model(**batch(arch), output_adapter_fusion_attentions=True)
    found = outputs.adapter_fusion_attentions["a,b,c"]
    places = [site for site in model.get_adapter("a").units if not site.endswith("activation")]
    assert sum(len(layer) for layer in found.values()) == len(places)
    for layer in found.values():
        for place, p in layer.items():
            assert p.shape[-1] == (3 if place == "output_adapter" else 1)  # two of them are at the MLP alone
            assert abs(p.sum(-1) - 1).max() < 1e-5
    assert found[0]["output_adapter"].std() > 1e-3


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("method", ["seq_bn", "par_bn", "adapterplus"])
def test_a_fusion_of_one_adapter_with_itself_is_the_adapter(arch, method):
    """Whatever the attention: its values are equal. Static, so that no matrix changes them."""
    model = fused(arch, method, config="static")
    model.set_active_adapters("a")
    alone = run(model, batch(arch))
    for tree in (Fuse("a", name="a"), Fuse("a", "a", name="a")):
        model.set_active_adapters(tree)
        assert gap(run(model, batch(arch)), alone) < 1e-10 * (1 + alone.abs().max())


def test_a_child_may_be_a_stack_and_a_fusion_may_stand_in_one():
    model = fused("bert", "seq_bn", "seq_bn", "par_bn")
    model.add_adapter_fusion(["a", "b"], "static")
    randomise(model.get_fusion("a,b"), 0.2, 3)
    inputs = batch("bert")
    model.set_active_adapters("stack(c, fuse(a, b))")
    inside = run(model, inputs)
    model.set_active_adapters("fuse(a, stack(c, b), name='a,b')")
    child = run(model, inputs)
    model.set_active_adapters("fuse(a, b)")
    assert gap(inside, run(model, inputs)) > 1e-3 and gap(child, run(model, inputs)) > 1e-3
    model.set_active_adapters("parallel(fuse(a, b), stack(c, fuse(a, b)))")
    both = run(model, inputs)
    with AdapterSetup("fuse(a, b)"):
        assert gap(both[:2], run(model, inputs)) < 1e-10
    assert gap(both[2:], inside) < 1e-10


def test_gradients_reach_the_fusion_and_its_head_alone():
    model = fused("bert", "seq_bn", "double_seq_bn")
    model.add_classification_head("both")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.train_adapter_fusion(Fuse("a", "b"))
    trains = {name for name, _ in model.trainable_parameters()}
    assert trains == {name for name in before if name.startswith(("fusions.<a,b>.", "heads.<both>."))}
    model(**batch("bert"), labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for _, parameter in model.trainable_parameters())
    model.train_adapter_fusion(["a", "b"], unfreeze_adapters=True)
    trains = {name for name, _ in model.trainable_parameters()}
    assert any(name.startswith("adapters.<a>.") for name in trains)
    assert not any(name.startswith("base_model.") for name in trains)
    model.train_adapter("fuse(a, b)")
    assert not any(name.startswith("fusions.") for name, _ in model.trainable_parameters())


def test_the_regulariser_is_in_the_loss_of_its_own_step():
    model = fused("bert", "seq_bn", "seq_bn", dropout_prob=0.0)
    model.add_classification_head("f", num_labels=2, dropout=0.0)
    model.train_adapter_fusion(Fuse("a", "b"))
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = batch("bert") | {"labels": torch.tensor([0, 1])}
    values = [unit[0].value.weight for unit in model.get_fusion("a,b").units.values()]
    penalty = sum(0.01 * (torch.eye(len(value)) - value).pow(2).sum() for value in values)
    with_penalty = model(**inputs).loss
    model.eval()
    assert gap(with_penalty - model(**inputs).loss, penalty) < 1e-10 * penalty
    assert gap(model.get_fusion_regularization_loss(), penalty) < 1e-10
    model.train()
    gradient = torch.autograd.grad(with_penalty, values[0])[0]
    model.eval()
    plain = torch.autograd.grad(model(**inputs).loss, values[0])[0]
    assert gap(gradient - plain, 0.02 * (values[0] - torch.eye(len(values[0])))) < 1e-10
    static = fused("bert", config="static")
    assert static.get_fusion_regularization_loss("fuse(a, b)") is None


def test_the_temperature_falls_in_training_only_and_is_kept(tmp_path):
    model = fused("bert", temperature=True)
    model.set_active_adapters(Fuse("a", "b"))
    temperature = model.get_fusion("a,b").shared["temperature.fusion"]
    temperature.T.fill_(2.0)
    cold = run(model, batch("bert"))
    assert float(temperature.T) == 2.0
    model.train()
    model.gradient_checkpointing_enable()
    model.train_adapter_fusion("fuse(a, b)")
    model(**batch("bert")).last_hidden_state.sum().backward()
    assert float(temperature.T) == pytest.approx(1.95)  # once a forward, however many layers, recomputed or not
    for _ in range(30):
        model(**batch("bert"))
    assert float(temperature.T) == 1.0
    model.eval()
    assert gap(run(model, batch("bert")), cold) > 1e-4
    assert "fusions.<a,b>.tree.temperature.fusion.T" in model.trainable_state()
    model.save_adapter_fusion(tmp_path, "a,b")
    model.load_adapter_fusion(tmp_path, load_as="again")
    assert float(model.get_fusion("again").shared["temperature.fusion"].T) == 1.0


def test_a_fresh_dynamic_fusion_begins_at_the_identity():
    model = adapted("bert")
    for name in "ab":
        add(model, name, METHODS["seq_bn"], seed=ord(name))
    model.add_adapter_fusion("fuse(a, b)", set_active=True)
    assert model.active_adapters == Fuse("a", "b", name="a,b")
    (unit,) = model.get_fusion("a,b").units["encoder.0.mlp"]
    expected = torch.full_like(unit.value.weight, 1e-6).fill_diagonal_(1.0)
    assert gap(unit.value.weight, expected) < 1e-10
    assert abs(unit.query.weight.detach().std() - 0.02) < 2e-3 and not unit.key.bias.any()


def test_the_value_matrix_does_not_decay():
    model = fused("bert")
    model.train_adapter_fusion("fuse(a, b)")
    optimizer = make_optimizer(model.trainable_parameters(), TrainerConfig(weight_decay=0.1))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    (unit,) = model.get_fusion("a,b").units["encoder.0.mlp"]
    assert id(unit.value.weight) not in decayed and id(unit.key.weight) in decayed


def test_a_fusion_is_saved_and_loaded(tmp_path):
    model = fused("bert", "seq_bn", "double_seq_bn", name="both")
    model.set_active_adapters(Fuse("a", "b", name="both"))
    inputs = batch("bert")
    before = run(model, inputs)
    model.save_adapter_fusion(tmp_path / "f", "both")
    model.set_active_adapters(None)
    model.delete_adapter_fusion("both")
    assert model.load_adapter_fusion(tmp_path / "f") == "both"
    model.set_active_adapters("fuse(a, b, name='both')")
    assert torch.equal(run(model, inputs), before)
    model.load_adapter_fusion(tmp_path / "f", load_as="a,b", set_active=True)
    assert torch.equal(run(model, inputs), before)
    other = adapted("gpt2")
    with pytest.raises(CheckpointError, match="model_type bert"):
        other.load_adapter_fusion(tmp_path / "f")
    (tmp_path / "f" / "fusion.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"fusion\.safetensors"):
        model.load_adapter_fusion(tmp_path / "f")
    with pytest.raises(CheckpointError, match=r"has no fusion_config\.json"):
        model.load_adapter_fusion(tmp_path)


def test_configs():
    assert StaticAdapterFusionConfig() == AdapterFusionConfig(
        value=False, regularization=False, value_initialized=False
    )
    assert adaptrain.DynamicAdapterFusionConfig is AdapterFusionConfig
    assert AdapterFusionConfig.from_dict(StaticAdapterFusionConfig().to_dict()) == StaticAdapterFusionConfig()
    for changes, message in [
        ({"dropout_prob": 1.0}, r"dropout_prob is 1\.0"),
        ({"value": False}, "regularization is for a value matrix"),
        ({"sublayers": ()}, "sublayers is empty"),
        ({"sublayers": ("mpl",)}, "sublayers is"),
    ]:
        with pytest.raises(ConfigError, match=message):
            AdapterFusionConfig(**changes)
    with pytest.raises(ConfigError, match="'quary'.*query"):
        AdapterFusionConfig.from_dict({"quary": True})
    with pytest.raises(ConfigError, match="no preset 'fusion'"):
        config_from_string("fusion")  # it is no adapter method


def test_places_are_those_of_the_adapters():
    model = fused("bert", "seq_bn", "double_seq_bn")
    units = model.get_fusion("a,b").units
    assert {site.rpartition(".")[2] for site in units} == {"attention", "mlp"}
    model = fused("bert", "seq_bn", "seq_bn")
    assert {site.rpartition(".")[2] for site in model.get_fusion("a,b").units} == {"mlp"}
    model = adapted("bert")
    for name in "ab":
        add(model, name, SeqBnConfig(reduction_factor=4, leave_out=(0,)))
    model.add_adapter_fusion(["a", "b"])
    assert list(model.get_fusion("a,b").units) == ["encoder.1.mlp"]


# ---- what is refused


def test_what_cannot_be_fused_is_refused():
    model = fused("bert", "seq_bn", "seq_bn")
    add(model, "l", METHODS["lora"])
    add(model, "i", METHODS["seq_bn_inv"])
    add(model, "p", METHODS["mam"])
    with pytest.raises(UnsupportedError, match=r"'l' \(lora\) cannot be fused"):
        model.add_adapter_fusion(["a", "l"])
    with pytest.raises(AdapterNameError, match="nobody"):
        model.add_adapter_fusion(["a", "nobody"])
    with pytest.raises(AdapterNameError, match="a fusion 'a,b' already"):
        model.add_adapter_fusion(["a", "b"])
    with pytest.raises(CompositionError, match="no fusion; give a list"):
        model.add_adapter_fusion("stack(a, b)")
    with pytest.raises(ConfigError, match="'dynamo'.*dynamic"):
        model.add_adapter_fusion(["b", "a"], "dynamo")
    with pytest.raises(CompositionError, match=r"fuse\(b, a\): .*fusion 'b,a'.*a,b.*add_adapter_fusion"):
        model.set_active_adapters(Fuse("b", "a"))
    for tree, reason in [
        (Fuse("a", Average("a", "b"), name="a,b"), r"average\(a, b\) is neither an adapter nor a stack"),
        (Fuse("a", Stack("a", Parallel("a", "b")), name="a,b"), "neither an adapter nor a stack that ends in one"),
        (Fuse("a", "l", name="a,b"), "puts together what bottlenecks add"),
        (Fuse("a", "p", name="a,b"), "puts together what bottlenecks add"),
        (Fuse("a", "i", name="a,b"), "puts together what bottlenecks add"),
    ]:
        with pytest.raises(UnsupportedError, match=rf"^Fuse over .*on bert cannot be activated: .*{reason}"):
            model.set_active_adapters(tree)
    add(model, "d", METHODS["double_seq_bn"])
    with pytest.raises(UnsupportedError, match=r"the fusion 'a,b' has no layer there \(encoder\.0\.attention\)"):
        model.set_active_adapters(Fuse("a", "d", name="a,b"))
    assert model.active_adapters is None


def test_an_active_fusion_and_its_members_cannot_be_deleted():
    model = fused("bert")
    model.set_active_adapters("fuse(a, b)")
    with pytest.raises(AdapterNameError, match=r"'a' is part of the active fuse\(a, b\)"):
        model.delete_adapter("a")
    with pytest.raises(AdapterNameError, match="part of the active"):
        model.delete_adapter_fusion("a,b")
    model.set_active_adapters("a")
    model.delete_adapter_fusion(["a", "b"])
    assert model.fusion_names() == []
    with pytest.raises(AdapterNameError, match="fusion"):
        model.delete_adapter_fusion("a,b")
    with pytest.raises(CompositionError, match="no fusion to train"):
        model.train_adapter_fusion("a")


def test_parallel_bottlenecks_add_the_residual_once():
    """c + h, which the model adds r to; the reference adds r twice."""
    model = adapted("bert")
    add(model, "a", ParBnConfig(reduction_factor=4, scaling=1.0), seed=4)
    model.add_adapter_fusion(["a"], "static", name="f")
    model.set_active_adapters("a")
    alone = run(model, batch("bert"))
    model.set_active_adapters(Fuse("a", name="f"))
    assert gap(run(model, batch("bert")), alone) < 1e-10


def test_a_norm_around_the_sum_acts_on_the_fused_sum():
    config = BnConfig(
        mh_adapter=False, output_adapter=True, reduction_factor=4, non_linearity="relu", ln_after=True,
        adapter_residual_before_ln=True,
    )  # fmt: skip
    model = adapted("bert")
    for name, seed in zip("ab", itertools.count(), strict=False):
        add(model, name, config, seed=seed)
    model.add_adapter_fusion(["a", "b"])
    model.set_active_adapters("fuse(a, b)")
    sums = []
    model.get_adapter("b").units["encoder.0.mlp"][0].norm_after.register_forward_hook(lambda *_: sums.append(1))
    run(model, batch("bert"))
    assert torch.isfinite(run(model, batch("bert"))).all()
