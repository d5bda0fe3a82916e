"""The attention registry: our names in front of the model's own, masks that are explicit, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import adaptrain
from adaptrain import attention
from adaptrain.errors import UnsupportedError
from adaptrain.state import AttentionState
from matrix import ARCHITECTURES, METHODS, adapted, add, base, batch, gap, randomise, run

PREFIX = METHODS["prefix_tuning"]
REGISTERED = [arch for arch, row in ARCHITECTURES.items() if len(row.attention) > 1]


@pytest.mark.parametrize("arch", REGISTERED)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_models_own_implementation_comes_back(arch, implementation):
    model = adapted(arch, METHODS["lora"], implementation)
    assert model.config._attn_implementation == implementation  # LoRA needs no seam
    add(model, "p", PREFIX)
    add(model, "q", PREFIX)
    assert model.config._attn_implementation == f"adaptrain_{implementation}"
    model.delete_adapter("p")
    assert model.config._attn_implementation == f"adaptrain_{implementation}"
    model.delete_adapter("q")
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("arch", REGISTERED)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [True, False], ids=["padded", "no-mask"])
def test_our_names_change_nothing_by_themselves(arch, implementation, masked):
    inputs = batch(arch, (6, 4) if masked else (6, 6))
    if not masked:
        inputs.pop("attention_mask", None)
    plain, ours = base(arch, implementation), base(arch, implementation)
    attention.install(ours)
    assert torch.equal(run(ours, inputs), run(plain, inputs))
    attention.uninstall(ours)
    assert ours.config._attn_implementation == implementation
    attention.uninstall(ours)  # twice is once
    assert torch.equal(run(ours, inputs), run(plain, inputs))


def test_installing_twice_is_installing_once():
    model = base("bert")
    attention.install(model)
    attention.install(model)
    assert model.config._attn_implementation == "adaptrain_sdpa"


def test_an_implementation_that_takes_no_prefix_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "mine", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model = adapted("bert")
    model.base_model.config._attn_implementation = "mine"
    with pytest.raises(UnsupportedError) as caught:
        model.add_adapter("p", PREFIX)
    assert all(word in str(caught.value) for word in ("'mine'", "sdpa, eager", "bert", "attn_implementation='sdpa'"))


def test_a_refused_prefix_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "mine", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert")
    model.base_model.config._attn_implementation = "mine"
    expected = run(model, inputs)
    with pytest.raises(UnsupportedError):
        model.add_adapter("p", PREFIX)
    assert model.adapter_names() == ["a"]
    assert torch.equal(run(model, inputs), expected)


def test_a_site_is_not_part_of_the_base_model():
    model = adapted("bert", PREFIX)
    module = model.base_model.encoder.layer[0].attention.self
    assert "_adaptrain_site" in vars(module)
    assert not any("adaptrain" in name for name, _ in model.base_model.named_modules())
    assert not any("adaptrain" in key for key in model.base_model.state_dict())
    attention.mark(module, None)
    attention.mark(module, None)
    assert "_adaptrain_site" not in vars(module)


def test_the_same_prefix_is_not_seen_by_another_model():
    one, other = adapted("bert", PREFIX), base("bert")
    expected = run(other, batch("bert"))
    attention.install(other)
    assert torch.equal(run(other, batch("bert")), expected)
    assert gap(run(one, batch("bert")), expected) > 0.1


@pytest.mark.parametrize(
    ("queries", "keys", "prefix", "rows"),
    [
        (3, 3, 2, ["11100", "11110", "11111"]),
        (2, 4, 1, ["11110", "11111"]),  # over a filled cache
        (1, 3, 2, ["11111"]),
        (2, 2, 0, ["10", "11"]),
    ],
)
def test_the_causal_mask_behind_a_prefix(queries, keys, prefix, rows):
    mask = attention._causal_mask(queries, keys, keys + prefix, torch.device("cpu"))
    assert mask.shape == (1, 1, queries, keys + prefix)
    assert ["".join(str(int(seen)) for seen in row) for row in mask[0, 0]] == rows


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "mistral"])
def test_no_mask_is_a_mask_of_ones(arch, implementation):
    model, inputs = adapted(arch, PREFIX, implementation), batch(arch, (6, 6))
    masked = run(model, inputs)
    del inputs["attention_mask"]
    assert gap(run(model, inputs), masked) < 1e-10


@pytest.mark.parametrize("arch", ["gpt2", "llama", "bart"])
def test_under_our_names_a_causal_mask_is_never_left_out(arch):
    """An absent one lines queries up with the first keys, which are the prefix."""
    model, inputs, seen = base(arch), batch(arch, (6, 6)), []
    del inputs["attention_mask"]
    attention.install(model)
    layer = {"gpt2": lambda: model.h[0].attn, "llama": lambda: model.layers[0].self_attn}.get(
        arch, lambda: model.decoder.layers[0].self_attn
    )()
    layer.register_forward_pre_hook(lambda m, a, kw: seen.append(kw.get("attention_mask")), with_kwargs=True)
    run(model, inputs)
    size = 5 if arch == "bart" else 6
    assert seen[0].shape[-2:] == (size, size)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("inner", ["sdpa", "eager"])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (2, 5), (1, 3)])
def test_an_absent_mask_behind_a_prefix_is_causal_all_the_same(inner, queries, keys):
    """For models that leave the mask out in spite of our name."""
    plain = base("llama", inner)
    module = plain.layers[0].self_attn
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, queries, 12), torch.randn(1, 2, keys, 12), torch.randn(1, 2, keys, 12)
    prefix = torch.randn(2, 1, 2, 3, 12)

    class Site:
        def change(self, state: AttentionState) -> AttentionState:
            return state.extend_left(3, visible=True, keys=prefix[0], values=prefix[1])

    attention.mark(module, Site())
    options = {"scaling": 12**-0.5, "dropout": 0.0}
    found = attention._attend(inner)(module, query, key, value, None, **options)[0]
    k, v = (torch.cat([p, x], 2).repeat_interleave(2, 1) for p, x in zip(prefix, (key, value), strict=True))
    hidden = torch.ones(queries, keys).triu(keys - queries + 1).bool()
    scores = (query @ k.transpose(-1, -2) * 12**-0.5).masked_fill(torch.nn.functional.pad(hidden, (3, 0)), -1e9)
    assert gap(found, (scores.softmax(-1) @ v).transpose(1, 2)) < 1e-10


def test_attentions_are_returned_with_the_prefix_in_front():
    model, inputs = adapted("bert", PREFIX, "eager"), batch("bert")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions
    assert len(weights) == 2
    for each in weights:
        assert each.shape == (2, 4, 7, 3 + 7)
        assert gap(each.sum(-1), torch.ones(2, 4, 7)) < 1e-10
        assert (each[1, ..., 3 + 4 :] == 0).all()  # padding stays out of sight
        assert (each[..., :3] > 0).all()


def test_a_decoder_with_bert_inside_stays_causal():
    """BERT as a decoder: the same table, a causal mask."""
    config = hf.BertConfig(**{**ARCHITECTURES["bert"].config().to_dict(), "is_decoder": True})
    plain = hf.AutoModel.from_config(config).eval()
    randomise(plain, 0.15, seed=1)
    model, inputs = adaptrain.init(plain).eval(), batch("bert", (6, 6))
    add(model, "p", PREFIX)
    model.set_active_adapters("p")
    for given in (inputs, {"input_ids": inputs["input_ids"]}):
        before = run(model, given)
        changed = given["input_ids"].clone()
        changed[:, 4] += 1
        after = run(model, {**given, "input_ids": changed})
        assert gap(after[:, :4], before[:, :4]) < 1e-10
        assert gap(after[:, 4:], before[:, 4:]) > 1e-2


def test_two_models_with_one_config_keep_their_own_prefixes():
    config, inputs = ARCHITECTURES["bert"].config(), batch("bert")
    models = [adaptrain.init(hf.BertModel(config)).eval() for _ in range(2)]
    for model in models:
        add(model, "p", PREFIX)
        model.set_active_adapters("p")
    expected = run(models[1], inputs)
    models[0].delete_adapter("p")
    assert torch.equal(run(models[1], inputs), expected)


def test_another_implementation_chosen_later_keeps_the_prefix_or_is_refused():
    model, inputs = adapted("bert", PREFIX), batch("bert")
    expected = run(model, inputs)
    model.base_model.set_attn_implementation("eager")
    try:
        found = run(model, inputs)
    except UnsupportedError:
        return
    assert gap(found, expected) < 1e-10
