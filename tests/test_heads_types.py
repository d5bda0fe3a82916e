"""Heads of every type: losses against closed forms, padding, labels that are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adaptrain.errors import CompositionError, ConfigError, DataError
from adaptrain.heads import (
    ClassificationHead,
    DependencyParsingHead,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    TaggingHead,
)
from matrix import METHODS, adapted, add, batch, gap, randomise, run

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


# ---- several labels


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


# ---- the next word


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
