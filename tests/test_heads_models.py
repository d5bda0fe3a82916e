"""Heads on models: which vector is read, a row alone, prompts, files, training, what is refused; heads of one's own."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

from adaptrain.adapter import key_of
from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.heads import Head, head_from_dict
from adaptrain.new_heads import shifted
from matrix import ARCHITECTURES, METHODS, adapted, alone, batch, gap, randomise, run

KEY = key_of("a")


# ---- images


def test_images():
    inputs = batch("vit")
    for options, labels in (({}, torch.tensor([2, 0])), ({"multilabel": True}, torch.eye(3)[:2])):
        model = adapted("vit", METHODS["lora"])
        model.add_image_classification_head("a", num_labels=3, **options)
        randomise(model.heads, 0.3, seed=1)
        with torch.no_grad():
            result = model(**inputs, labels=labels)
        loss = F.binary_cross_entropy_with_logits if options else F.cross_entropy
        assert result.loss.item() == pytest.approx(loss(result.logits, labels).item(), rel=1e-6)
        assert head_from_dict(model.heads[KEY].to_dict()).to_dict() == model.heads[KEY].to_dict()


# ---- which vector


def test_beits_pooler_is_read_where_it_is_asked_for():
    model = adapted("beit", METHODS["lora"])
    model.add_image_classification_head("a", num_labels=3, use_pooler=True)
    randomise(model.heads, 0.3, seed=1)
    inputs = batch("beit")
    found = run(model, inputs)
    with torch.no_grad():
        z = model.base_model(**inputs).pooler_output
    assert gap(found, model.heads[KEY].out(z)) < 1e-6
    with pytest.raises(UnsupportedError, match="has no pooler"):
        adapted("gpt2").add_classification_head("a", use_pooler=True)


@pytest.mark.parametrize("arch", ["wav2vec2", "hubert", "wav2vec2-stable"])
def test_sound_is_read_as_the_mean_over_its_frames(arch):
    model, inputs = adapted(arch, METHODS["lora"]), batch(arch, (3, 7))
    model.add_classification_head("a", num_labels=3, layers=1)
    randomise(model.heads, 0.3, seed=1)
    found = run(model, inputs)
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        means = torch.stack([hidden[0, :3].mean(0), hidden[1, :7].mean(0)])
        assert gap(found, model.heads[KEY].out(means)) < 1e-5
    assert gap(found[:1], run(model, alone(arch, inputs, 0))) < 1e-4


@pytest.mark.parametrize("arch", ["bart", "mbart", "t5", "marian"])
def test_an_encoder_decoder_is_read_at_its_last_end_of_text(arch):
    """mBART's texts go on behind it; a row without one is read at its last token."""
    model, inputs = adapted(arch, METHODS["lora"]), batch(arch, (5, 7, 6))
    eos = model.config.eos_token_id
    inputs["input_ids"][0, 1] = inputs["input_ids"][0, 3] = inputs["input_ids"][2, 2] = eos
    given = inputs.pop("decoder_input_ids")
    model.add_classification_head("a", num_labels=3, layers=1)
    randomise(model.heads, 0.3, seed=1)
    found = run(model, inputs)
    model.active_head = None
    start = model.config.decoder_start_token_id if arch != "mbart" else None
    begin = inputs["input_ids"].gather(1, inputs["attention_mask"].sum(1, keepdim=True) - 1)
    begin = begin if start is None else torch.full_like(begin, start)
    written = torch.cat([begin, inputs["input_ids"][:, :-1]], 1)
    hidden = run(model, inputs | {"decoder_input_ids": written})
    assert gap(found, model.heads[KEY].out(hidden[range(3), (3, 6, 2)])) < 1e-5
    model.active_head = "a"
    assert gap(run(model, inputs | {"decoder_input_ids": written}), found) < 1e-5
    assert run(model, inputs | {"decoder_input_ids": given}).shape == (3, 3)


# ---- every type: a row alone, prompts, files, what is refused

ADD = {
    "classification": lambda model: model.add_classification_head("a", num_labels=3),
    "multilabel": lambda model: model.add_classification_head("a", num_labels=3, multilabel=True),
    "choice": lambda model: model.add_multiple_choice_head("a"),
    "tagging": lambda model: model.add_tagging_head("a", num_labels=3, layers=2),
    "qa": lambda model: model.add_qa_head("a"),
    "parsing": lambda model: model.add_dependency_parsing_head("a", num_labels=3),
    "causal_lm": lambda model: model.add_causal_lm_head("a", layers=2, bias=True),
    "seq2seq_lm": lambda model: model.add_seq2seq_lm_head("a", layers=2),
}


def task(kind: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with labels, for a batch of two rows."""
    rows, positions = inputs["attention_mask"].shape
    seen = inputs["attention_mask"].bool()
    start = seen.long().argmax(1)
    each = torch.arange(rows * positions).view(rows, positions)
    labels = {
        "classification": lambda: {"labels": torch.tensor([2, 0])},
        "multilabel": lambda: {"labels": torch.eye(3)[:2]},
        "choice": lambda: {"labels": torch.tensor([1])},
        "tagging": lambda: {"labels": (each % 3).masked_fill(~seen, -100)},
        "qa": lambda: {"start_positions": start + 1, "end_positions": start + 2},
        "parsing": lambda: {
            "word_starts": torch.stack([start + 1, start + 2, start + 3], 1),
            "labels_arcs": torch.tensor([[0, 1], [2, 0]]),
            "labels_rels": torch.tensor([[1, 2], [0, 1]]),
        },
        "causal_lm": lambda: {"labels": inputs["input_ids"].masked_fill(~seen, -100)},
        "seq2seq_lm": lambda: {"labels": torch.tensor([[7, 8, 9], [5, 6, -100]])},
    }
    more = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
    return more | labels[kind]()


def said(out) -> Tensor:
    found = getattr(out, "logits", None)
    return torch.cat([each.flatten() for each in found]) if isinstance(found, tuple) else found


def fits(kind: str, arch: str) -> bool:
    row = ARCHITECTURES[arch]
    if kind == "seq2seq_lm" or row.encoder_decoder:
        return row.encoder_decoder and kind in ("classification", "multilabel", "qa", "seq2seq_lm")
    return row.decoder or kind != "causal_lm"


ON = [(kind, arch) for kind in ADD for arch in ("bert", "roberta", "gpt2", "llama", "bart", "t5") if fits(kind, arch)]


@pytest.mark.parametrize(("kind", "arch"), [pair for pair in ON if pair[0] != "choice"])
def test_the_loss_of_a_padded_row_is_that_of_the_row_alone(kind, arch):
    for side in ("left", "right") if ARCHITECTURES[arch].decoder else ("right",):
        model, inputs = adapted(arch, METHODS["double_seq_bn"]), batch(arch, (4, 7), side=side)
        ADD[kind](model)
        randomise(model.heads, 0.3, seed=1)
        given = task(kind, inputs)
        alone_, whole = {}, {}
        for key, value in given.items():
            if value.dim() == 2 and value.shape[1] == 7:
                alone_[key] = value[:1, inputs["attention_mask"][0].bool()]
            else:
                places = key in ("start_positions", "end_positions", "word_starts")
                alone_[key] = value[:1] - (3 if places and side == "left" else 0)
            whole[key] = value.clone()
        if "labels" in whole and kind not in ("classification", "multilabel"):
            whole["labels"][1] = -100
        if kind == "qa":
            whole["start_positions"][1] = whole["end_positions"][1] = -1
        if kind == "parsing":
            whole["labels_arcs"][1] = whole["labels_rels"][1] = -1
        with torch.no_grad():
            one = model(**alone_)
            if kind in ("classification", "multilabel"):
                assert gap(model(**whole).logits[:1], one.logits) < 1e-5
            else:
                assert model(**whole).loss.item() == pytest.approx(one.loss.item(), rel=1e-4)


@pytest.mark.parametrize(("kind", "arch"), ON)
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning_flat"])
def test_prompts_and_prefixes_shift_nothing(kind, arch, method):
    """The loss is that of the head on the hidden states of the text alone."""
    model, inputs = adapted(arch, METHODS[method]), batch(arch, (4, 7))
    ADD[kind](model)
    randomise(model.heads, 0.3, seed=1)
    given = task(kind, inputs)
    with torch.no_grad():
        out = model(**given)
        model.active_head = None
        asked = {key: value for key, value in given.items() if key in inputs}
        if ARCHITECTURES[arch].encoder_decoder:
            source = given["labels"] if kind == "seq2seq_lm" else given["input_ids"]
            asked["decoder_input_ids"] = shifted(model.base_model, source, {})
        hidden = model(**asked)
        seen = asked.get("decoder_input_ids", asked["input_ids"])
        assert hidden.last_hidden_state.shape[:2] == seen.shape
        again = model.heads[KEY](hidden, given, given.get("labels"))
    assert gap(said(out), said(again)) < 1e-5
    assert out.loss.item() == pytest.approx(again.loss.item(), rel=1e-5)


@pytest.mark.parametrize(("kind", "arch"), [(kind, arch) for kind, arch in ON if arch in ("bert", "gpt2", "t5")])
def test_a_saved_head_says_the_same(kind, arch, tmp_path):
    model, inputs = adapted(arch, METHODS["lora"]), batch(arch, (4, 7))
    ADD[kind](model)
    randomise(model.heads, 0.3, seed=1)
    model.save_adapter(tmp_path, "a")
    again = adapted(arch)
    again.load_adapter(tmp_path, set_active=True)
    given = task(kind, inputs)
    with torch.no_grad():
        one, other = model(**given), again(**given)
    assert torch.equal(said(one), said(other)) and one.loss == other.loss
    assert again.heads[KEY].to_dict() == model.heads[KEY].to_dict()


@pytest.mark.parametrize(("kind", "arch"), [(kind, arch) for kind, arch in ON if arch in ("bert", "llama", "bart")])
def test_heads_train(kind, arch):
    model, inputs = adapted(arch, METHODS["lora"]), batch(arch, (4, 7))
    ADD[kind](model)
    randomise(model.heads, 0.3, seed=1)
    model.train_adapter("a")
    model(**task(kind, inputs)).loss.backward()
    missing = [name for name, parameter in model.trainable_parameters() if parameter.grad is None]
    assert missing == []


REFUSED = [
    ("vit", "classification", "reads images, .* add an image_classification head"),
    ("clip", "classification", "reads texts and images"),
    ("whisper", "classification", "is an encoder-decoder"),
    ("vit", "tagging", "reads images"),
    ("wav2vec2", "qa", "reads sound"),
    ("bart", "tagging", "is an encoder-decoder"),
    ("t5", "choice", "is an encoder-decoder"),
    ("t5", "parsing", "is an encoder-decoder"),
    ("bert", "causal_lm", "sees the next word already"),
    ("bart", "causal_lm", "is an encoder-decoder"),
    ("gpt2", "seq2seq_lm", "has no encoder and decoder"),
    ("bert-bert", "classification", "has a prediction head of its own"),
]


@pytest.mark.parametrize(("arch", "kind", "said"), REFUSED)
def test_heads_without_a_meaning_are_refused(arch, kind, said):
    with pytest.raises(UnsupportedError, match=said):
        ADD[kind](adapted(arch))


def test_an_image_head_on_texts_is_refused():
    with pytest.raises(UnsupportedError, match="A bert reads texts, and a image_classification head is for images"):
        adapted("bert").add_image_classification_head("a")


# ---- heads of one's own


class Lengths(Head):
    """How long a text is, times what is learnt."""

    kind = "lengths_of_texts"

    def __init__(self, hidden_size: int, power: float = 1.0) -> None:
        super().__init__()
        self.hidden_size, self.power = hidden_size, power
        self.factor = torch.nn.Parameter(torch.ones(()))

    def to_dict(self):
        return {"type": self.kind, "hidden_size": self.hidden_size, "power": self.power}

    def forward(self, outputs, inputs, labels):
        logits = self.factor * inputs["attention_mask"].sum(1, keepdim=True) ** self.power
        return hf.modeling_outputs.SequenceClassifierOutput(logits=logits)


def test_a_head_of_ones_own(tmp_path):
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert", (3, 7))
    model.register_custom_head("lengths", Lengths)
    model.add_custom_head("lengths", "a", power=2.0)
    assert model.heads[KEY].hidden_size == 32
    assert run(model, inputs).tolist() == [[9.0], [49.0]]
    model.save_adapter(tmp_path, "a")
    again = adapted("bert")
    again.load_adapter(tmp_path, set_active=True)
    assert run(again, inputs).tolist() == [[9.0], [49.0]]
    model.register_custom_head("made", lambda model, name, **options: Lengths(model.config.hidden_size, **options))
    model.add_custom_head("made", "a", overwrite_ok=True, power=1.0)
    assert run(model, inputs).tolist() == [[3.0], [7.0]]


def test_heads_of_ones_own_that_are_none():
    model = adapted("bert")
    with pytest.raises(ConfigError, match="no custom head 'lenghts'"):
        model.add_custom_head("lenghts", "a")
    with pytest.raises(ConfigError, match="neither a subclass of Head nor a function"):
        model.register_custom_head("x", torch.nn.Linear)
    with pytest.raises(ConfigError, match="has no kind"):
        model.register_custom_head("x", type("Nameless", (Head,), {}))
    model.register_custom_head("x", lambda model, name: torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="makes a Linear, which is no Head"):
        model.add_custom_head("x", "a")
    with pytest.raises(ConfigError, match="the type of head 'tagging' is TaggingHead already"):
        type("Other", (Head,), {"kind": "tagging"})
