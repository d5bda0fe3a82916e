"""Generation and losses with other words: special words, the start of a decoder, the bias behind the output."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models

import adaptrain
from adaptrain.errors import CheckpointError
from matrix import METHODS, adapted, base, batch, gap, randomise, run
from other_words import CAUSAL, MASKED, SEQ2SEQ, like, moved


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
    assert gap(found.logits, logits) < 1e-10
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert gap(found.loss, expected) < 1e-10


@pytest.mark.parametrize("arch", ["bart", "marian"])
def test_a_bias_behind_the_output_embedding_goes_with_its_words(arch, tmp_path):
    model, inputs = adapted(arch, METHODS["lora"], auto=SEQ2SEQ), batch(arch)
    model.base_model.final_logits_bias.copy_(torch.randn(1, 100))
    own = model.base_model.final_logits_bias.clone()
    expected = run(model, inputs)
    like(model, words=130, shift=11)
    there = [(index + 11) % 130 for index in range(100)]
    assert gap(run(model, moved(inputs, 130, 11))[..., there], expected) < 1e-10
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
