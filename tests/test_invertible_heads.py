"""Invertible adapters: undone before every kind of LM head, whoever made it."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from adaptrain.methods import BnConfig, DoubleSeqBnInvConfig, SeqBnInvConfig
from matrix import adapted, add, base, batch, gap, run

MASKED, CAUSAL, SEQ2SEQ = hf.AutoModelForMaskedLM, hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM
HEADS = [
    *((arch, MASKED) for arch in ("bert", "electra", "mpnet", "albert", "distilbert", "deberta", "deberta-v2")),
    *((arch, MASKED) for arch in ("xmod", "modernbert")),
    *((arch, CAUSAL) for arch in ("gpt2", "gptj", "llama", "gemma2", "olmo2", "phi3")),
    *((arch, SEQ2SEQ) for arch in ("bart", "mbart", "marian", "t5", "bert-bert")),
]
ONLY = BnConfig(
    mh_adapter=False,
    output_adapter=False,
    reduction_factor=4,
    non_linearity="relu",
    inv_adapter="nice",
    inv_adapter_reduction_factor=2,
)

heads = pytest.mark.parametrize(("arch", "auto"), HEADS, ids=[arch for arch, _ in HEADS])


def unit(model, name: str = "a"):
    (found,) = [
        unit
        for site, (unit,) in model.get_adapter(name).units.items()
        if model.sites.by_name[site].point.kind == "embedding"
    ]
    return found


@heads
@pytest.mark.parametrize("kind", ["nice", "glow"])
def test_the_head_reads_what_the_inverse_makes_of_its_input(arch, auto, kind):
    """By hand: embeddings through f, all layers as they are, f⁻¹ before the output embedding."""
    model, inputs = adapted(arch, ONLY.replace(inv_adapter=kind), auto=auto), batch(arch)
    plain = base(arch, auto=auto)
    found, reached = run(model, inputs), unit(model)
    site = next(site for site in model.sites.by_name.values() if site.point.kind == "embedding")
    path = next(name for name, module in model.base_model.named_modules() if module is site.output)
    from adaptrain.state import EmbeddingState

    plain.get_submodule(path).register_forward_hook(lambda m, args, out: reached(EmbeddingState(out)).h)
    plain.get_output_embeddings().register_forward_pre_hook(
        lambda m, args: (reached.inverse(EmbeddingState(args[0])).h,)
    )
    assert gap(found, run(plain, inputs)) < 1e-10
    assert gap(found, run(base(arch, auto=auto), inputs)) > 0.05


@heads
def test_files_of_static_heads_run_without_the_inverse(arch, auto):
    inputs = batch(arch)
    with_it = adapted(arch, ONLY, auto=auto)
    without = adapted(arch, ONLY.replace(inv_adapter_at_head=False), auto=auto)
    assert gap(run(with_it, inputs), run(without, inputs)) > 0.01
    head = without.base_model.get_output_embeddings()
    reads: list[torch.Tensor] = []
    head.register_forward_hook(lambda m, args, out: reads.append(args[0]))
    hidden: list[torch.Tensor] = []
    if auto is CAUSAL:
        without.base_model.base_model.register_forward_hook(lambda m, args, out: hidden.append(out.last_hidden_state))
        run(without, inputs)
        assert torch.equal(reads[0], hidden[0])


@heads
def test_a_stack_is_undone_in_reverse_order(arch, auto):
    """f_b f_a on the way in, f_a⁻¹ f_b⁻¹ on the way out: what goes in and out of both at once is what it was."""
    model, inputs = adapted(arch, auto=auto), batch(arch)
    add(model, "a", ONLY, seed=4)
    add(model, "b", ONLY.replace(inv_adapter="glow"), seed=5)
    model.set_active_adapters("stack(a, b)")
    order: list[str] = []
    for name in "ab":
        one = unit(model, name)
        forward, inverse = one.forward, one.inverse
        one.forward = lambda state, name=name, call=forward: order.append(name) or call(state)
        one.inverse = lambda state, name=name, call=inverse: order.append(f"{name}⁻¹") or call(state)
    run(model, inputs)
    assert order == ["a", "b", "b⁻¹", "a⁻¹"]


@pytest.mark.parametrize("config", [SeqBnInvConfig(reduction_factor=4), DoubleSeqBnInvConfig(reduction_factor=4)])
def test_the_presets_have_one_at_the_embeddings(config):
    model = adapted("bart", config)
    places = [name for name in model.get_adapter("a").units if "embeddings" in name]
    assert places == ["encoder.embeddings.output"]  # the decoder has none


def test_a_language_and_a_task():
    """MAD-X: the task adapter is stacked on the language's, whose inverse still runs before the head."""
    model, inputs = adapted("bert", auto=MASKED), batch("bert")
    add(model, "en", SeqBnInvConfig(reduction_factor=4), seed=1)
    add(model, "de", SeqBnInvConfig(reduction_factor=4), seed=2)
    add(model, "task", DoubleSeqBnInvConfig(reduction_factor=4, inv_adapter=None, inv_adapter_reduction_factor=None))
    model.set_active_adapters("stack(en, task)")
    english = run(model, inputs)
    model.set_active_adapters("stack(de, task)")
    assert gap(run(model, inputs), english) > 0.05
    model.set_active_adapters("stack(en, task)")
    assert torch.equal(run(model, inputs), english)
