"""The forward in force, and `AdapterSetup`: nested, per thread, gone after an error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adaptrain.composition import Stack
from adaptrain.context import AdapterSetup, current_forward, current_setup
from adaptrain.errors import AdapterNameError, CompositionError
from matrix import METHODS, adapted, add, bare, base, batch, run


@pytest.fixture
def model():
    """BERT with the adapters a, b and c, of three methods; none is active."""
    model = adapted("bert")
    for seed, (name, method) in enumerate({"a": "lora", "b": "double_seq_bn", "c": "prefix_tuning"}.items()):
        add(model, name, METHODS[method], seed=seed)
    return model


def under(model, composition) -> torch.Tensor:
    """The output under a composition that is set on the model, for comparison."""
    before = model.active_adapters
    model.set_active_adapters(composition)
    out = run(model, batch("bert"))
    model.set_active_adapters(before)
    return out


@pytest.mark.parametrize("composition", [None, "a", "b", "c", Stack("a", "b"), "stack(b, a, c)"], ids=str)
def test_a_setup_is_as_good_as_activation(model, composition):
    expected = under(model, composition)
    for active in (None, "b", "c"):
        model.set_active_adapters(active)
        with AdapterSetup(composition):
            assert torch.equal(run(model, batch("bert")), expected)
        assert model.active_adapters == active


def test_setups_nest_and_end(model):
    model.set_active_adapters("a")
    assert current_setup() is None
    with AdapterSetup("b") as outer:
        assert current_setup() is outer
        with AdapterSetup(None):
            assert torch.equal(run(model, batch("bert")), bare("bert", batch("bert")))
            with AdapterSetup("c"):
                assert torch.equal(run(model, batch("bert")), under(model, "c"))
        assert torch.equal(run(model, batch("bert")), under(model, "b"))
    assert current_setup() is None
    assert torch.equal(run(model, batch("bert")), under(model, "a"))


def test_one_setup_can_be_entered_twice(model):
    setup = AdapterSetup("b")
    for _ in range(2):
        with setup, AdapterSetup("a"), setup:
            assert torch.equal(run(model, batch("bert")), under(model, "b"))
    assert current_setup() is None


def test_an_unknown_adapter_raises_at_the_forward_and_names_it(model):
    with AdapterSetup("stack(a, bb)"):
        with pytest.raises(CompositionError, match=r"stack\(a, bb\).*'bb', did you mean 'b'\?.*a, b, c"):
            run(model, batch("bert"))
        assert current_forward() is None
    run(model, batch("bert"))


def test_an_unreadable_composition_raises_at_once():
    with pytest.raises(CompositionError, match="no block 'stak'"):
        AdapterSetup("stak(a)")
    assert current_setup() is None


def test_a_setup_takes_every_name_that_an_adapter_may_have(model):
    name = "lora v2, é.1 %"
    add(model, name, METHODS["lora"])
    with AdapterSetup(name):
        run(model, batch("bert"))
    with pytest.raises(AdapterNameError, match="parentheses"):
        add(model, "lora (v2)", METHODS["lora"])


def test_an_error_inside_a_setup_ends_it(model):
    with pytest.raises(RuntimeError, match="mine"), AdapterSetup("a"):
        raise RuntimeError("mine")
    assert current_setup() is None


def test_a_setup_chooses_the_head(model):
    model.add_classification_head("one", num_labels=2)
    model.add_classification_head("two", num_labels=5)
    inputs = batch("bert")
    assert model.active_head == "two"
    with AdapterSetup("a", head_setup="one"):
        assert run(model, inputs).shape == (2, 2)
        with AdapterSetup("b"):
            assert run(model, inputs).shape == (2, 5)
    with AdapterSetup("a"):
        assert run(model, inputs).shape == (2, 5)
    assert model.active_head == "two"
    with (
        AdapterSetup("a", head_setup="tow"),
        pytest.raises(AdapterNameError, match="no head 'tow', did you mean 'two'"),
    ):
        run(model, inputs)


def test_two_threads_have_their_own_setups(model):
    """Both are inside their forward at the same time: each waits for the other in the middle of the model."""
    inputs = batch("bert")
    expected = {name: under(model, name) for name in ("a", "b", None)}
    meet = threading.Barrier(3, timeout=30)

    def wait(*_) -> None:
        meet.wait()

    model.base_model.encoder.layer[0].register_forward_hook(wait)
    model.set_active_adapters(None)

    def work(name: str | None) -> torch.Tensor:
        if name is None:
            return run(model, inputs)  # no setup at all: what is active on the model
        with AdapterSetup(name):
            return run(model, inputs)

    with ThreadPoolExecutor(3) as pool:
        found = {name: pool.submit(work, name) for name in expected}
    for name, future in found.items():
        assert torch.equal(future.result(), expected[name])
    assert current_forward() is None


def test_a_setup_does_not_reach_into_other_threads(model):
    model.set_active_adapters("a")
    expected = under(model, "a")
    with AdapterSetup("b"), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(run, model, batch("bert")).result(), expected)


# ---- the forward in force


def test_there_is_a_forward_only_inside_the_model(model):
    seen = []
    model.set_active_adapters("c")
    model.base_model.encoder.layer[1].register_forward_hook(lambda *_: seen.append(current_forward()))
    run(model, batch("bert"))
    assert current_forward() is None
    assert seen[0].owner is model.sites
    assert len(seen[0].once) == 1  # the prefix, computed before the first layer
    assert seen[0].taken == {}


def test_what_was_taken_is_used_up():
    """MPNet's queries, keys and values are taken as they pass by; none may stay for the next layer."""
    model, seen = adapted("mpnet", METHODS["prefix_tuning"]), []
    model.base_model.encoder.layer[1].register_forward_hook(lambda *_: seen.append(dict(current_forward().taken)))
    run(model, batch("mpnet"))
    assert seen == [{}]


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
@pytest.mark.parametrize("place", ["embeddings", "encoder.layer.1", "encoder.layer.0.attention.output.dense"])
def test_an_error_inside_the_model_leaves_no_forward_behind(model, place, error):
    expected = under(model, "b")
    model.set_active_adapters("a")

    def fail(*_):
        raise error("broken")

    hook = model.base_model.get_submodule(place).register_forward_hook(fail)
    with pytest.raises(error, match="broken"):
        run(model, batch("bert"))
    assert current_forward() is None
    hook.remove()
    model.set_active_adapters("b")
    assert torch.equal(run(model, batch("bert")), expected)


def test_an_interrupted_forward_is_not_continued_by_the_next(model):
    """Ctrl-C in a notebook."""
    expected = under(model, None)
    model.set_active_adapters("a")

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.base_model.encoder.layer[1].register_forward_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(model, batch("bert"))
        hook.remove()
        model.set_active_adapters(None)
        assert torch.equal(run(model, batch("bert")), expected)
    finally:
        from adaptrain import context

        context._local.forward = None  # for the tests after this one


def test_an_interrupted_forward_is_not_continued_by_the_encoder_alone():
    """Ctrl-C in a training step, then `generate`, which calls the encoder first."""
    model, inputs = adapted("bart", METHODS["lora"]), batch("bart")

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.base_model.decoder.layers[0].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, inputs)
    hook.remove()
    model.set_active_adapters(None)
    source = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    try:
        assert torch.equal(run(model.base_model.encoder, source), run(base("bart").encoder, source))
    finally:
        from adaptrain import context

        context._local.forward = None  # for the tests after this one


def test_a_model_inside_another_ones_forward_has_its_own(model):
    inner = adapted("gpt2", METHODS["par_bn"])
    expected_inner, expected = run(inner, batch("gpt2")), under(model, "a")
    found = []
    model.set_active_adapters("a")
    model.base_model.encoder.layer[0].register_forward_hook(lambda *_: found.append(run(inner, batch("gpt2"))))
    assert torch.equal(run(model, batch("bert")), expected)
    assert torch.equal(found[0], expected_inner)


def test_an_encoder_called_by_itself_is_adapted():
    """As `generate` does with an encoder-decoder."""
    model, inputs = adapted("bart", METHODS["lora"]), batch("bart")
    with torch.no_grad():
        whole = model(**inputs).encoder_last_hidden_state
        own = model.base_model.encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        plain = base("bart").encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    assert torch.equal(own, whole)
    assert not torch.allclose(own, plain)


# ---- which positions are tokens


@pytest.mark.parametrize("form", ["two", "bool", "three", "four", "additive", "by-kind"])
def test_tokens_are_read_off_every_form_of_mask(form):
    from adaptrain.sites.given import visible_positions

    seen = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    causal = torch.ones(4, 4).tril().bool()[None, None] & seen.bool()[:, None, None]
    masks = {
        "two": seen,
        "bool": seen.bool(),
        "three": causal[:, 0],
        "four": causal,
        "additive": torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min),
        "by-kind": {"full_attention": causal, "sliding_attention": causal & False},
    }
    found = visible_positions(masks[form])
    assert found is not None
    assert torch.equal(found, seen.bool())
    assert visible_positions(None) is None
