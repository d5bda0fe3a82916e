"""Heads of every type: losses against closed forms, padding, prompts, labels that are refused, files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

import adaptrain
from adaptrain.adapter import key_of
from adaptrain.errors import CompositionError, ConfigError, DataError, UnsupportedError
from adaptrain.heads import (
    ClassificationHead,
    DependencyParsingHead,
    Head,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    TaggingHead,
    head_from_dict,
)
from adaptrain.new_heads import shifted
from matrix import ARCHITECTURES, METHODS, adapted, add, alone, batch, gap, randomise, run

KEY = key_of("a")
RIGHT, LEFT = torch.tensor([[1, 1, 1, 0, 0], [1] * 5]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
masks = pytest.mark.parametrize("mask", [RIGHT, LEFT], ids=["right", "left"])


def trained(head):
    randomise(head, 0.5, seed=1)
    return head.eval()


def outputs(rows: int = 2, positions: int = 5) -> SimpleNamespace:
    return SimpleNamespace(last_hidden_state=torch.randn(rows, positions, 8, generator=torch.manual_seed(0)))


def single(out: SimpleNamespace, mask: Tensor, row: int) -> SimpleNamespace:
    return SimpleNamespace(last_hidden_state=out.last_hidden_state[row : row + 1, mask[row].bool()])


def ce(scores: Tensor, label: int) -> float:
    """−log softmax, in float64 and by hand."""
    shares = scores.detach().double().exp() / scores.detach().double().exp().sum()
    return -float(shares[label].log())


# ---- several labels, images


def test_several_labels_are_judged_each_for_itself():
    head, out = trained(MultiLabelClassificationHead(8, 3)), outputs()
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    result = head(out, {}, labels)
    share = torch.sigmoid(result.logits.double())
    wanted = -(labels * share.log() + (1 - labels) * (1 - share).log()).mean()
    assert result.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for dtype in (torch.bool, torch.float64):
        assert head(out, {}, labels.to(dtype)).loss.item() == result.loss.item()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([[0, 1, 0], [0, 2, 0]]), "Row 1: the label 2 is outside 0 … 1"),
        (torch.tensor([[0.0, float("nan"), 0.0], [0, 0, 0]]), "Row 0: the label nan"),
        (torch.tensor([0, 1]), r"are \(2, 3\), a 0 or 1 for each row and class, not \(2,\)"),
    ],
)
def test_several_labels_that_are_none(labels, said):
    with pytest.raises(DataError, match=said):
        trained(MultiLabelClassificationHead(8, 3))(outputs(), {}, labels)


@pytest.mark.parametrize(
    ("num_labels", "labels", "said"),
    [
        (3, torch.tensor([0.0, 1.0]), "whole numbers, not torch.float32"),
        (3, torch.tensor([0, 1, 1]), r"are \(2,\), one for each row, not \(3,\)"),
        (1, torch.tensor([0.5, float("nan")]), "Row 1: the label is no finite number"),
        (1, torch.tensor([0.5]), "1 labels for 2 rows"),
    ],
)
def test_labels_of_a_classifier_that_are_none(num_labels, labels, said):
    with pytest.raises(DataError, match=said):
        trained(ClassificationHead(8, num_labels))(outputs(), {}, labels)


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


# ---- which vector


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


# ---- tags


@masks
def test_tags(mask):
    """Only tokens with a label count, and never padding."""
    head, out = trained(TaggingHead(8, 4, layers=2)), outputs()
    labels = torch.tensor([[-100, 1, 3, 0, 2], [2, -100, 0, 1, -100]])
    result = head(out, {"attention_mask": mask}, labels)
    due = [(r, p) for r in range(2) for p in range(5) if mask[r, p] and labels[r, p] >= 0]
    wanted = sum(ce(result.logits[r, p], int(labels[r, p])) for r, p in due) / len(due)
    assert result.loss.item() == pytest.approx(wanted, rel=1e-5)
    one = head(single(out, mask, 0), {}, labels[:1, mask[0].bool()])
    other = head(out, {"attention_mask": mask}, labels.index_fill(0, torch.tensor([1]), -100))
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    assert head(out, {}, torch.full_like(labels, -100)).loss.item() == 0


def test_tags_that_are_none():
    head, out = trained(TaggingHead(8, 4)), outputs()
    labels = torch.zeros(2, 5, dtype=torch.long)
    labels[1, 2] = 4
    with pytest.raises(DataError, match="Row 1: the label 4 is outside 0 … 3; -100 marks what is not predicted"):
        head(out, {}, labels)
    with pytest.raises(DataError, match=r"are \(2, 5\), one for each row and position, not \(2, 4\)"):
        head(out, {}, labels[:, 1:])


# ---- answers


@masks
def test_answers(mask):
    """Padding is no answer; a start or an end outside of the text is ignored, for itself."""
    head, out = trained(QuestionAnsweringHead(8)), outputs()
    inside = int(mask[0].argmax())
    spans = {"start_positions": torch.tensor([inside, 7]), "end_positions": torch.tensor([inside + 1, 4])}
    result = head(out, {"attention_mask": mask, **spans}, None)
    own = [result.start_logits[0, mask[0].bool()], result.end_logits[0, mask[0].bool()]]
    wanted = ce(own[0], 0) / 2 + (ce(own[1], 1) + ce(result.end_logits[1], 4)) / 2 / 2
    assert result.loss.item() == pytest.approx(wanted, rel=1e-5)
    both = torch.stack(list(spans.values()), -1)
    assert head(out, {"attention_mask": mask}, both).loss == result.loss
    one = head(single(out, mask, 0), {}, torch.tensor([[0, 1]]))
    assert gap(torch.stack(own, -1), one.logits[0]) < 1e-6
    assert bool((result.start_logits[~mask.bool()] < -1e30).all())
    for outside in (-1, 5, int(mask[0].argmin())):
        told = torch.tensor([[outside, outside], [outside if outside != int(mask[0].argmin()) else -1] * 2])
        assert head(out, {"attention_mask": mask}, told).loss.item() == 0


def test_answers_that_are_none():
    head, out, one = trained(QuestionAnsweringHead(8)), outputs(), torch.tensor([0, 1])
    with pytest.raises(DataError, match="start_positions and end_positions, or labels with both"):
        head(out, {"start_positions": one}, None)
    with pytest.raises(DataError, match="start_positions and end_positions, or labels with both"):
        head(out, {"start_positions": one, "end_positions": one}, torch.zeros(2, 2))
    with pytest.raises(DataError, match="whole numbers, not torch.float32"):
        head(out, {}, torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="num_labels is 3; a start and an end are 2"):
        QuestionAnsweringHead(8, 3)


# ---- choices


def test_choices_are_compared_within_a_question():
    head, out = trained(MultipleChoiceHead(8, 3)), outputs(6)
    result = head(out, {}, torch.tensor([2, 0]))
    scores = head.scores(out.last_hidden_state[:, 0]).view(2, 3)
    assert gap(result.logits, scores) == 0
    assert result.loss.item() == pytest.approx((ce(scores[0], 2) + ce(scores[1], 0)) / 2, rel=1e-5)
    with pytest.raises(DataError, match="6 rows are no multiple of the 4 choices"):
        trained(MultipleChoiceHead(8, 4))(out, {}, None)
    with pytest.raises(DataError, match="Row 1: the label 3 is outside 0 … 2"):
        head(out, {}, torch.tensor([2, 3]))
    with pytest.raises(ConfigError, match="num_choices is 1"):
        MultipleChoiceHead(8, 1)


def test_choices_may_have_an_axis_of_their_own():
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert", (7, 4, 5, 6))
    model.add_multiple_choice_head("a", num_choices=2)
    randomise(model.heads, 0.3, seed=1)
    flat = run(model, inputs)
    assert flat.shape == (2, 2)
    folded = {key: value.unflatten(0, (2, 2)) for key, value in inputs.items()}
    labels = torch.tensor([1, 0])
    with torch.no_grad():
        assert torch.equal(model(**folded, labels=labels).logits, flat)
        assert model(**folded, labels=labels).loss == model(**inputs, labels=labels).loss
    with pytest.raises(DataError, match="have 4 choices a question, and the head is for 2"):
        model(**{key: value.unflatten(0, (1, 4)) for key, value in inputs.items()})


def test_choices_in_branches():
    """The labels of a question go where its rows go."""
    model, inputs = adapted("bert", METHODS["lora"]), batch("bert", (7, 4, 5, 6))
    add(model, "b", METHODS["ia3"], seed=5)
    labels, single = torch.tensor([1, 0]), {}
    for name in "ab":
        model.add_multiple_choice_head(name, num_choices=2)
    randomise(model.heads, 0.3, seed=1)
    for name in "ab":
        model.set_active_adapters(name)
        with torch.no_grad():
            single[name] = [
                model(**{k: v[2 * q : 2 * q + 2] for k, v in inputs.items()}, labels=labels[q : q + 1]).loss
                for q in (0, 1)
            ]
    with torch.no_grad():
        model.set_active_adapters("parallel(a, b)")
        each = model(**inputs, labels=labels).head_outputs
        for name, output in zip("ab", each, strict=True):
            assert output.loss.item() == pytest.approx(float(sum(single[name])) / 2, rel=1e-4)
        model.set_active_adapters("batchsplit(a, b, sizes=[2, 2])")
        each = model(**inputs, labels=labels).head_outputs
        for q, (name, output) in enumerate(zip("ab", each, strict=True)):
            assert output.loss.item() == pytest.approx(float(single[name][q]), rel=1e-4)
        model.set_active_adapters("batchsplit(a, b, sizes=[1, 3])")
        with pytest.raises(CompositionError, match="not whole groups of 2 choices"):
            model(**inputs, labels=labels)
        with pytest.raises(CompositionError, match="4 labels for 4 rows, and the head 'a' has one for 2"):
            model(**inputs, labels=torch.zeros(4, dtype=torch.long))


# ---- trees


def tree() -> dict[str, Tensor]:
    return {
        "word_starts": torch.tensor([[1, 2, 3, -1], [1, 2, 4, 5]]),
        "labels_arcs": torch.tensor([[2, 0, -1], [3, 0, 2]]),
        "labels_rels": torch.tensor([[1, 3, -1], [0, 2, 1]]),
    }


def test_trees_by_hand():
    head, out, given = trained(DependencyParsingHead(8, 4)), outputs(), tree()
    result = head(out, given, None)
    loss, count = 0.0, 0
    for row, pieces in enumerate(([(1, 2), (2, 3)], [(1, 2), (2, 4), (4, 5)])):
        h = out.last_hidden_state[row].double()
        words = [h[0]] + [h[begin:end].mean(0) for begin, end in pieces]
        one = torch.ones(1, dtype=torch.double)
        for i, w in enumerate(words[1:]):
            arcs = torch.stack([torch.cat([w, one]) @ head.arcs.double() @ v for v in words])
            rels = torch.stack([torch.cat([w, one]) @ head.rels.double() @ torch.cat([v, one]) for v in words])
            assert gap(result.arc_preds[row, i, : len(words)], arcs) < 1e-4
            assert gap(result.rel_preds[row, i, : len(words)], rels) < 1e-4
            to = int(given["labels_arcs"][row, i])
            loss, count = loss + ce(arcs, to) + ce(rels[to], int(given["labels_rels"][row, i])), count + 1
    assert result.loss.item() == pytest.approx(loss / count, rel=1e-5)
    both = torch.stack([given["labels_arcs"], given["labels_rels"]], -1)
    assert head(out, {"word_starts": given["word_starts"]}, both).loss == result.loss


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tree_alone_is_the_tree_in_a_batch(side):
    head, out, given = trained(DependencyParsingHead(8, 4)), outputs(), tree()
    shift, mask = (0, RIGHT) if side == "right" else (2, LEFT)
    starts = given["word_starts"].clone()
    starts[0, :3] += shift
    whole = head(out, {"attention_mask": mask, "word_starts": starts}, None)
    one = head(single(out, mask, 0), {k: v[:1, : 3 if k == "word_starts" else 2] for k, v in given.items()}, None)
    assert gap(whole.arc_preds[:1, :2, :3], one.arc_preds) < 1e-5
    assert gap(whole.rel_preds[:1, :2, :3], one.rel_preds) < 1e-5
    given["labels_arcs"][1], given["labels_rels"][1] = -1, -1
    padded = head(out, {"attention_mask": mask, **given, "word_starts": starts}, None)
    assert padded.loss.item() == pytest.approx(one.loss.item(), rel=1e-5)


def test_a_fresh_parser_thinks_all_heads_equally_likely_and_learns():
    head, out, given = DependencyParsingHead(8, 4), outputs(), tree()
    result = head(out, given, None)
    wanted = (2 * torch.tensor(3.0).log() + 3 * torch.tensor(4.0).log()) / 5 + torch.tensor(4.0).log()
    assert result.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    result.loss.backward()
    assert bool(head.arcs.grad.any()) and bool(head.rels.grad.any())


@pytest.mark.parametrize(
    ("key", "at", "value", "said"),
    [
        ("word_starts", (0, 1), 1, "Row 0: word_starts must rise"),
        ("word_starts", (1, 3), 6, "Row 1: word_starts must rise, and lie within the 5 positions"),
        ("labels_arcs", (1, 0), 4, "Row 1: the arc 4 is outside 0 … 3"),
        ("labels_arcs", (0, 0), 3, "Row 0: the arc 3 is of, or to, a word"),
        ("labels_rels", (1, 0), 4, "Row 1: the relation 4 is outside 0 … 3"),
        ("labels_rels", (1, 0), -1, "Row 1: a word has an arc or a relation, not both"),
    ],
    ids=str,
)
def test_trees_that_are_none(key, at, value, said):
    given = tree()
    given[key][at] = value
    with pytest.raises(DataError, match=said):
        trained(DependencyParsingHead(8, 4))(outputs(), given, None)
    with pytest.raises(DataError, match="needs word_starts"):
        trained(DependencyParsingHead(8, 4))(outputs(), {}, None)


# ---- on models: a row alone, prompts, files, what is refused

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


# ---- language models

WRITERS = [
    arch for arch, row in ARCHITECTURES.items() if row.decoder or (row.encoder_decoder and row.auto is hf.AutoModel)
]


@pytest.mark.parametrize("arch", WRITERS)
def test_one_layer_is_the_output_embedding_that_is_tied(arch):
    """Scale and cap of the family included; an invertible adapter is undone before it."""
    row = ARCHITECTURES[arch]
    model, config = adapted(arch), row.config()
    config.tie_word_embeddings = True
    kind = hf.AutoModelForCausalLM if row.decoder else hf.AutoModelForSeq2SeqLM
    auto = hf.AutoModelForSpeechSeq2Seq if arch == "whisper" else kind
    lm = auto.from_config(config, attn_implementation=row.attention[0])
    lm.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    lm.tie_weights()
    lm = adaptrain.init(lm.eval())
    (model.add_causal_lm_head if row.decoder else model.add_seq2seq_lm_head)("a")
    inputs = batch(arch)
    for each in (model, lm):
        add(each, "b", METHODS["seq_bn_inv"])
        each.set_active_adapters("b")
    assert model.active_head == "a"
    assert gap(run(model, inputs), run(lm, inputs)) < 1e-5
    if not row.decoder:
        del inputs["decoder_input_ids"]
        labels = torch.tensor([[7, 8, 9, 11], [5, 6, -100, -100]])
        with torch.no_grad():
            assert model(**inputs, labels=labels).loss.item() == pytest.approx(
                lm(**inputs, labels=labels).loss.item(), rel=1e-5
            )


def test_the_next_word():
    """Labels one position later; neither padding nor what follows it counts, though it has a label."""
    for side in ("right", "left"):
        model, inputs = adapted("gpt2", METHODS["lora"]), batch("gpt2", (3, 7), side=side)
        model.add_causal_lm_head("a", layers=2, bias=True)
        randomise(model.heads, 0.3, seed=1)
        with torch.no_grad():
            out = model(**inputs, labels=inputs["input_ids"])
        seen, ids = inputs["attention_mask"].bool(), inputs["input_ids"]
        due = [(r, p) for r in range(2) for p in range(6) if seen[r, p] and seen[r, p + 1]]
        assert len(due) == 2 + 6
        wanted = sum(ce(out.logits[r, p], int(ids[r, p + 1])) for r, p in due) / len(due)
        assert out.loss.item() == pytest.approx(wanted, rel=1e-5)
        model.add_causal_lm_head("b", layers=2, bias=True, shift_labels=False)
        model.heads["<b>"].load_state_dict(model.heads["<a>"].state_dict())
        labels = torch.full_like(ids, -100)
        for r, p in due:
            labels[r, p] = ids[r, p + 1]
        with torch.no_grad():
            assert model(**inputs, labels=labels).loss.item() == pytest.approx(wanted, rel=1e-5)


def test_labels_of_words_that_are_none():
    model, inputs = adapted("gpt2"), batch("gpt2")
    model.add_causal_lm_head("a")
    labels = inputs["input_ids"].clone()
    labels[1, 5] = 100
    with pytest.raises(DataError, match="Row 1: A label is no word: 100"):
        model(**inputs, labels=labels)
    with pytest.raises(DataError, match="one for each row and position"):
        model(**inputs, labels=labels[:, 1:])


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


# ---- generation


@pytest.mark.parametrize("arch", WRITERS)
def test_a_named_head_generates_as_the_models_own_does(arch):
    """Under the active adapter, with the cache; of two layers as without one."""
    row = ARCHITECTURES[arch]
    model, config = adapted(arch), row.config()
    config.tie_word_embeddings = True
    kind = hf.AutoModelForCausalLM if row.decoder else hf.AutoModelForSeq2SeqLM
    auto = hf.AutoModelForSpeechSeq2Seq if arch == "whisper" else kind
    lm = auto.from_config(config, attn_implementation=row.attention[0])
    lm.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    lm.tie_weights()
    lm = adaptrain.init(lm.eval())
    (model.add_causal_lm_head if row.decoder else model.add_seq2seq_lm_head)("a")
    for each in (model, lm):
        add(each, "b", METHODS["seq_bn"])
        each.set_active_adapters("b")
    inputs = {key: value for key, value in batch(arch).items() if key not in ("decoder_input_ids", "position_ids")}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    keys = set(model.state_dict())
    found = model.generate(**inputs, **options)
    assert torch.equal(found, lm.generate(**inputs, **options))
    assert set(model.state_dict()) == keys
    model.set_active_adapters(None)
    model.active_head = "a"
    assert not torch.equal(model.generate(**inputs, **options), found)


@pytest.mark.parametrize("method", ["seq_bn_inv", "prefix_tuning_flat", "prompt_tuning"])
def test_two_layers_generate_with_and_without_a_cache_alike(method):
    model, inputs = adapted("gpt2", METHODS[method]), batch("gpt2")
    model.add_causal_lm_head("a", layers=2, bias=True)
    randomise(model.heads, 0.5, seed=1)
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    found = model.generate(**text, **options)
    assert torch.equal(found, model.generate(**text, **options, use_cache=False))
    first = run(model, inputs)[:, -1].argmax(-1)
    assert torch.equal(found[:, 7], first)
    model.delete_head("a")
    with pytest.raises(UnsupportedError, match="A bare GPT2Model writes nothing; activate one head that does"):
        model.generate(**text)
