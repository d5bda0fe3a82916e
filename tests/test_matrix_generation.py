"""Causality and decoding: what comes later never changes what came before, and the cache never changes the answer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers as hf

from float64 import Float64
from matrix import ARCHITECTURES, KINDS, METHODS, QUICK, UNITS, adapted, base, batch, cache_argument, gap, pairs, run

DECODERS = [arch for arch, row in ARCHITECTURES.items() if row.decoder]
CAUSAL, SEQ2SEQ = hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM

# texts in, texts out, with a head that transformers makes
SEQ2SEQS = ["bart", "mbart", "plbart", "marian", "t5", "t5-gated", "mt5", "bert-bert", "bert-gpt2"]


@pairs(*UNITS, archs=DECODERS, turns=True, quick=QUICK)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_later_token_never_changes_an_earlier_output(arch, method, attention):
    if attention not in ARCHITECTURES[arch].attention:
        pytest.skip("the model has no such attention")
    model, padded = adapted(arch, UNITS[method], attention), batch(arch, (7, 5))
    mask = padded["attention_mask"].bool()  # what padding says is nobody's concern
    unmasked = {key: value for key, value in padded.items() if key != "attention_mask"}
    for name, inputs, seen in (("padded", padded, mask), ("no mask", unmasked, torch.ones_like(mask))):
        before = run(model, inputs)
        for position in (3, 6):
            changed = inputs["input_ids"].clone()
            changed[:, position] = (changed[:, position] + 11) % 90 + 5
            after = run(model, inputs | {"input_ids": changed})
            assert gap(*(out[:, :position][seen[:, :position]] for out in (after, before))) < 1e-10, name
            assert gap(after[:, position:], before[:, position:]) > 1e-2, name


@pairs(*UNITS, archs=SEQ2SEQS, turns=True, quick=QUICK)
def test_a_later_target_token_never_changes_an_earlier_one(arch, method):
    model, inputs = adapted(arch, UNITS[method]), batch(arch)
    before = run(model, inputs)
    changed = inputs["decoder_input_ids"].clone()
    changed[:, 3] += 1
    after = run(model, inputs | {"decoder_input_ids": changed})
    assert gap(after[:, :3], before[:, :3]) < 1e-10
    assert gap(after[:, 3:], before[:, 3:]) > 1e-2
    source = inputs["input_ids"].clone()
    source[:, 2] += 1
    assert gap(run(model, inputs | {"input_ids": source}), before) > 1e-2


@pairs(*UNITS, archs=DECODERS, turns=True, quick=QUICK)
def test_a_prompt_in_two_pieces_equals_the_whole(arch, method):
    """The second piece has several queries over a filled cache, and no mask says which keys they may see."""
    config = UNITS[method]
    if any(getattr(member, "suffix_positions", 0) for member in config.members()):
        pytest.skip("outside of generate() the end of the first piece is the end of a prompt")
    model = adapted(arch, config)
    ids = batch(arch, (7, 7))["input_ids"]
    whole = run(model, {"input_ids": ids})
    with torch.no_grad(), Float64():
        first = model(input_ids=ids[:, :3], use_cache=True)
        second = model(input_ids=ids[:, 3:], **cache_argument(first), use_cache=True)
    assert gap(torch.cat([first.last_hidden_state, second.last_hidden_state], 1), whole) < 1e-10


def decode(model, inputs, **options):
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    with Float64():
        return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


@pairs(archs=[*DECODERS, *SEQ2SEQS], turns=True, quick=QUICK)
def test_generation_with_the_cache_equals_without(arch, method):
    same_with_and_without_cache(arch, method, (6, 3))


@pairs(*KINDS, archs=["gpt2", "llama", "bart"])
def test_generation_of_rows_of_one_length_does_so_too(arch, method):
    """Where no mask is needed, kernels are called in another way."""
    same_with_and_without_cache(arch, method, (5, 5))


@cache
def plain_decode(arch: str, lengths: tuple[int, ...]):
    inputs = {key: batch(arch, lengths)[key] for key in ("input_ids", "attention_mask")}
    return decode(base(arch, auto=SEQ2SEQ if arch in SEQ2SEQS else CAUSAL), inputs)


def same_with_and_without_cache(arch: str, method: str, lengths: tuple[int, ...]) -> None:
    auto = SEQ2SEQ if arch in SEQ2SEQS else CAUSAL
    model = adapted(arch, METHODS[method], auto=auto)
    inputs = {key: batch(arch, lengths)[key] for key in ("input_ids", "attention_mask")}
    cached, plain = (decode(model, inputs, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    assert max(gap(one, other) for one, other in zip(cached.logits, plain.logits, strict=True)) < 1e-10
    own = plain_decode(arch, lengths)
    if METHODS[method].has_units:
        assert max(gap(one, other) for one, other in zip(cached.logits, own.logits, strict=True)) > 0.05
    else:
        assert torch.equal(cached.sequences, own.sequences)


@pytest.mark.parametrize("arch", [*DECODERS, *SEQ2SEQS])
@pytest.mark.parametrize("method", ["lora", "seq_bn", "prefix_tuning"])
def test_generation_of_a_padded_row_equals_that_of_the_row_alone(arch, method):
    model = adapted(arch, METHODS[method], auto=SEQ2SEQ if arch in SEQ2SEQS else CAUSAL)
    inputs = {key: batch(arch, (3, 6))[key] for key in ("input_ids", "attention_mask")}
    seen = inputs["attention_mask"][0].bool()
    short = {key: value[:1, seen] for key, value in inputs.items()}
    together, single = decode(model, inputs), decode(model, short)
    assert max(gap(one[:1], other) for one, other in zip(together.logits, single.logits, strict=True)) < 1e-10
    assert torch.equal(together.sequences[0, -6:], single.sequences[0, -6:])


@pytest.mark.parametrize("arch", ["llama", "bart"])
def test_beams_and_a_static_cache_go_with_a_prefix(arch):
    model = adapted(arch, METHODS["prefix_tuning"], auto=SEQ2SEQ if arch in SEQ2SEQS else CAUSAL)
    inputs = {key: batch(arch, (6, 3))[key] for key in ("input_ids", "attention_mask")}
    with_cache, without = (decode(model, inputs, num_beams=3, use_cache=use).sequences for use in (True, False))
    assert torch.equal(with_cache, without)
    if arch == "llama":
        static = decode(model, inputs, cache_implementation="static", disable_compile=True)
        assert torch.equal(static.sequences, decode(model, inputs).sequences)
