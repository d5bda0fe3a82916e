"""Heads follow the composition: one a branch, with the labels and masks of its own rows. And the folders of it all."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as hf

from adaptrain.composition import Average, BatchSplit, Fuse, MultiTask, Parallel, Stack
from adaptrain.context import AdapterSetup
from adaptrain.errors import AdapterNameError, CheckpointError, CompositionError
from matrix import METHODS, adapted, add, batch, gap, randomise, run

LABELS = torch.tensor([1, 0, 1])


def branched(arch: str = "bert"):
    """Adapters a, b, c with heads of 2, 3 and 2 labels."""
    model = adapted(arch)
    for index, (name, method) in enumerate(zip("abc", ("seq_bn", "lora", "prefix_tuning"), strict=True)):
        add(model, name, METHODS[method], seed=60 + index)
        model.add_classification_head(name, num_labels=3 if name == "b" else 2)
        randomise(model.heads[f"<{name}>"], 0.3, 70 + index)
    return model, batch(arch, (7, 4, 6))


def alone(model, inputs, name: str, head: str | None = None, labels=LABELS):
    with AdapterSetup(name, head_setup=head):
        return model(**inputs, labels=labels)


@pytest.mark.parametrize("arch", ["bert", "llama", "bart"])
def test_parallel_has_a_head_a_branch(arch):
    """Last-token pooling reads the mask, which has to be that of the branch's own rows."""
    model, inputs = branched(arch)
    singles = [alone(model, inputs, name) for name in "abc"]
    model.set_active_adapters(Parallel("a", "b", "c"))
    assert model.active_head == ("a", "b", "c")
    outputs = model(**inputs, labels=LABELS)
    assert [output.logits.shape for output in outputs] == [(3, 2), (3, 3), (3, 2)]
    for found, expected in zip(outputs, singles, strict=True):
        assert gap(found.logits, expected.logits) < 1e-10 and gap(found.loss, expected.loss) < 2e-5
    assert gap(outputs.loss, sum(single.loss for single in singles)) < 1e-10
    assert outputs["b"] is outputs[1] and outputs.rows == ((0, 1, 2),) * 3
    own = [torch.tensor([0, 1, 1]), None, torch.tensor([1, 1, 1])]
    for labels in (own, {"a": own[0], "c": own[2]}):
        outputs = model(**inputs, labels=labels)
        assert outputs[1].loss is None
        assert gap(outputs["c"].loss, alone(model, inputs, "c", labels=own[2]).loss) < 1e-10
        assert gap(outputs.loss, outputs[0].loss + outputs[2].loss) < 1e-10


def test_each_share_of_the_rows_has_its_head():
    model, inputs = branched("llama")
    a, b = (alone(model, inputs, name) for name in "ab")
    for tree, rows, extra in [
        (BatchSplit("a", "b", sizes=[1, None]), ([0], [1, 2]), {}),
        (MultiTask("a", "b"), ([1], [0, 2]), {"task_ids": ["b", "a", "b"]}),
        (MultiTask("a", "b"), ([], [0, 1, 2]), {"task_ids": [1, 1, 1]}),
    ]:
        model.set_active_adapters(tree)
        outputs = model(**inputs, labels=LABELS, **extra)
        assert outputs.rows == tuple(map(tuple, rows)) and outputs.heads == ("a", "b")
        assert torch.allclose(outputs["a"].logits, a.logits[rows[0]], atol=2e-5)
        assert torch.allclose(outputs["b"].logits, b.logits[rows[1]], atol=2e-5)
        expected = torch.nn.functional.cross_entropy(b.logits[rows[1]], LABELS[rows[1]])
        assert gap(outputs["b"].loss, expected) < 1e-10
        assert (outputs["a"].loss is None) == (not rows[0]) and torch.isfinite(outputs.loss)


def test_one_head_over_all_branches_reads_all_rows():
    model, inputs = branched()
    model.set_active_adapters(Parallel("a", "b"))
    model.active_head = "b"
    outputs = model(**inputs, labels=LABELS)
    assert outputs.logits.shape == (6, 3)
    assert gap(outputs.logits[:3], alone(model, inputs, "a", "b").logits) < 1e-10
    assert gap(outputs.loss, (alone(model, inputs, "a", "b").loss + alone(model, inputs, "b").loss) / 2) < 1e-10


def test_a_setup_takes_the_heads_of_its_own_composition():
    model, inputs = branched()
    model.set_active_adapters("a")
    with AdapterSetup("b"):
        assert model(**inputs).logits.shape == (3, 3)
        with AdapterSetup(Parallel("a", "b")):
            assert len(model(**inputs)) == 2
            with AdapterSetup(Parallel("b", "c"), head_setup=["c", "a"]):
                assert model(**inputs).heads == ("c", "a")
        assert model(**inputs).logits.shape == (3, 3)
        with AdapterSetup(Average("a", "b")):  # no head bears its name: the active one
            assert model(**inputs).logits.shape == (3, 2)
    assert model(**inputs).logits.shape == (3, 2)
    with AdapterSetup("b", head_setup="nobody"), pytest.raises(AdapterNameError, match="nobody"):
        model(**inputs)


def test_setups_hold_in_a_pool_of_threads_and_under_gradient_checkpointing():
    model, inputs = branched()
    trees = ["a", "b", "stack(a, b)", "parallel(a, b)", "multitask(a, b)", None] * 4

    def logits(tree):
        with torch.no_grad(), AdapterSetup(tree):
            outputs = model(**inputs, task_ids=[1, 0, 1] if str(tree).startswith("multi") else None)
        return outputs.logits if isinstance(outputs.logits, tuple) else (outputs.logits,)

    expected = [logits(tree) for tree in trees]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(logits, trees), expected, strict=True):
            assert all(gap(x, y) < 1e-10 for x, y in zip(found, one, strict=True))

    def gradients(checkpointed: bool):
        model.train_adapter(MultiTask("a", Stack("b", "c")))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for head in model.heads.values():
            head.dropout = 0.0
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.active_head = None
        with AdapterSetup(MultiTask("a", Stack("b", "c"))):
            loss = model(**inputs, task_ids=[1, 0, 1], labels=LABELS).loss
        loss.backward()  # outside the setup
        return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters()}

    plain = gradients(False)
    for name, gradient in gradients(True).items():
        assert gap(gradient, plain[name]) < 1e-10, name


def test_training_a_composition_trains_its_adapters_and_its_heads():
    model, _ = branched()
    model.train_adapter(Parallel("a", Stack("c", "b")))
    trains = {name for name, _ in model.trainable_parameters()}
    assert {name.split(".")[1] for name in trains} == {"<a>", "<b>", "<c>"}
    assert not any(name.startswith("heads.<c>.") for name in trains)
    model.active_head = "a"
    model.train_adapter(Average("a", "b"))  # no head is called as the average: the one that is active trains
    assert {name.split(".")[1] for name, _ in model.trainable_parameters() if name.startswith("heads")} == {"<a>"}
    model.train_adapter(Parallel("a", "b"))
    model.set_active_adapters(None)
    assert model.active_head is None


def test_heads_that_do_not_match_are_refused_before_the_forward():
    model, inputs = branched()
    add(model, "d", METHODS["ia3"])
    model.set_active_adapters(Parallel("a", "d"))
    with pytest.raises(CompositionError, match=r"parallel\(a, d\): there is a head for a, and none for d"):
        model(**inputs)
    model.set_active_adapters(Parallel("a", "b"))
    model.active_head = ["a", "b", "c"]
    with pytest.raises(CompositionError, match=r"3 heads are active \(a, b, c\), and parallel\(a, b\) has 2 branches"):
        model(**inputs)
    model.active_head = ["a", "b"]
    with pytest.raises(CompositionError, match="labels for 3 heads, and 2 are active"):
        model(**inputs, labels=[LABELS] * 3)
    with pytest.raises(CompositionError, match="'x'.*a, b"):
        model(**inputs, labels={"x": LABELS})
    model.delete_head("b")
    assert model.active_head is None


# ---- folders


def composed(tree):
    model, inputs = branched()
    model.add_adapter_fusion(["a"], "dynamic", name="f/1")
    randomise(model.get_fusion("f/1"), 0.2, 80)
    model.add_classification_head("f/1", num_labels=4)
    model.set_active_adapters(tree)
    return model, inputs


@pytest.mark.parametrize(
    "tree",
    [
        "b",
        Stack("b", "a"),
        Stack("b", Fuse("a", name="f/1")),
        Parallel("a", Stack("c", "b")),
        Average("a", "b", weights=[1, 3]),
        BatchSplit("a", "b", sizes=[1, None]),
    ],
    ids=str,
)
def test_a_composition_is_one_folder(tree, tmp_path):
    model, inputs = composed(tree)
    expected, head = model(**inputs, labels=LABELS), model.active_head
    model.save_composition(tmp_path)
    assert json.loads((tmp_path / "composition.json").read_text())["composition"] == str(tree)
    fresh = adapted("bert")
    assert fresh.load_composition(tmp_path) == tree == fresh.active_adapters
    assert fresh.active_head == head
    found = fresh(**inputs, labels=LABELS)
    assert torch.equal(found.loss, expected.loss)
    assert not set(fresh.adapter_names()) - set(tree.names if not isinstance(tree, str) else [tree])
    bare = adapted("bert")
    bare.load_adapter_setup(tmp_path, with_head=False, set_active=False)
    assert bare.active_adapters is None and not bare.heads


def test_the_base_models_own_head_is_in_the_folder(tmp_path):
    model = adapted("bert", auto=hf.AutoModelForSequenceClassification)
    for name in "ab":
        add(model, name, METHODS["lora"], seed=ord(name))
    model.set_active_adapters("stack(a, b)")
    with torch.no_grad():
        model.base_model.classifier.weight.add_(1.0)
    expected = run(model, batch("bert"))
    model.save_composition(tmp_path)
    fresh = adapted("bert", auto=hf.AutoModelForSequenceClassification)
    fresh.load_composition(tmp_path)
    assert torch.equal(run(fresh, batch("bert")), expected)


def test_what_is_wrong_with_a_folder_is_told_and_nothing_is_changed(tmp_path):
    model, _ = composed(Stack("b", Fuse("a", name="f/1")))
    model.save_composition(tmp_path)
    file = tmp_path / "composition.json"
    values = json.loads(file.read_text())
    fresh = adapted("bert")

    def refused(message: str, **changes) -> None:
        file.write_text(json.dumps(values | changes))
        with pytest.raises(CheckpointError, match=message):
            fresh.load_composition(tmp_path)
        assert fresh.adapter_names() == fresh.fusion_names() == [] and not fresh.heads

    refused("format 'x'", format="x")
    refused("'z'", composition="stack(z, b)")
    refused("composition", composition="stack(")
    refused("is not inside the folder", adapters=values["adapters"] | {"a": "../elsewhere"})
    refused("no adapter|There is no|is not an adapter folder", adapters=values["adapters"] | {"a": "adapters/z"})
    refused("'fusions' is not a mapping", fusions=[])
    refused("active_heads is 'z'", active_heads="z")
    refused("does not say which base model", base_model=None)
    refused("hidden_size 7", base_model=values["base_model"] | {"hidden_size": 7})
    file.unlink()
    with pytest.raises(CheckpointError, match=r"has no composition\.json"):
        fresh.load_composition(tmp_path)
    with pytest.raises(CompositionError, match="No composition is active"):
        fresh.save_composition(tmp_path / "x")
