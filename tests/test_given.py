"""What a forward can be given in the place of texts and masks: an adapter acts all the same, or is refused by name."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers as hf

from adaptrain.composition import Parallel, Split
from adaptrain.errors import CompositionError, UnsupportedError
from adaptrain.methods import PromptTuningConfig
from adaptrain.points import modules_at
from float64 import Float64
from matrix import (
    ARCHITECTURES,
    FAMILIES,
    KINDS,
    METHODS,
    QUICK,
    adapted,
    add,
    base,
    batch,
    gap,
    long,
    run,
    said,
    supported,
    visible,
)

CAUSAL, SEQ2SEQ = hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM
CACHE = "cache" if "cache" in inspect.signature(hf.LlamaModel.forward).parameters else "past_key_values"
EMBEDDED = [
    arch
    for arch, row in ARCHITECTURES.items()
    if row.reads == "texts" and "inputs_embeds" in inspect.signature(base(arch).forward).parameters
]
"""What can be given embeddings in the place of words."""


def looked_up(model, inputs, side: str = ""):
    """The inputs with the model's own embeddings in the place of its words, outside of a forward."""
    words, stack = inputs[f"{side}input_ids"], model.base_model
    if "decoder_input_ids" in inputs:
        stack = stack.decoder if side else stack.encoder
    embeds = stack.get_input_embeddings()(words).detach()
    if stack.config.model_type == "marian" and not side:  # whose encoder scales words alone, not what it is given
        embeds = embeds * stack.embed_scale
    return {key: value for key, value in inputs.items() if key != f"{side}input_ids"} | {f"{side}inputs_embeds": embeds}


def counted(arch, inputs):
    """The inputs with the positions that a model reads off the padding among its words, and cannot off embeddings."""
    pad = {"roberta": 1, "xlm-roberta": 1, "xmod": 1, "mpnet": 1}.get(arch)
    if pad is None:
        return inputs
    return inputs | {"position_ids": inputs["attention_mask"].cumsum(1) * inputs["attention_mask"] + pad}


# ---- embeddings in the place of words


@pytest.mark.parametrize(
    ("arch", "method"),
    [
        (arch, method) if method == "seq_bn_inv" or "prompt" in method else long(arch, method)
        for arch in EMBEDDED
        for method in KINDS
        if supported(arch, method) and (method == "seq_bn_inv" or arch in FAMILIES)
    ],
)
def test_embeddings_in_the_place_of_words_are_adapted(arch, method):
    lengths = (7, 7) if arch == "gemma2" else (7, 4)  # whose padding is not a number in float64
    model, inputs = adapted(arch, METHODS[method]).double(), counted(arch, batch(arch, lengths))
    expected = run(model, inputs)
    seen = visible(arch, inputs, expected)
    assert gap(run(model, looked_up(model, inputs))[seen], expected[seen]) < 1e-10
    if "decoder_input_ids" in inputs:
        assert gap(run(model, looked_up(model, inputs, "decoder_")), expected) < 1e-10
    model.set_active_adapters(None)
    assert gap(run(model, looked_up(model, inputs))[seen], expected[seen]) > 1e-3


@pytest.mark.parametrize(("arch", "auto"), [("llama", CAUSAL), ("gemma", CAUSAL), ("t5", SEQ2SEQ), ("marian", SEQ2SEQ)])
def test_generation_from_embeddings_equals_that_from_words(arch, auto):
    model = adapted(arch, METHODS["seq_bn_inv"], auto=auto).double()
    inputs = {key: batch(arch, (6, 3))[key] for key in ("input_ids", "attention_mask")}
    encoder = model.base_model.model.encoder if arch == "marian" else model.base_model
    embeds = model.get_input_embeddings()(inputs["input_ids"]) * getattr(encoder, "embed_scale", 1.0)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**inputs, **options)
    found = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **options)
    assert torch.equal(found[:, -5:], expected[:, -5:])


@pytest.mark.parametrize("arch", ["bert", "llama", "bart", "bert-gpt2"])
def test_embeddings_do_not_say_which_words_an_adapted_lookup_has(arch):
    model, inputs = adapted(arch, METHODS["lora-o-words"]), batch(arch)
    expected = run(model, inputs)
    for side in ("", "decoder_") if "decoder_input_ids" in inputs else ("",):
        with pytest.raises(UnsupportedError, match=rf"'a' .*embeddings\.words.*{side}inputs_embeds.*{side}input_ids"):
            run(model, looked_up(model, inputs, side))
    assert torch.equal(run(model, inputs), expected)  # a refusal leaves no forward open


# ---- masks of queries and keys


def square(mask: torch.Tensor, causal: bool, kind: str) -> torch.Tensor:
    """A mask (rows, 1, queries, keys), in which padding may see itself."""
    n = mask.shape[1]
    see = mask.bool()[:, None, None].expand(-1, 1, n, n)
    if causal:
        see = see & torch.ones(n, n, dtype=torch.bool).tril()
    if kind != "bool":
        see = see | torch.eye(n, dtype=torch.bool)
    if kind == "additive":
        return torch.zeros(see.shape, dtype=torch.float64).masked_fill(~see, torch.finfo(torch.float64).min)
    return see


@pytest.mark.parametrize("kind", ["itself", "additive"])
@pytest.mark.parametrize("method", ["lora-gated", "seq_bn_inv", "noreft", "unipelt"])
@pytest.mark.parametrize("arch", ["bert", "distilbert", "gpt2", "llama"])
def test_a_mask_of_queries_and_keys_is_read_as_one_of_positions(arch, method, kind):
    model, inputs = adapted(arch, METHODS[method]).double(), batch(arch)
    expected = run(model, inputs)
    mask = square(inputs["attention_mask"], ARCHITECTURES[arch].decoder, kind)
    seen = visible(arch, inputs, expected)
    assert gap(run(model, inputs | {"attention_mask": mask})[seen], expected[seen]) < 1e-10


@pytest.mark.parametrize("method", ["lora", "noreft"])
def test_masks_a_kind_of_layer_are_repeated_for_parallel(method):
    model, inputs = adapted("gemma3_text", METHODS[method]).double(), batch("gemma3_text", (4, 4))
    add(model.double(), "b", METHODS[method], seed=9)
    model.double().set_active_adapters(Parallel("a", "b"))
    expected = run(model, inputs)
    causal = square(inputs["attention_mask"], True, "bool")  # no longer than the window
    masks = dict.fromkeys(("full_attention", "sliding_attention"), causal)
    assert gap(run(model, inputs | {"attention_mask": masks}), expected) < 1e-10


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("method", ["loreft", "noreft", "unipelt"])
def test_a_static_cache_generates_what_a_dynamic_one_does(arch, method):
    """With padding, and a window that is shorter than the text."""
    model = adapted(arch, METHODS[method], auto=CAUSAL).double()
    inputs = {key: batch(arch, (7, 4))[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    static = model.generate(**inputs, **options, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, model.generate(**inputs, **options))


# ---- what has been worked out before


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("arch", ["bart", long("t5"), long("bert-bert")])
def test_an_encoders_states_can_be_given(arch, method):
    model, inputs = adapted(arch, METHODS[method]).double(), batch(arch)
    expected = run(model, inputs)
    text = {key: inputs.pop(key) for key in ("input_ids", "attention_mask")}
    with torch.no_grad(), Float64():
        encoded = model.get_encoder()(**text)
        given = inputs | {"encoder_outputs": encoded, "attention_mask": text["attention_mask"]}
        assert gap(run(model, given), expected) < 1e-10
        if arch != "bert-bert":  # whose decoder has a head of its own
            alone = model.base_model.decoder(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=encoded[0],
                encoder_attention_mask=text["attention_mask"],
            )
            assert gap(alone.last_hidden_state, expected) < 1e-10


def test_what_a_prompt_is_not_in_is_refused():
    prompt = PromptTuningConfig(prompt_length=3)
    model, inputs = adapted("bart", prompt), batch("bart")
    plain = base("bart").encoder(inputs["input_ids"], inputs["attention_mask"])
    given = {key: inputs[key] for key in ("attention_mask", "decoder_input_ids")} | {"encoder_outputs": plain}
    with pytest.raises(UnsupportedError, match="attention_mask has 7 positions .*encoder's.* 7.*prompt 'a'"):
        run(model, given)
    decoder, inputs = adapted("llama", prompt), batch("llama", (7, 7))
    cut = {key: value[:, :4] for key, value in inputs.items()}
    with torch.no_grad():
        theirs = base("llama")(**cut, use_cache=True)[CACHE]
    rest = {"input_ids": inputs["input_ids"][:, 4:], "attention_mask": inputs["attention_mask"]}
    with pytest.raises(UnsupportedError, match="attention_mask has 7 positions .*cache.* 7.*prompt 'a'"):
        run(decoder, rest | {CACHE: theirs})


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "bn-gated"])
def test_a_static_cache_in_two_pieces_is_the_whole(method):
    model, ids = adapted("llama", METHODS[method]).double(), batch("llama", (7, 7))["input_ids"]
    whole = run(model, {"input_ids": ids})
    static = hf.StaticCache(config=model.config, max_cache_len=20)
    pieces = [run(model, {"input_ids": piece, CACHE: static}) for piece in (ids[:, :4], ids[:, 4:])]
    assert gap(torch.cat(pieces, 1), whole) < 1e-10


# ---- positions, what is kept of the logits, and what is returned


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("arch", [long("bert"), long("modernbert"), "gpt2", long("llama")])
def test_positions_that_count_from_zero_change_nothing(arch, method):
    model, ids = adapted(arch, METHODS[method]).double(), batch(arch, (6, 6))["input_ids"]
    expected = run(model, {"input_ids": ids})
    for rows in (1, 2):
        given = {"input_ids": ids, "position_ids": torch.arange(6).expand(rows, -1)}
        assert gap(run(model, given), expected) < 1e-10


@pytest.mark.parametrize("method", ["lora-gated", "seq_bn_inv", "prefix-gated", "noreft", "prompt_tuning"])
def test_several_texts_in_a_row_are_what_they_are_alone(method):
    """A decoder tells them apart by positions that begin anew."""
    model, ids = adapted("llama", METHODS[method]).double(), batch("llama", (9, 9))["input_ids"]
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    given = {"input_ids": ids, "position_ids": packed, "use_cache": False}
    if method in ("noreft", "prompt_tuning"):  # which act at a row's first tokens
        with pytest.raises(UnsupportedError, match="position_ids begin anew .*'a'.*one text a row"):
            run(model, given)
        return
    alone = torch.cat([run(model, {"input_ids": piece}) for piece in (ids[:, :4], ids[:, 4:])], 1)
    assert gap(run(model, given), alone) < 1e-10


@pytest.mark.parametrize("method", ["lora", "seq_bn_inv", "prompt_tuning"])
def test_the_logits_that_are_kept_are_those_of_their_positions(method):
    """Also where they are as many as the rows that Parallel repeats."""
    model, inputs = adapted("llama", METHODS[method], auto=CAUSAL), batch("llama")
    add(model, "b", METHODS[method], seed=9)
    model.double().set_active_adapters(Parallel("a", "b"))
    expected = run(model, inputs)
    for kept, those in ((2, [5, 6]), (torch.tensor([3, 5]), [3, 5])):
        assert gap(run(model, inputs | {"logits_to_keep": kept}), expected[:, those]) < 1e-10


def test_a_split_that_is_undone_needs_all_positions():
    model, inputs = adapted("llama", METHODS["seq_bn_inv"], auto=CAUSAL), batch("llama")
    add(model, "b", METHODS["seq_bn_inv"], seed=9)
    model.set_active_adapters(Split("a", "b", sizes=[3, None]))
    with pytest.raises(UnsupportedError, match="split.*logits_to_keep"):
        run(model, inputs | {"logits_to_keep": 1})
    with pytest.raises(UnsupportedError, match="split.*generate"):
        model.generate(inputs["input_ids"], max_new_tokens=2)


@pytest.mark.parametrize(
    ("arch", "before"),
    [
        (arch, before) if arch in QUICK else long(arch, before)
        for arch in ARCHITECTURES
        if supported(arch, "noreft") and ARCHITECTURES[arch].reads != "texts and images"
        for before in (False, True)
    ],
)
def test_hidden_states_are_what_the_layers_read(arch, before):
    """Whether or not the model has run before the adapter came."""
    model, inputs = adapted(arch), batch(arch)
    if before:
        model(**inputs, output_hidden_states=True)
    add(model, "a", METHODS["noreft"])
    model.set_active_adapters("a")
    read: list[torch.Tensor] = []
    layers = modules_at(model.base_model.base_model, model.architecture.stacks[0].layers, arch)
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    with torch.no_grad(), Float64():
        outputs = model(**inputs, output_hidden_states=True)
    told = outputs.get("encoder_hidden_states") or outputs.hidden_states
    assert len(read) >= len(layers)
    for states, expected in zip(told, read, strict=False):
        assert torch.equal(states, expected)


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("method", ["seq_bn_inv", "prompt_tuning", "loreft"])
def test_a_tuple_holds_what_the_named_outputs_do(arch, method):
    model, inputs = adapted(arch, METHODS[method]), batch(arch)
    with torch.no_grad():
        outputs = model(**inputs, return_dict=False)
    assert torch.equal(outputs[0], said(model(**inputs)))


def test_rows_that_nothing_counts_are_refused():
    model, inputs = adapted("bart", METHODS["lora"], auto=SEQ2SEQ), batch("bart")
    add(model, "b", METHODS["lora"], seed=9)
    encoded = base("bart").encoder(inputs["input_ids"])
    model.set_active_adapters(Parallel("a", "b"))
    with pytest.raises(CompositionError, match="repeats the rows .*encoder_outputs.*attention_mask"):
        model.generate(encoder_outputs=encoded, max_new_tokens=2)
