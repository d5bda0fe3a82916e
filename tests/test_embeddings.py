"""Other words in the place of the model's own: exchanged, trained, refused; the original stays as it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as hf

import adaptrain
from adaptrain.errors import AdapterNameError, ConfigError, DataError, UnsupportedError
from adaptrain.methods import LoRAConfig, PromptTuningConfig, SeqBnInvConfig
from float64 import Float64
from matrix import ARCHITECTURES, METHODS, adapted, add, base, batch, gap, randomise, run, supported
from other_words import CAUSAL, MASKED, OLD, SEQ2SEQ, headed, like, moved, tokenizer

BARE = [
    arch
    for arch, row in ARCHITECTURES.items()
    if any(stack.embeddings.words for stack in adapted(arch).architecture.stacks) and row.auto is hf.AutoModel
]


@pytest.mark.parametrize("arch", BARE)
def test_the_same_words_under_other_ids_say_the_same(arch):
    model, inputs = adapted(arch, METHODS["double_seq_bn"]), batch(arch)
    if arch == "clip_text_model":
        inputs = batch(arch, (6, 6))  # pooling is by the end's id
    expected = run(model, inputs)
    like(model, words=120, shift=7)
    assert model.active_embeddings == "copy"
    shifted = moved(inputs, 120, 7)
    assert gap(run(model, shifted), expected) < 1e-10
    assert gap(run(model, inputs), expected) > 1e-3
    model.set_active_embeddings("default")
    assert torch.equal(run(model, inputs), expected)


@headed
def test_logits_are_over_the_active_words(arch, auto):
    model, inputs = adapted(arch, METHODS["lora"], auto=auto), batch(arch)
    inputs = {key: value for key, value in inputs.items() if key != "position_ids"}
    expected = run(model, inputs)
    for words in (130, 100):
        like(model, f"to-{words}", words, shift=11)
        found = run(model, moved(inputs, words, 11))
        assert found.shape[-1] == model.config.vocab_size == words
        there = [(index + 11) % words for index in range(100)]
        assert gap(found[..., there], expected) < 1e-10
    few = tokenizer(60)  # fewer than before
    model.add_embeddings("few", few, "default", OLD)
    small = {key: value % 60 if key.endswith("input_ids") else value for key, value in inputs.items()}
    found = run(model, small)
    model.set_active_embeddings("default")
    assert gap(found, run(model, small)[..., :60]) < 1e-10
    assert torch.equal(run(model, inputs), expected)
    assert model.config.vocab_size == 100


@headed
def test_losses_and_generation_are_over_the_active_words(arch, auto):
    model, inputs = adapted(arch, METHODS["lora"], auto=auto), batch(arch, (6, 6))
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    shifted = moved(inputs, 130, 9)
    if auto is not SEQ2SEQ:
        expected = model(**inputs, labels=inputs["input_ids"]).loss
        like(model, words=130, shift=9)
        # thirty words more in the denominator
        assert model(**shifted, labels=shifted["input_ids"]).loss > expected
    else:
        like(model, words=130, shift=9)
        assert model(**shifted, labels=shifted["input_ids"]).loss.isfinite()
    if auto is MASKED:
        return
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.vocabularies["<copy>"].weight.data[100:] *= 0  # the words that nobody has said
    new = model.generate(**shifted, **options)
    assert new.max() < 130
    cached, plain = (model.generate(**shifted, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


@headed
def test_training_changes_the_new_embeddings_alone(arch, auto):
    model, inputs = adapted(arch, METHODS["lora"], auto=auto), batch(arch)
    like(model, words=120)
    like(model, "other", words=110)
    model.set_active_embeddings("copy")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train_adapter("a", train_embeddings=True)
    model.eval()
    names = {name for name, _ in model.trainable_parameters()}
    own = {name for name in names if name.startswith("vocabularies.")}
    assert own and all(name.startswith("vocabularies.<copy>.") for name in own)
    assert f"vocabularies.<copy>.{'output' if arch == 'llama' else 'weight'}" in own
    with Float64():
        model(**inputs).logits.pow(2).mean().backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in own)
    torch.optim.SGD([parameter for _, parameter in model.trainable_parameters()], lr=0.5).step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= names and own <= changed
    model.train_adapter("a")
    assert not any(name.startswith("vocabularies.") for name, _ in model.trainable_parameters())
    model.set_active_embeddings("default")
    with pytest.raises(UnsupportedError, match=r"would change the base model's own embeddings; .*add_embeddings\(name"):
        model.train_adapter("a", train_embeddings=True)


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "bart"])
def test_nothing_is_left_behind(arch):
    plain, model, inputs = base(arch), adaptrain.init(base(arch)).eval(), batch(arch)
    before = {key: value.clone() for key, value in model.base_model.state_dict().items()}
    types = [(name, type(module)) for name, module in model.base_model.named_modules()]

    def hooks(each) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in each.modules())

    untouched = hooks(model.base_model)
    like(model, words=120)
    run(model, inputs)
    assert hooks(model.base_model) > untouched
    state = model.base_model.state_dict()
    assert list(state) == list(before) and all(torch.equal(state[key], before[key]) for key in before)
    assert [(name, type(module)) for name, module in model.base_model.named_modules()] == types
    with pytest.raises(AdapterNameError, match=r"'copy' are active; set_active_embeddings\('default'\) first"):
        model.delete_embeddings("copy")
    model.set_active_embeddings("default")
    assert hooks(model.base_model) == untouched
    model.delete_embeddings("copy")
    assert not any("vocabularies" in key for key in model.state_dict())
    assert torch.equal(run(model, inputs), run(plain, inputs))


@pytest.mark.parametrize("method", ["prompt_tuning", "seq_bn_inv", "prefix_tuning", "loreft", "ia3"])
@pytest.mark.parametrize(("arch", "auto"), [("bert", MASKED), ("llama", CAUSAL), ("bart", SEQ2SEQ)])
def test_methods_go_together_with_other_words(arch, auto, method):
    assert supported(arch, method)
    model, inputs = adapted(arch, METHODS[method], auto=auto), batch(arch)
    expected = run(model, inputs)
    like(model, words=120, shift=5)
    found = run(model, moved(inputs, 120, 5))
    there = [(index + 5) % 120 for index in range(100)]
    assert gap(found[..., there], expected) < 1e-10


def test_a_prompt_from_text_reads_the_base_models_words(tmp_path):
    base("bert").save_pretrained(tmp_path)
    OLD.save_pretrained(tmp_path)
    model = adaptrain.AutoAdapterModel.from_pretrained(tmp_path)
    model.add_embeddings("new", tokenizer(120))
    model.add_adapter("a", PromptTuningConfig(prompt_length=2, prompt_init="from_string", prompt_init_text="w7 w9"))
    (prompt,) = model.get_adapter("a").tensors().values()
    assert torch.equal(prompt, model.base_model.get_input_embeddings().weight[[7, 9]])


def test_adapters_of_the_models_own_words_are_refused():
    model, inputs = adapted("bert"), batch("bert")
    add(model, "words", LoRAConfig(r=2, alpha=3, embeddings_lora=True))
    add(model, "a", METHODS["lora"])
    like(model, words=120)
    for ask in (lambda: model.set_active_adapters("words"), lambda: model.set_active_adapters("stack(a, words)")):
        with pytest.raises(
            UnsupportedError, match="'words' adapts the base model's own words .encoder.embeddings.words"
        ):
            ask()
    with pytest.raises(UnsupportedError, match="'words' adapts"), adaptrain.AdapterSetup("words"):
        run(model, inputs)
    model.set_active_embeddings("default")
    model.set_active_adapters("words")
    expected = run(model, inputs)
    with pytest.raises(UnsupportedError, match="'words' adapts"):
        model.set_active_embeddings("copy")
    assert model.active_embeddings == "default"
    assert model.config.vocab_size == 100
    assert torch.equal(run(model, inputs), expected)


def test_an_adapter_of_the_models_own_words_cannot_come_in_by_another_way():
    own, inputs = LoRAConfig(r=2, alpha=3, embeddings_lora=True), batch("gpt2")
    model = like(adapted("gpt2", METHODS["lora"]), words=120)
    add(model, "words", LoRAConfig(r=2, alpha=3, targets=("embeddings.words",)))
    before = {key: value.clone() for key, value in model.base_model.state_dict().items()}
    with pytest.raises(UnsupportedError, match="'words' adapts the base model's own words"):
        model.merge_adapter("words")
    assert all(torch.equal(value, before[key]) for key, value in model.base_model.state_dict().items())
    model.set_active_embeddings("default")
    model.merge_adapter("words")
    with pytest.raises(UnsupportedError, match="'words' adapts the base model's own words"):
        model.set_active_embeddings("copy")
    model.reset_adapter()
    model.set_active_embeddings("copy")
    model.add_adapter("a", own, overwrite_ok=True)  # under the name that is active
    with pytest.raises(UnsupportedError, match="'a' adapts the base model's own words"):
        run(model, inputs)


def test_a_bf16_base_looks_up_float32_words():
    model, inputs = adapted("llama", METHODS["lora"], auto=CAUSAL).float(), batch("llama")
    like(model, words=120)
    exact = run(model, inputs)
    model.base_model.to(torch.bfloat16)
    rough = run(model, inputs)
    assert rough.dtype == torch.bfloat16
    assert model.vocabularies["<copy>"].weight.dtype == torch.float32
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_equal_and_independent(way):
    model, inputs = adapted("bart", METHODS["seq_bn_inv"], auto=SEQ2SEQ), batch("bart")
    like(model, words=120)
    expected, other = run(model, inputs), way(model)
    assert torch.equal(run(other, inputs), expected)
    randomise(other.vocabularies, 0.3, seed=5)
    assert gap(run(other, inputs), expected) > 0.1
    other.set_active_embeddings("default")
    assert torch.equal(run(model, inputs), expected)


def test_recomputed_layers_see_the_same_words():
    model, inputs = adapted("bert", METHODS["double_seq_bn"]), batch("bert")
    like(model, words=120)
    model.train_adapter("a", train_embeddings=True)
    model.eval()

    def gradients():
        model.zero_grad()
        model(**inputs).last_hidden_state.pow(2).mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters()}

    stored = gradients()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.gradient_checkpointing_enable()
    recomputed = gradients()
    assert max(gap(recomputed[name], stored[name]) for name in stored) < 1e-10


# ---- refusals


def test_what_cannot_be_is_refused_by_name():
    model = adapted("bert")
    with pytest.raises(ConfigError, match="embedding_dim is 16, and this base model goes on with 32 numbers a word"):
        model.add_embeddings("x", tokenizer(20), embedding_dim=16)
    for half in ({"reference_embedding": "default"}, {"reference_tokenizer": OLD}):
        with pytest.raises(ConfigError, match="are given together"):
            model.add_embeddings("x", tokenizer(20), **half)
    with pytest.raises(
        ConfigError, match=r"reference_tokenizer has ids up to 119, and the embeddings 'default' have 100"
    ):
        model.add_embeddings("x", tokenizer(20), "default", tokenizer(120, 101))
    with pytest.raises(AdapterNameError, match="no set of embeddings 'nobody'"):
        model.add_embeddings("x", tokenizer(20), "nobody", OLD)
    assert model.active_embeddings == "default"
    model.add_embeddings("x", tokenizer(20), embedding_dim=32)
    for taken in ("x", "default"):
        with pytest.raises(AdapterNameError, match=f"embeddings '{taken}' already"):
            model.add_embeddings(taken, tokenizer(20))
    with pytest.raises(AdapterNameError, match="no set of embeddings 'y'.*default, x"):
        model.set_active_embeddings("y")
    with pytest.raises(AdapterNameError, match="'default' are the base model's own and stay"):
        model.delete_embeddings("default")
    with pytest.raises(DataError, match="go from 3 to 98, and the embeddings 'x' have 20 words; tokenise"):
        run(model, {"input_ids": torch.tensor([[3, 98]])})
    model.set_active_embeddings("default")
    assert run(model, {"input_ids": torch.tensor([[3, 98]])}).shape == (1, 2, 32)


@pytest.mark.parametrize("arch", ["vit", "wav2vec2", "clip_vision_model"])
def test_models_without_words_are_refused(arch):
    model = adapted(arch)
    model.set_active_embeddings("default")  # says nothing, and is true
    with pytest.raises(UnsupportedError, match="looks up no words"):
        model.add_embeddings("x", tokenizer(20))


def test_stacks_with_words_of_their_own_are_refused():
    with pytest.raises(UnsupportedError, match="The stacks of this encoder-decoder have words of their own each"):
        adapted("bert-gpt2").add_embeddings("x", tokenizer(20))


def test_a_language_moves_to_another_tokenizer():
    """MAD-X with new words: invertible adapters stand behind the lookup, and before the head."""
    model, inputs = adapted("bert", SeqBnInvConfig(reduction_factor=4), auto=MASKED), batch("bert")
    expected = run(model, inputs)
    like(model, words=120, shift=4)
    found = run(model, moved(inputs, 120, 4))
    assert gap(found[..., [(index + 4) % 120 for index in range(100)]], expected) < 1e-10
