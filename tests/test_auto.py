"""Which base is loaded: of one model type, with or without the head it was pre-trained with."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import adaptrain
from adaptrain.architectures import architectures
from adaptrain.auto import AutoAdapterModel, _class_name, class_for
from adaptrain.errors import ModelError, UnsupportedError
from matrix import ARCHITECTURES, METHODS, add, base, batch, gap

REFERENCE_NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "gpt2": "GPT2",
    "gptj": "GPTJ",
    "t5": "T5",
    "mt5": "MT5",
    "bart": "Bart",
    "mbart": "MBart",
    "plbart": "PLBart",
    "deberta-v2": "DebertaV2",
    "llama": "Llama",
    "mistral": "Mistral",
    "vit": "ViT",
    "beit": "Beit",
    "clip": "CLIP",
    "whisper": "Whisper",
    "albert": "Albert",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "deberta": "Deberta",
    "xmod": "Xmod",
    "bert-generation": "BertGeneration",
}


@pytest.mark.parametrize(("model_type", "name"), REFERENCE_NAMES.items())
def test_the_references_class_names(model_type, name):
    found = getattr(adaptrain, f"{name}AdapterModel")
    assert issubclass(found, AutoAdapterModel)
    assert found.model_type == model_type
    assert found is class_for(f"{name}AdapterModel")


def test_every_architecture_has_a_class_of_its_own():
    config = ARCHITECTURES["bert"].config()
    names = {_class_name(model_type): model_type for model_type in architectures()}
    assert sorted(names.values()) == sorted(architectures())
    assert adaptrain.BertAdapterModel.from_config(config).config.model_type == "bert"


def test_another_model_type_is_refused(tmp_path):
    base("bert").save_pretrained(tmp_path)
    assert adaptrain.BertAdapterModel.from_pretrained(tmp_path).config.model_type == "bert"
    with pytest.raises(ModelError, match="RobertaAdapterModel is for roberta, and .* is a bert; use AutoAdapterModel"):
        adaptrain.RobertaAdapterModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="GPT2AdapterModel is for gpt2"):
        adaptrain.GPT2AdapterModel.from_config(ARCHITECTURES["bert"].config())
    with pytest.raises(AttributeError, match="did you mean 'BertAdapterModel'"):
        _ = adaptrain.BerttAdapterModel


AUTO = {"causal_lm": hf.AutoModelForCausalLM, "seq2seq_lm": hf.AutoModelForSeq2SeqLM}


@pytest.mark.parametrize(
    ("arch", "kind"),
    [("gpt2", "causal_lm"), ("llama", "causal_lm"), ("bart", "seq2seq_lm"), ("t5", "seq2seq_lm")],
)
def test_the_checkpoints_own_head_speaks_and_generates(arch, kind, tmp_path):
    """With an adapter in it, as the same model without us does with no adapter active."""
    plain = base(arch, auto=AUTO[kind])
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path, own_head=kind).eval()
    assert type(model.base_model) is type(plain)
    add(model, "a", METHODS["seq_bn"])
    inputs = batch(arch)
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}
    with torch.no_grad():
        assert gap(model(**inputs).logits, plain(**inputs).logits) < 1e-5
        assert torch.equal(model.generate(**text, **options), plain.generate(**text, **options))
        model.set_active_adapters("a")
        assert gap(model(**inputs).logits, plain(**inputs).logits) > 1e-3
    with pytest.raises(UnsupportedError, match="has a prediction head of its own"):
        model.add_classification_head("a")


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        ("llama", "causal_lm"),
        ("bert", "masked_lm"),
        ("bert", "causal_lm"),
        ("bart", "causal_lm"),
        ("gpt2", "masked_lm"),
    ],
)
def test_where_there_is_none_the_base_comes_without(arch, kind, tmp_path):
    """A checkpoint of the bare model whose words are not tied; a family that has no such head."""
    base(arch).save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path, own_head=kind)
    assert model.base_model.base_model is model.base_model


def test_an_unknown_own_head_is_refused(tmp_path):
    base("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="did you mean 'causal_lm'"):
        AutoAdapterModel.from_pretrained(tmp_path, own_head="causallm")


def test_a_t5_that_writes_takes_no_named_head(tmp_path):
    """It is its own base model, which its output embedding gives away."""
    base("t5", auto=hf.AutoModelForSeq2SeqLM).save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path, own_head="seq2seq_lm")
    with pytest.raises(UnsupportedError, match="T5ForConditionalGeneration has a prediction head of its own"):
        model.add_qa_head("a")


SPARE = {
    "albert": "pooler.",
    "vit": "pooler.",
    "deit": "pooler.",
    "beit": "pooler.",
    "xmod": "pooler.",
    "dinov2": "embeddings.mask_token",
    "wav2vec2": "masked_spec_embed",
}
"""Architecture → what a checkpoint may lack, because no head reads it."""


def save_without(folder, model, gone):
    """A checkpoint without some of its weights."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if gone not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", SPARE)
def test_weights_that_no_head_reads_may_be_missing(name, tmp_path):
    config = ARCHITECTURES[name].config()
    if name == "wav2vec2":
        config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks = 0.5, 2, 2
    torch.manual_seed(0)
    whole = hf.AutoModel.from_config(config).eval()
    save_without(tmp_path, whole, SPARE[name])
    model, whole = AutoAdapterModel.from_pretrained(tmp_path, dtype=torch.float64), whole.double()
    inputs = batch(name)
    assert gap(model.base_model.eval()(**inputs).last_hidden_state, whole(**inputs).last_hidden_state) < 1e-6
    model.base_model.train()(**inputs)  # no random weight is read there either
    assert not any(SPARE[name] in key for key in model.base_model.state_dict())
    if name == "albert":
        with pytest.raises(UnsupportedError, match="no pooler; leave use_pooler out"):
            model.add_classification_head("x", num_labels=2, use_pooler=True)


def test_weights_that_a_model_reads_may_not_be_missing(tmp_path):
    save_without(tmp_path, base("bert"), "layer.1.output")
    with pytest.raises(ModelError, match=r"lacks weights, which would be random: encoder\.layer\.1\.output"):
        AutoAdapterModel.from_pretrained(tmp_path)
