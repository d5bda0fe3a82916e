"""Other words copied from those that are there, saved and read again, AdapterHub's file among them."""

from __future__ import annotations

import pickle

import pytest
import torch
import transformers as hf

import adaptrain
from adaptrain.errors import AdapterNameError, CheckpointError
from matrix import METHODS, adapted, batch, gap, randomise, run
from other_words import CAUSAL, MASKED, headed, like, tokenizer

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
    assert gap(run(fresh, inputs), copied) < 1e-10


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
