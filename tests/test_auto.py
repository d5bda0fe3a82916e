"""Which base is loaded: of one model type, with or without the head it was pre-trained with."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

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
