"""Prompts over whole models: where they stand, what they widen, and what is taken off again."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.methods import ConfigUnion, LoRAConfig, PromptTuningConfig
from matrix import ARCHITECTURES, adapted, bare, base, batch, gap, run, supported, visible

BEHIND = [
    "bert",
    "electra",
    "mpnet",
    "bert-generation",
    "albert",
    "distilbert",
    "xmod",
    "clip_text_model",
    "vit",
    "dinov2",
]
WORDS = ["modernbert", *(arch for arch, row in ARCHITECTURES.items() if row.decoder)]
PROMPT, AFTER = PromptTuningConfig(prompt_length=3), PromptTuningConfig(prompt_length=3, combine="prefix_after_bos")


def vectors(model) -> torch.Tensor:
    (tensor,) = model.get_adapter("a").tensors().values()
    return tensor


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if supported(arch, "prompt_tuning")])
@pytest.mark.parametrize("config", [PROMPT, AFTER], ids=["before", "after-bos"])
def test_outputs_keep_the_texts_positions(arch, config):
    inputs = batch(arch)
    assert run(adapted(arch, config), inputs).shape == bare(arch, inputs).shape


@pytest.mark.parametrize("config", [PROMPT, AFTER], ids=["before", "after-bos"])
@pytest.mark.parametrize("arch", WORDS)
def test_on_a_decoder_a_prompt_is_words_that_nobody_wrote(arch, config):
    """By hand: embeddings with the vectors among them, positions counted through."""
    model, ids = adapted(arch, config), batch(arch, (6, 6))["input_ids"]
    plain = base(arch)
    words = plain.get_input_embeddings()(ids)
    trained = vectors(model).expand(2, -1, -1)
    split = 0 if config is PROMPT else 1
    embeds = torch.cat([words[:, :split], trained, words[:, split:]], 1)
    whole = run(plain, {"inputs_embeds": embeds})
    expected = torch.cat([whole[:, :split], whole[:, split + 3 :]], 1)
    assert gap(run(model, {"input_ids": ids}), expected) < 1e-10
    assert gap(run(model, {"inputs_embeds": words.detach()}), expected) < 1e-10


@pytest.mark.parametrize("config", [PROMPT, AFTER], ids=["before", "after-bos"])
@pytest.mark.parametrize("arch", BEHIND)
def test_on_an_encoder_a_prompt_has_no_position(arch, config):
    model, inputs = adapted(arch, config), batch(arch)
    trained = vectors(model).expand(2, -1, -1)
    split = 0 if config is PROMPT else 1
    plain = base(arch)
    plain.embeddings.register_forward_hook(lambda m, args, out: torch.cat([out[:, :split], trained, out[:, split:]], 1))
    wider = dict(inputs)
    if "attention_mask" in inputs:
        wider["attention_mask"] = torch.cat([inputs["attention_mask"].new_ones(2, 3), inputs["attention_mask"]], 1)
    whole = run(plain, wider)
    expected = torch.cat([whole[:, :split], whole[:, split + 3 :]], 1)
    found = run(model, inputs)
    seen = visible(arch, inputs, found)
    assert gap(found[seen], expected[seen]) < 1e-10
    theirs = adapted(arch, config.replace(as_adapterhub=True))
    assert gap(run(theirs, inputs), whole) < 1e-10  # the reference keeps the prompt's positions


@pytest.mark.parametrize("arch", ["bert", "roberta"])
def test_the_pooler_reads_the_texts_first_token(arch):
    model, inputs = adapted(arch, PROMPT), batch(arch)
    with torch.no_grad():
        outputs = model(**inputs)
    assert gap(outputs.pooler_output, model.base_model.pooler(outputs.last_hidden_state)) < 1e-10


def test_bart_attends_to_the_prompt_from_its_decoder():
    model, inputs = adapted("bart", PROMPT), batch("bart")
    with torch.no_grad():
        outputs = model(**inputs)
    assert outputs.encoder_last_hidden_state.shape[1] == inputs["input_ids"].shape[1] + 3
    assert outputs.last_hidden_state.shape[1] == inputs["decoder_input_ids"].shape[1]


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_labels_and_logits_agree(arch):
    auto = hf.AutoModelForTokenClassification
    model, inputs = adapted(arch, PROMPT, auto=auto), batch(arch)
    outputs = model(**inputs, labels=torch.zeros_like(inputs["input_ids"]))
    assert outputs.logits.shape[:2] == inputs["input_ids"].shape
    assert outputs.loss.isfinite()


def test_what_a_prompt_cannot_go_with_is_refused():
    model, inputs = adapted("bert", PROMPT), batch("bert")
    four = inputs["attention_mask"][:, None, None].bool()
    with pytest.raises(UnsupportedError, match="one number a position"):
        run(model, inputs | {"attention_mask": four})
    decoder = adapted("gpt2", PROMPT)
    with pytest.raises(UnsupportedError, match="token_type_ids"):
        run(decoder, batch("gpt2") | {"token_type_ids": torch.zeros(2, 7, dtype=torch.long)})
    decoder = adapted("llama", PROMPT, auto=hf.AutoModelForCausalLM)
    with pytest.raises(UnsupportedError, match="A static cache has no room for a prompt"):
        decoder.generate(batch("llama")["input_ids"], cache_implementation="static", max_new_tokens=2)
    expected = run(adapted("bert"), inputs)
    model.set_active_adapters(None)
    assert torch.equal(run(model, inputs), expected)  # a refusal leaves no forward open


def test_a_prompt_from_text_needs_a_tokenizer():
    model = adapted("bert")
    with pytest.raises(ConfigError, match="needs the base model's tokenizer"):
        model.add_adapter("a", PromptTuningConfig(prompt_init="from_string", prompt_init_text="is it good?"))
    assert model.adapter_names() == []


def test_a_prompt_from_text_begins_with_its_words(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[UNK]": 0, "is": 7, "it": 11, "good": 23}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    base("bert").save_pretrained(tmp_path)
    import adaptrain

    model = adaptrain.AutoAdapterModel.from_pretrained(tmp_path)
    model.add_adapter(
        "a", PromptTuningConfig(prompt_length=5, prompt_init="from_string", prompt_init_text="is it good")
    )
    words = model.base_model.get_input_embeddings().weight
    assert torch.equal(vectors(model), words[[7, 11, 23, 7, 11]])
    model.save_adapter(tmp_path / "saved", "a")
    for file in tmp_path.glob("*token*"):
        file.unlink()
    other = adaptrain.AutoAdapterModel.from_pretrained(tmp_path)
    other.load_adapter(tmp_path / "saved")  # whose weights are trained: no tokenizer is needed
    assert torch.equal(vectors(other), words[[7, 11, 23, 7, 11]])


def test_a_prompt_and_lora_in_one_adapter():
    inputs = batch("bert")
    union = ConfigUnion(PROMPT, LoRAConfig(r=2, alpha=3))
    model, prompt = adapted("bert", union), adapted("bert", PROMPT)
    assert run(model, inputs).shape == run(prompt, inputs).shape
    assert gap(run(model, inputs), run(prompt, inputs)) > 0.05
