"""Other words in the place of the model's own: exchanged, trained, saved; the original stays as it was."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import adaptrain
from adaptrain.errors import AdapterNameError, CheckpointError, ConfigError, DataError, UnsupportedError
from adaptrain.methods import LoRAConfig, PromptTuningConfig, SeqBnInvConfig
from matrix import ARCHITECTURES, METHODS, adapted, add, base, batch, gap, randomise, run, supported

MASKED, CAUSAL, SEQ2SEQ = hf.AutoModelForMaskedLM, hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM
WITH_HEAD = [
    ("bert", MASKED),
    ("electra", MASKED),
    ("albert", MASKED),
    ("gpt2", CAUSAL),
    ("llama", CAUSAL),  # whose output embedding is its own
    ("gemma2", CAUSAL),  # whose lookup is scaled
    ("bart", SEQ2SEQ),  # which adds a bias behind the output embedding
    ("marian", SEQ2SEQ),
    ("t5", SEQ2SEQ),
]
headed = pytest.mark.parametrize(("arch", "auto"), WITH_HEAD, ids=[arch for arch, _ in WITH_HEAD])
BARE = [
    arch
    for arch, row in ARCHITECTURES.items()
    if any(stack.embeddings.words for stack in adapted(arch).architecture.stacks) and row.auto is hf.AutoModel
]


@cache
def tokenizer(words: int, shift: int = 0) -> hf.PreTrainedTokenizerFast:
    """Words w0, w1, …, whose ids begin at `shift` places further on."""
    vocabulary = {f"w{index}": (index + shift) % words for index in range(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", pad_token="w1")


OLD = tokenizer(100)
"""Of the tiny models."""


def like(model, name: str = "copy", words: int = 100, shift: int = 0):
    """Embeddings whose common words are copied."""
    model.add_embeddings(name, tokenizer(words, shift), "default", OLD)
    return model


def moved(inputs: dict[str, torch.Tensor], words: int, shift: int) -> dict[str, torch.Tensor]:
    """The same words, in the other tokenizer's ids."""
    keys = [key for key in inputs if key.endswith("input_ids")]
    return inputs | {key: (inputs[key] + shift) % words for key in keys}


@pytest.mark.parametrize("arch", BARE)
def test_the_same_words_under_other_ids_say_the_same(arch):
    model, inputs = adapted(arch, METHODS["double_seq_bn"]), batch(arch)
    if arch == "clip_text_model":
        inputs = batch(arch, (6, 6))  # pooling is by the end's id
    expected = run(model, inputs)
    like(model, words=120, shift=7)
    assert model.active_embeddings == "copy"
    shifted = moved(inputs, 120, 7)
    assert gap(run(model, shifted), expected) < 1e-5
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
        assert gap(found[..., there], expected) < 1e-4
    few = tokenizer(60)  # fewer than before
    model.add_embeddings("few", few, "default", OLD)
    small = {key: value % 60 if key.endswith("input_ids") else value for key, value in inputs.items()}
    found = run(model, small)
    model.set_active_embeddings("default")
    assert gap(found, run(model, small)[..., :60]) < 1e-4
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
    out = model(**inputs)
    out.logits.pow(2).mean().backward()
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
    assert gap(found[..., there], expected) < 1e-4


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
    model, inputs = adapted("llama", METHODS["lora"], auto=CAUSAL), batch("llama")
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
    assert max(gap(recomputed[name], stored[name]) for name in stored) < 1e-6


# ---- words that the model itself writes


def spoken(words: int, pad: int, bos: int, eos: int | None) -> hf.PreTrainedTokenizerFast:
    """A tokenizer whose special words are where it says."""
    made = Tokenizer(models.WordLevel({f"w{index}": index for index in range(words)}, unk_token="w0"))
    ends = {} if eos is None else {"eos_token": f"w{eos}"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="w0", pad_token=f"w{pad}", bos_token=f"w{bos}", **ends
    )


def start_of(model, special: dict[str, int]) -> int:
    """The id that the decoder starts with, by the role of the word that the base model's config names."""
    own = model.config.decoder_start_token_id
    roles = [role for role in ("pad", "bos", "eos") if getattr(model.config, f"{role}_token_id", None) == own]
    return special[roles[0]]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_generation_ends_and_pads_with_the_active_words(arch):
    model, ids = adapted(arch, METHODS["lora"], auto=CAUSAL), torch.tensor([[7, 8, 9, 10], [11, 7, 13, 9]])
    old = model.generation_config.eos_token_id
    model.add_embeddings("new", spoken(60, 40, 41, None))
    randomise(model.vocabularies, 0.3, seed=7)
    free = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert free.max() < 60 and free.shape[1] == 12  # nothing ends it, whatever the base model's end is
    end = int(free[0, 6])
    model.vocabularies["<new>"].special = {"pad": 40, "bos": 41, "eos": end}
    ended = model.generate(ids, max_new_tokens=8, do_sample=False)
    for row, before in zip(ended, free, strict=True):
        stops = (before[4:] == end).nonzero()
        length = 5 + int(stops[0]) if len(stops) else len(before)
        assert torch.equal(row[:length], before[:length])
        assert set(row[length:].tolist()) <= {40}
    given = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(given, free)  # what is given is given
    assert model.generation_config.eos_token_id == old
    model.set_active_embeddings("default")
    assert model.generation_options() == {}


@pytest.mark.parametrize("arch", ["bart", "t5", "marian"])
def test_generation_of_a_decoder_starts_with_the_active_words(arch):
    model, ids = adapted(arch, METHODS["lora"], auto=SEQ2SEQ), torch.tensor([[7, 8, 9, 10], [11, 7, 13, 9]])
    model.add_embeddings("new", spoken(60, 40, 41, 42))
    randomise(model.vocabularies, 0.3, seed=7)
    found = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert set(found[:, 0].tolist()) == {start_of(model, {"pad": 40, "bos": 41, "eos": 42})}
    assert found.max() < 60


@pytest.mark.parametrize("arch", ["bart", "t5", "marian"])
def test_a_decoder_reads_the_active_start_before_the_labels(arch):
    model = adapted(arch, METHODS["lora"], auto=SEQ2SEQ)
    model.add_embeddings("new", spoken(60, 40, 41, 42))
    randomise(model.vocabularies, 0.3, seed=7)
    ids, labels = torch.tensor([[7, 8, 9], [11, 7, 13]]), torch.tensor([[5, 6, 42], [7, 42, -100]])
    start = start_of(model, {"pad": 40, "bos": 41, "eos": 42})
    reads = torch.tensor([[start, 5, 6], [start, 7, 42]])
    with torch.no_grad():
        found, logits = model(ids, labels=labels), model(ids, decoder_input_ids=reads).logits
    assert gap(found.logits, logits) < 1e-6
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert gap(found.loss, expected) < 1e-6


@pytest.mark.parametrize("arch", ["bart", "marian"])
def test_a_bias_behind_the_output_embedding_goes_with_its_words(arch, tmp_path):
    model, inputs = adapted(arch, METHODS["lora"], auto=SEQ2SEQ), batch(arch)
    model.base_model.final_logits_bias.copy_(torch.randn(1, 100))
    own = model.base_model.final_logits_bias.clone()
    expected = run(model, inputs)
    like(model, words=130, shift=11)
    there = [(index + 11) % 130 for index in range(100)]
    assert gap(run(model, moved(inputs, 130, 11))[..., there], expected) < 1e-4
    rest = [index for index in range(130) if index not in there]
    assert not model.vocabularies["<copy>"].final_bias[rest].any()
    assert not any("final_bias" in name for name, _ in model.named_parameters())
    model.save_embeddings(tmp_path, "copy")
    other = adapted(arch, METHODS["lora"], auto=SEQ2SEQ)
    other.load_embeddings(tmp_path)
    assert torch.equal(run(other, moved(inputs, 130, 11)), run(model, moved(inputs, 130, 11)))
    model.set_active_embeddings("default")
    assert torch.equal(model.base_model.final_logits_bias, own)
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize(
    ("arch", "auto"), [("bert", MASKED), ("gpt2", CAUSAL), ("llama", CAUSAL), ("gemma2", CAUSAL), ("bart", SEQ2SEQ)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_copy_of_the_default_is_equal_bit_for_bit(arch, auto, dtype):
    model, inputs = adaptrain.init(base(arch, auto=auto).to(dtype)).eval(), batch(arch)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    if arch == "gemma2":
        model.base_model.get_input_embeddings().embed_scale = torch.tensor(32**0.5)  # float32, as a loaded model has it
    with torch.no_grad():
        before = model(**inputs, labels=labels)
        like(model)
        after = model(**inputs, labels=labels)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)


def test_special_words_are_saved(tmp_path):
    model = adapted("gpt2", auto=CAUSAL)
    model.add_embeddings("new", spoken(60, 40, 41, None))
    expected = model.generation_options()
    assert expected["pad_token_id"] == 40 and expected["eos_token_id"] is None
    model.save_embeddings(tmp_path, "new")
    model.load_embeddings(tmp_path, "again")
    assert model.generation_options() == expected
    text = (tmp_path / "embeddings_config.json").read_text().replace('"bos"', '"begin"')
    (tmp_path / "embeddings_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="has special .*begin"):
        model.load_embeddings(tmp_path, "third")


# ---- what is copied


@headed
def test_common_words_are_copied_and_the_others_drawn(arch, auto):
    torch.manual_seed(4)
    model = adapted(arch, auto=auto)
    like(model, words=400, shift=3)
    made, own = model.vocabularies["<copy>"], model.base_model.get_input_embeddings().weight
    there = [(index + 3) % 400 for index in range(100)]
    assert torch.equal(made.weight[there], own)
    rest = made.weight[[index for index in range(400) if index not in there]]
    assert rest.std().item() == pytest.approx(0.02, rel=0.1)
    head = model.base_model.get_output_embeddings()
    assert (made.output is None) == (head.weight is own)
    if made.output is not None:
        assert torch.equal(made.output[there], head.weight)
    assert (made.bias is None) == (head.bias is None)
    if made.bias is not None:
        assert torch.equal(made.bias[there], head.bias)
        assert made.bias.count_nonzero() <= 100
    model.add_embeddings("again", tokenizer(100), "copy", tokenizer(400, 3))  # from other new ones
    assert torch.equal(model.vocabularies["<again>"].weight, own)
    model.add_embeddings("fresh", tokenizer(50))
    assert model.vocabularies["<fresh>"].weight.std().item() == pytest.approx(0.02, rel=0.15)


# ---- files


@headed
def test_saved_and_loaded_they_are_equal(arch, auto, tmp_path):
    model, inputs = adapted(arch, METHODS["lora"], auto=auto), batch(arch)
    like(model, words=120, shift=5)
    randomise(model.vocabularies, 0.2, seed=6)
    expected = run(model, inputs)
    model.save_embeddings(tmp_path / "a" / "b", "copy", tokenizer(120, 5))
    fresh = adapted(arch, METHODS["lora"], auto=auto)
    loaded = fresh.load_embeddings(tmp_path / "a" / "b")
    assert loaded is not None and loaded.get_vocab() == tokenizer(120, 5).get_vocab()
    assert fresh.active_embeddings == "copy"
    assert torch.equal(run(fresh, inputs), expected)
    assert fresh.load_embeddings(tmp_path / "a" / "b", "more") is not None
    assert fresh.active_embeddings == "more"
    fresh.save_embeddings(tmp_path / "own", "default")
    assert fresh.load_embeddings(tmp_path / "own", "theirs") is None
    fresh.set_active_embeddings("theirs")
    copied = run(fresh, inputs)
    fresh.set_active_embeddings("default")
    assert gap(run(fresh, inputs), copied) < 1e-6


def test_adapterhubs_file_is_read(tmp_path):
    model, inputs = adapted("bert"), batch("bert")
    like(model, words=120)
    expected, weight = run(model, inputs), model.vocabularies["<copy>"].weight
    torch.save(weight, tmp_path / "embedding.pt")
    fresh = adapted("bert")
    with pytest.raises(AdapterNameError, match="have no name of their own; give one"):
        fresh.load_embeddings(tmp_path)
    assert fresh.load_embeddings(tmp_path, "en") is None
    assert torch.equal(run(fresh, inputs), expected)
    llama = adapted("llama", auto=CAUSAL)
    with pytest.raises(CheckpointError, match="has no output embedding, and this model has one of its own"):
        llama.load_embeddings(tmp_path, "en")
    (tmp_path / "embedding.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(CheckpointError, match="weights-only loader"):
        fresh.load_embeddings(tmp_path, "x")
    torch.save([1], tmp_path / "embedding.pt")
    with pytest.raises(CheckpointError, match="is no table of words"):
        fresh.load_embeddings(tmp_path, "x")


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = adapted("bert", auto=MASKED)
    like(model, words=120)
    model.save_embeddings(tmp_path / "mlm", "copy")
    with pytest.raises(CheckpointError, match="was made for a bert, and this model is a gpt2"):
        adapted("gpt2").load_embeddings(tmp_path / "mlm")
    bare = adapted("bert")
    with pytest.raises(CheckpointError, match="'bias' has no place"):
        bare.load_embeddings(tmp_path / "mlm")
    assert bare.active_embeddings == "default" and not len(bare.vocabularies)
    other = hf.BertModel(hf.BertConfig(vocab_size=100, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    narrow = adaptrain.init(other)
    narrow.add_embeddings("n", tokenizer(20))
    narrow.save_embeddings(tmp_path / "n", "n")
    with pytest.raises(CheckpointError, match=r"'weight' is \(20, 16\), this model needs \(20, 32\)"):
        bare.load_embeddings(tmp_path / "n")
    with pytest.raises(CheckpointError):
        bare.load_embeddings(tmp_path / "nowhere")
    (tmp_path / "n" / "embeddings_config.json").write_text('{"format": "x"}')
    with pytest.raises(CheckpointError, match="has the format 'x'"):
        bare.load_embeddings(tmp_path / "n")


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
    assert gap(found[..., [(index + 4) % 120 for index in range(100)]], expected) < 1e-4
