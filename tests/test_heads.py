"""Classification heads: what is read, what is lost, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch.nn import functional as F

from adaptrain.errors import AdapterNameError, CheckpointError, ConfigError, DataError, UnsupportedError
from adaptrain.heads import ClassificationHead, head_from_dict
from matrix import ARCHITECTURES, METHODS, adapted, alone, batch, cache_argument, gap, randomise, run


def head(**options) -> ClassificationHead:
    made = ClassificationHead(8, **options)
    randomise(made, 0.5, seed=1)
    return made.eval()


def outputs(rows: int = 3, positions: int = 5) -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(last_hidden_state=torch.randn(rows, positions, 8))


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(seen) for seen in row] for row in rows])


# ---- which vector is read


@pytest.mark.parametrize(
    ("pooling", "rows", "read"),
    [
        ("first", ("11100", "11111", "10000"), (0, 0, 0)),
        ("last", ("11100", "11111", "10000"), (2, 4, 0)),  # padded on the right
        ("last", ("00111", "11111", "00001"), (4, 4, 4)),  # on the left
        ("last", ("01100", "11111", "00100"), (2, 4, 2)),  # on both sides
        ("last", ("10101", "11011", "01000"), (4, 4, 1)),  # holes inside
    ],
)
def test_the_position_that_is_read(pooling, rows, read):
    out, made = outputs(), head(pooling=pooling, layers=1)
    logits = made(out, {"attention_mask": mask(*rows)}, None).logits
    z = torch.stack([out.last_hidden_state[row, position] for row, position in enumerate(read)])
    assert torch.equal(logits, F.linear(z, made.out.weight, made.out.bias))


def test_without_a_mask_the_last_position_is_read():
    out, made = outputs(), head(pooling="last", layers=1)
    assert torch.equal(made(out, {}, None).logits, made.out(out.last_hidden_state[:, -1]))
    assert torch.equal(made(out, {"attention_mask": None}, None).logits, made.out(out.last_hidden_state[:, -1]))


def test_an_encoder_decoder_reads_by_the_decoders_own_mask():
    out, made = outputs(3, 4), head(pooling="last", layers=1)
    inputs = {"attention_mask": mask("1111111", "1110000", "1000000"), "decoder_input_ids": torch.ones(3, 4)}
    assert torch.equal(made(out, inputs, None).logits, made.out(out.last_hidden_state[:, -1]))
    inputs["decoder_attention_mask"] = mask("1100", "1111", "1000")
    z = torch.stack([out.last_hidden_state[row, position] for row, position in enumerate((1, 3, 0))])
    assert torch.equal(made(out, inputs, None).logits, made.out(z))


HEADED = [arch for arch, row in ARCHITECTURES.items() if row.reads == "texts" and row.auto is hf.AutoModel]
SIDES = [(arch, "right") for arch in HEADED] + [(arch, "left") for arch, row in ARCHITECTURES.items() if row.decoder]


@pytest.mark.parametrize(("arch", "side"), SIDES)
def test_a_padded_row_is_classified_as_it_is_alone(arch, side):
    model, inputs = adapted(arch, METHODS["double_seq_bn"]), batch(arch, (3, 7), side=side)
    row = ARCHITECTURES[arch]
    if row.encoder_decoder:
        del inputs["decoder_input_ids"]  # the decoder reads the text, one position later
    model.add_classification_head("a", num_labels=3)
    randomise(model.heads, 0.3, seed=1)
    short, long = (run(model, alone(arch, inputs, row)) for row in (0, 1))
    assert gap(run(model, inputs), torch.cat([short, long])) < 1e-5
    reads_last = row.decoder or arch == "clip_text_model"
    assert model.heads["<a>"].pooling == ("eos" if row.encoder_decoder else "last" if reads_last else "first")


# ---- layers and losses


def test_the_layers_are_the_formula():
    out, made = outputs(), head(layers=3, num_labels=4, activation="relu")
    z = out.last_hidden_state[:, 0]
    for layer in made.hidden:
        z = (z @ layer.weight.T + layer.bias).clamp(min=0)
    assert torch.allclose(made(out, {}, None).logits, z @ made.out.weight.T + made.out.bias, atol=1e-6)
    assert [tuple(layer.weight.shape) for layer in made.hidden] == [(8, 8), (8, 8)]


def test_the_loss_of_classes_is_the_mean_cross_entropy():
    out, made, labels = outputs(), head(num_labels=3), torch.tensor([2, 0, 1])
    result = made(out, {}, labels)
    shares = result.logits.exp() / result.logits.exp().sum(-1, keepdim=True)
    assert result.loss.item() == pytest.approx(-shares[range(3), labels].log().mean().item(), rel=1e-5)
    assert made(out, {}, None).loss is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (3, 1)], ids=str)
def test_the_loss_of_one_label_is_the_mean_squared_error(dtype, shape):
    out, made = outputs(), head(num_labels=1)
    labels = torch.tensor([3.0, -1.0, 0.0]).to(dtype).view(shape)
    result = made(out, {}, labels)
    assert result.logits.shape == (3, 1)
    expected = (result.logits[:, 0] - torch.tensor([3.0, -1.0, 0.0])).square().mean()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 3, 1], [-1, 0, 1], [-100, 0, 0]], ids=str)
def test_a_label_outside_is_refused_with_the_range(labels):
    with pytest.raises(DataError, match=r"Row [01]: the label -?\d+ is outside 0 … 2"):
        head(num_labels=3)(outputs(), {}, torch.tensor(labels))


def test_no_rows_no_labels():
    out = outputs(0)
    result = head(num_labels=3, pooling="last")(
        out, {"attention_mask": torch.ones(0, 5)}, torch.zeros(0, dtype=torch.long)
    )
    assert result.logits.shape == (0, 3)


def test_scores_are_float32_on_a_bf16_base_and_under_autocast():
    made = head(num_labels=2)
    out = SimpleNamespace(last_hidden_state=outputs().last_hidden_state.bfloat16())
    exact = made(SimpleNamespace(last_hidden_state=out.last_hidden_state.float()), {}, None).logits
    with torch.autocast("cpu", torch.bfloat16):
        result = made(out, {}, torch.tensor([0, 1, 1]))
    assert result.logits.dtype == result.loss.dtype == torch.float32
    assert torch.equal(result.logits, exact)


def test_dropout_falls_in_training_only():
    out, made = outputs(), head(dropout=0.5)
    assert torch.equal(made(out, {}, None).logits, made(out, {}, None).logits)
    made.train()
    assert not torch.equal(made(out, {}, None).logits, made(out, {}, None).logits)


def test_fresh_weights():
    torch.manual_seed(0)
    made = ClassificationHead(64, 3, layers=2)
    assert made.hidden[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(parameter.any() for name, parameter in made.named_parameters() if name.endswith("bias"))


# ---- configs


def test_a_head_is_made_again_from_its_config():
    made = head(num_labels=2, layers=3, activation="gelu", dropout=0.25, pooling="last", id2label={0: "no", 1: "yes"})
    values = made.to_dict()
    assert values["id2label"] == ["no", "yes"]
    again = head_from_dict(values)
    again.load_state_dict(made.state_dict())
    assert again.to_dict() == values
    assert torch.equal(again.eval()(outputs(), {}, None).logits, made(outputs(), {}, None).logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_labels": 0}, "num_labels is 0; it must be at least 1"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"activation": "tahn"}, "did you mean 'tanh'"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "id2label names 2 labels, num_labels is 3"),
    ],
    ids=str,
)
def test_impossible_heads_are_refused(options, said):
    with pytest.raises(ConfigError, match=f"classification head: .*{said}"):
        ClassificationHead(8, **options)


def test_all_mistakes_of_a_head_at_once():
    with pytest.raises(ConfigError) as caught:
        ClassificationHead(8, num_labels=0, layers=0, dropout=-1, activation="x")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"type": "clasification"}, "did you mean 'classification'"),
        ({}, "classification"),
        ({"type": "classification"}, "hidden_size"),
        ({"type": "classification", "hidden_size": 8, "colour": 1}, "colour"),
        ({"type": "classification", "hidden_size": 8, "num_labels": "2"}, "classification"),
    ],
    ids=str,
)
def test_a_config_that_is_not_a_heads_is_refused(values, said):
    with pytest.raises(CheckpointError, match=said):
        head_from_dict(values)


# ---- heads on a model


def test_heads_are_added_activated_and_replaced():
    model, inputs = adapted("bert"), batch("bert")
    assert model.active_head is None
    hidden = run(model, inputs)
    model.add_classification_head("one", num_labels=2)
    model.add_classification_head("two", num_labels=4)
    assert model.active_head == "two"
    assert run(model, inputs).shape == (2, 4)
    model.active_head = "one"
    assert run(model, inputs).shape == (2, 2)
    model.active_head = None
    assert torch.equal(run(model, inputs), hidden)
    with pytest.raises(AdapterNameError, match="no head 'tow', did you mean 'two'"):
        model.active_head = "tow"
    assert model.active_head is None
    with pytest.raises(AdapterNameError, match="'one' already; give overwrite_ok=True"):
        model.add_classification_head("one")
    model.add_classification_head("one", num_labels=7, overwrite_ok=True)
    assert run(model, inputs).shape == (2, 7)


def test_activating_an_adapter_activates_its_head():
    model = adapted("bert")
    for name in ("a", "b"):
        model.add_adapter(name, "lora")
    model.add_classification_head("a", num_labels=2)
    model.add_classification_head("x", num_labels=3)
    model.set_active_adapters("b")
    assert model.active_head == "x"  # b has none
    model.set_active_adapters("stack(b, a)")
    assert model.active_head == "a"


def test_the_heads_dropout_is_the_base_models_unless_given():
    config = ARCHITECTURES["bert"].config()
    assert config.hidden_dropout_prob == 0.1
    model = adapted("bert")
    model.add_classification_head("a")
    model.add_classification_head("b", dropout=0.0)
    assert [model.heads[f"<{name}>"].dropout for name in "ab"] == [0.1, 0.0]


@pytest.mark.parametrize("name", ["", " a", "a\n", 3])
def test_a_head_needs_a_name(name):
    with pytest.raises(AdapterNameError, match="cannot name a"):
        adapted("bert").add_classification_head(name)


def test_a_model_with_a_head_of_its_own_takes_no_other():
    model = adapted("bert", auto=hf.AutoModelForSequenceClassification)
    with pytest.raises(UnsupportedError, match="BertForSequenceClassification has a prediction head of its own"):
        model.add_classification_head("a")
    labels = torch.tensor([0, 1])
    out = model(**batch("bert"), labels=labels)
    assert out.loss.item() == pytest.approx(F.cross_entropy(out.logits, labels).item())


def test_inputs_may_come_by_position():
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert")
    by_name = run(model, inputs)
    with torch.no_grad():
        assert torch.equal(model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state, by_name)
        model.add_classification_head("a")
        by_position = model(inputs["input_ids"], inputs["attention_mask"]).logits
    assert torch.equal(by_position, run(model, inputs))


def test_hidden_states_and_attentions_pass_through_a_head():
    model = adapted("bert", METHODS["lora"], "eager")
    model.add_classification_head("a")
    out = model(**batch("bert"), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3
    assert len(out.attentions) == 2


def test_a_decoder_fills_no_cache_for_a_head():
    model = adapted("gpt2", METHODS["lora"])
    seen = []
    model.base_model.register_forward_hook(lambda m, a, out: seen.extend(cache_argument(out).values()))
    run(model, batch("gpt2"))
    model.add_classification_head("a")
    run(model, batch("gpt2"))
    assert seen[0] is not None
    assert seen[1] is None


def test_token_types_may_come_by_position_too():
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert")
    model.add_classification_head("a")
    types = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        by_position = model(inputs["input_ids"], inputs["attention_mask"], types).logits
    assert torch.equal(by_position, run(model, inputs | {"token_type_ids": types}))


def test_return_dict_may_be_given_with_a_head():
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert")
    model.add_classification_head("a")
    with torch.no_grad():
        assert torch.equal(model(**inputs, return_dict=True).logits, run(model, inputs))


def test_a_deleted_head_is_gone():
    model = adapted("bert")
    model.add_classification_head("one")
    model.add_classification_head("two")
    model.delete_head("one")
    assert model.active_head == "two"
    model.delete_head("two")
    assert model.active_head is None
    assert run(model, batch("bert")).shape == (2, 7, 32)
    with pytest.raises(AdapterNameError, match="no head 'two'"):
        model.delete_head("two")
