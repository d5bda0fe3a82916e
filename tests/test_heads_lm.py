"""Heads for masked words: tied to the words in force, behind what undoes an invertible adapter."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch.nn import functional as F

from adaptrain.adapter import key_of
from adaptrain.context import AdapterSetup
from adaptrain.errors import ConfigError, DataError, UnsupportedError
from adaptrain.heads import MaskedLMHead, head_from_dict
from adaptrain.methods import BnConfig, SeqBnInvConfig
from adaptrain.sites.words import Vocabulary
from adaptrain.state import EmbeddingState
from matrix import adapted, add, alone, batch, gap, randomise, run

ENCODERS = ("bert", "electra", "mpnet", "albert", "distilbert", "deberta", "deberta-v2", "modernbert", "roberta")
KEY = key_of("a")
INVERTIBLE = SeqBnInvConfig(reduction_factor=4)
encoders = pytest.mark.parametrize("arch", ENCODERS)


def headed(arch: str = "bert", config: BnConfig | None = INVERTIBLE, **options):
    model = adapted(arch, config)
    model.add_masked_lm_head("a", **options)
    randomise(model.heads, 0.3, seed=1)
    return model


def labels_of(inputs, seed: int = 0):
    """A third of the tokens is labelled, none of the padding."""
    chance = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(inputs["input_ids"].shape, generator=chance) < 0.4) & inputs["attention_mask"].bool()
    chosen[:, 0] = True
    return torch.where(chosen, inputs["input_ids"], -100)


def inverse(model, hidden):
    """f⁻¹ of the adapter's own unit."""
    (site,) = [site for site in model.sites.by_name.values() if isinstance(site.units.get("a"), tuple) and _emb(site)]
    return site.units["a"][0].inverse(EmbeddingState(hidden)).h


def _emb(site) -> bool:
    return site.point.kind == "embedding"


@encoders
@pytest.mark.parametrize("kind", ["nice", "glow"])
def test_logits_by_hand(arch, kind):
    """Dense, gelu, norm, f⁻¹, and the product with the words' own embeddings."""
    model, inputs = headed(arch, INVERTIBLE.replace(inv_adapter=kind)), batch(arch)
    head, words = model.heads[KEY], model.sites.word_table()
    assert words is model.base_model.get_input_embeddings().weight
    with torch.no_grad():
        found = model(**inputs).logits
        model.active_head = None
        hidden = model(**inputs).last_hidden_state
        dense, norm = head.hidden[0], head.norms[0]
        z = F.layer_norm(
            F.gelu(hidden @ dense.weight.T + dense.bias), norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        assert gap(found, inverse(model, z) @ words.T + head.bias) < 1e-5
        assert gap(found, z @ words.T + head.bias) > 0.05


@encoders
def test_a_padded_row_is_what_it_is_alone(arch):
    model, inputs = headed(arch), batch(arch, (3, 7))
    whole = run(model, inputs)
    for row, length in enumerate((3, 7)):
        assert gap(whole[row : row + 1, :length], run(model, alone(arch, inputs, row))) < 1e-5


@pytest.mark.parametrize("sparse", [False, True])
def test_the_loss_is_the_mean_over_labelled_positions_of_all_rows(sparse):
    model, inputs = headed(sparse_prediction=sparse), batch("bert", (3, 7, 5))
    labels = labels_of(inputs)
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    logits, chosen = run(model, inputs).double(), labels != -100
    wanted = -logits.softmax(-1).log()[chosen].gather(1, labels[chosen][:, None]).mean()
    assert float(out.loss) == pytest.approx(float(wanted), rel=1e-5)
    assert gap(out.logits, logits[chosen].float() if sparse else logits.float()) < 1e-5
    assert model(**inputs, labels=torch.full_like(labels, -100)).loss.item() == 0.0


def test_sparse_and_dense_have_the_same_gradients():
    found = []
    for sparse in (False, True):
        model, inputs = headed(sparse_prediction=sparse), batch("bert", (3, 7, 5))
        model.train_adapter("a")
        model.eval()
        model(**inputs, labels=labels_of(inputs)).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.trainable_parameters()})
    dense, sparse = found
    assert dense.keys() == sparse.keys() and any("bias" in name and "heads" in name for name in dense)
    for name, gradient in dense.items():
        assert gap(gradient, sparse[name]) < 1e-5 * max(1.0, float(gradient.abs().max()))


def test_the_words_are_shared_and_stay_frozen():
    model, inputs = headed(), batch("bert")
    model.train_adapter("a")
    words = model.sites.word_table()
    assert not words.requires_grad
    assert {name for name in model.heads.state_dict() if "word" in name or "decoder" in name} == set()
    before = run(model.eval(), inputs)
    with torch.no_grad():
        words[7] += 1.0  # a word that the batch does not have would change its column alone
    assert gap(run(model, inputs), before) > 0.05


def test_other_words_in_force_are_the_ones_that_are_compared():
    model, inputs = headed(), batch("bert")
    before = run(model, inputs)
    words = model._words()
    model._keep(Vocabulary("copy", words.weight.detach().clone() * 1.5))
    model.set_active_embeddings("copy")
    assert model.sites.word_table() is model.vocabularies[key_of("copy")].weight
    assert gap(run(model, inputs), before) > 0.05
    model.set_active_embeddings("default")
    model._keep(Vocabulary("more", torch.randn(words.weight.shape[0] + 3, words.weight.shape[1])))
    model.set_active_embeddings("more")
    with pytest.raises(UnsupportedError, match=r"for \d+ words, and the embeddings in force have \d+"):
        run(model, inputs)


def test_the_composition_in_force_is_the_one_that_is_undone():
    """A stack in reverse order; an AdapterSetup; no composition, no inverse."""
    model, inputs = headed(), batch("bert")
    add(model, "b", INVERTIBLE.replace(inv_adapter="glow"), seed=5)
    for composition, due in (("stack(a, b)", ["b", "a"]), ("a", ["a"]), (None, [])):
        order: list[str] = []
        kept = []
        for name in "ab":
            (unit,) = next(site.units[name] for site in model.sites.by_name.values() if _emb(site))
            kept.append((unit, unit.inverse))
            unit.inverse = lambda state, order=order, name=name, call=unit.inverse: order.append(name) or call(state)
        with AdapterSetup(composition, head_setup="a"):
            inside = run(model, inputs)
        assert order == due
        for unit, call in kept:
            unit.inverse = call
        model.set_active_adapters(composition)
        model.active_head = "a"
        assert torch.equal(run(model, inputs), inside)


def test_parallel_rows_are_undone_each_by_its_own():
    model, inputs = headed(), batch("bert", (3, 7))
    add(model, "b", INVERTIBLE.replace(inv_adapter="glow"), seed=5)
    single = []
    for name in "ab":
        model.set_active_adapters(name)
        model.active_head = "a"
        single.append(run(model, inputs))
    model.set_active_adapters("parallel(a, b)")
    model.active_head = "a"
    assert gap(run(model, inputs), torch.cat(single)) < 1e-5
    model.add_masked_lm_head("b")
    model.active_head = ("a", "b")
    with pytest.raises(UnsupportedError, match="undoes for all rows together"):
        model(**inputs)


def test_a_saved_head_says_the_same(tmp_path):
    model, inputs = (
        headed(layers=3, activation_function="tanh", layer_norm=False, sparse_prediction=True),
        batch("bert"),
    )
    model.save_adapter(tmp_path, "a")
    again = adapted("bert", None)
    again.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(again, inputs), run(model, inputs))
    assert again.heads[KEY].to_dict() == model.heads[KEY].to_dict() and again.heads[KEY].sparse
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.sites.word_table().zero_()
    assert torch.equal(run(twin, inputs), run(again, inputs))  # a copy looks at its own words


@pytest.mark.parametrize("arch", ["gpt2", "bart", "llama"])
def test_a_model_that_does_not_see_both_sides_is_refused(arch):
    with pytest.raises(UnsupportedError, match="does not see what follows a masked word"):
        adapted(arch, None).add_masked_lm_head("a")


def test_what_is_refused():
    with pytest.raises(ConfigError) as error:
        MaskedLMHead(8, 8, 20, layers=0, eps=0.0, activation="gulu")
    assert len(error.value.problems) == 3
    with pytest.raises(ConfigError, match="words have 16 numbers where its hidden states have 8; 2 layers are due"):
        MaskedLMHead(8, 16, 20, layers=1)
    with pytest.raises(UnsupportedError, match="add it to one with add_head"):
        head_from_dict(MaskedLMHead(8, 8, 20).to_dict())(
            SimpleNamespace(last_hidden_state=torch.ones(1, 2, 8)), {}, None
        )
    with pytest.raises(UnsupportedError, match="BertForMaskedLM has a prediction head of its own"):
        adapted("bert", None, auto=hf.AutoModelForMaskedLM).add_masked_lm_head("a")
    model, inputs = headed(), batch("bert")
    for beyond in (-1, model.base_model.config.vocab_size):
        with pytest.raises(DataError, match=f"A label is no word: {beyond}"):
            model(**inputs, labels=torch.full_like(inputs["input_ids"], beyond))
