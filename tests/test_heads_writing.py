"""Heads that write: what they say and generate is what the model's own output embedding would."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import adaptrain
from adaptrain.errors import UnsupportedError
from matrix import ARCHITECTURES, METHODS, adapted, add, batch, gap, randomise, run

WRITERS = [
    arch for arch, row in ARCHITECTURES.items() if row.decoder or (row.encoder_decoder and row.auto is hf.AutoModel)
]


def named_and_own(arch):
    """The same base twice: with a named head that writes, `a`, and under a model with a tied output embedding."""
    row = ARCHITECTURES[arch]
    model, config = adapted(arch), row.config()
    config.tie_word_embeddings = True
    kind = hf.AutoModelForCausalLM if row.decoder else hf.AutoModelForSeq2SeqLM
    auto = hf.AutoModelForSpeechSeq2Seq if arch == "whisper" else kind
    lm = auto.from_config(config, attn_implementation=row.attention[0])
    lm.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    lm.tie_weights()
    lm = adaptrain.init(lm.double().eval())
    (model.add_causal_lm_head if row.decoder else model.add_seq2seq_lm_head)("a")
    return model, lm


# ---- the output embedding


@pytest.mark.parametrize("arch", WRITERS)
def test_one_layer_is_the_output_embedding_that_is_tied(arch):
    """Scale and cap of the family included; an invertible adapter is undone before it."""
    model, lm = named_and_own(arch)
    inputs = batch(arch)
    for each in (model, lm):
        add(each, "b", METHODS["seq_bn_inv"])
        each.set_active_adapters("b")
    assert model.active_head == "a"
    assert gap(run(model, inputs), run(lm, inputs)) < 1e-10
    if not ARCHITECTURES[arch].decoder:
        del inputs["decoder_input_ids"]
        labels = torch.tensor([[7, 8, 9, 11], [5, 6, -100, -100]])
        with torch.no_grad():
            assert model(**inputs, labels=labels).loss.item() == pytest.approx(
                lm(**inputs, labels=labels).loss.item(), rel=1e-5
            )


# ---- generation


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arch", WRITERS)
def test_a_named_head_generates_as_the_models_own_does(arch):
    """Under the active adapter, with the cache; of two layers as without one."""
    model, lm = named_and_own(arch)
    for each in (model, lm):
        add(each, "b", METHODS["seq_bn"])
        each.set_active_adapters("b")
    inputs = {key: value for key, value in batch(arch).items() if key not in ("decoder_input_ids", "position_ids")}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    keys = set(model.state_dict())
    found = model.generate(**inputs, **options)
    assert torch.equal(found, lm.generate(**inputs, **options))
    assert set(model.state_dict()) == keys
    model.set_active_adapters(None)
    model.active_head = "a"
    assert not torch.equal(model.generate(**inputs, **options), found)


@pytest.mark.parametrize("method", ["seq_bn_inv", "prefix_tuning_flat", "prompt_tuning"])
def test_two_layers_generate_with_and_without_a_cache_alike(method):
    model, inputs = adapted("gpt2", METHODS[method]), batch("gpt2")
    model.add_causal_lm_head("a", layers=2, bias=True)
    randomise(model.heads, 0.5, seed=1)
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    found = model.generate(**text, **options)
    assert torch.equal(found, model.generate(**text, **options, use_cache=False))
    first = run(model, inputs)[:, -1].argmax(-1)
    assert torch.equal(found[:, 7], first)
    model.delete_head("a")
    with pytest.raises(UnsupportedError, match="A bare GPT2Model writes nothing; activate one head that does"):
        model.generate(**text)
