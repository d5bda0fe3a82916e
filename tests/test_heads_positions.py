"""Prompts and prefixes under heads of every type: labels, spans and pooled vectors are those of the text.

Everything is computed once more by hand, a row at a time and without padding: the prompt's vectors put before the
embedded words and its positions cut off the bare model's output, or the prefix put before keys and values; then the
head's loss, in float64.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from adaptrain.adapter import key_of
from adaptrain.heads import ClassificationHead
from adaptrain.methods import PrefixTuningConfig, PromptTuningConfig
from matrix import adapted, base, batch, cache_argument, gap, randomise

K, LENGTHS = 3, (5, 7)
METHODS = {
    "prompt": PromptTuningConfig(prompt_length=K),
    "prefix": PrefixTuningConfig(prefix_length=K, bottleneck_size=8),
}
ADD = {
    "first": lambda model: model.add_head("a", ClassificationHead(32, 3, pooling="first")),
    "last": lambda model: model.add_head("a", ClassificationHead(32, 3, pooling="last")),
    "choice": lambda model: model.add_multiple_choice_head("a"),
    "tagging": lambda model: model.add_tagging_head("a", num_labels=3, layers=2),
    "qa": lambda model: model.add_qa_head("a"),
    "parsing": lambda model: model.add_dependency_parsing_head("a", num_labels=3),
    "causal_lm": lambda model: model.add_causal_lm_head("a", layers=2, bias=True),
    "masked_lm": lambda model: model.add_masked_lm_head("a"),
}
CASES = [
    (kind, arch, side)
    for kind in ADD
    for arch in ("bert", "gpt2", "llama")
    for side in ("right", "left")
    if kind != ("causal_lm" if arch == "bert" else "masked_lm")
]


def labelled(kind: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a head, with labels."""
    seen = inputs["attention_mask"].bool()
    start = seen.long().argmax(1)
    each = torch.arange(seen.numel()).view(seen.shape)
    more = {
        "first": lambda: {"labels": torch.tensor([2, 0])},
        "last": lambda: {"labels": torch.tensor([2, 0])},
        "choice": lambda: {"labels": torch.tensor([1])},
        "tagging": lambda: {"labels": (each % 3).masked_fill(~seen | (each % 2 == 0), -100)},
        "qa": lambda: {"start_positions": start + 1, "end_positions": start + 3},
        "parsing": lambda: {  # two words, of one piece and of two
            "word_starts": torch.stack([start + 1, start + 2, start + 4], 1),
            "labels_arcs": torch.tensor([[0, 1], [2, 0]]),
            "labels_rels": torch.tensor([[1, 2], [0, 1]]),
        },
        "causal_lm": lambda: {"labels": inputs["input_ids"].masked_fill(~seen, -100)},
        "masked_lm": lambda: {"labels": (each + 7).masked_fill(~seen | (each % 3 == 0), -100)},
    }
    return inputs | more[kind]()


# ---- hidden states by hand


def read_with_prompt(arch: str, model: Any, ids: Tensor, places: Tensor) -> Tensor:
    """What a row's words become behind a prompt: (1, words, hidden)."""
    (prompt,) = model.get_adapter("a").tensors().values()
    plain: Any = base(arch)
    if arch == "bert":  # behind the embedding module, so that it has no position
        words = plain.embeddings(input_ids=ids, position_ids=places)
        return plain.encoder(torch.cat([prompt[None], words], 1)).last_hidden_state[:, K:]
    words = plain.get_input_embeddings()(ids)
    return plain(inputs_embeds=torch.cat([prompt[None], words], 1)).last_hidden_state[:, K:]


def read_with_prefix(arch: str, model: Any, ids: Tensor, places: Tensor) -> Tensor:
    """What a row's words become with a prefix before keys and values."""
    (unit,) = {id(each): each for each in model.get_adapter("a").modules() if hasattr(each, "shares")}.values()
    found = unit.compute()  # (2 · layers, heads, K, size)
    plain: Any = base(arch)
    if arch != "bert":  # as words that were read before
        cache = DynamicCache(config=plain.config)
        for layer in range(2):
            cache.update(found[2 * layer][None], found[2 * layer + 1][None], layer)
        count = torch.arange(ids.shape[1])[None]  # but they have no position
        mask = torch.ones(1, K + ids.shape[1], dtype=torch.long)
        return plain(ids, **cache_argument(cache), position_ids=count, attention_mask=mask).last_hidden_state
    hidden = plain.embeddings(input_ids=ids, position_ids=places)
    for index, layer in enumerate(plain.encoder.layer):
        own = layer.attention.self
        query, key, value = (
            each(hidden).view(ids.shape[1], 4, 8).transpose(0, 1) for each in (own.query, own.key, own.value)
        )
        key, value = torch.cat([found[2 * index], key], 1), torch.cat([found[2 * index + 1], value], 1)
        mixed = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ value
        mixed = mixed.transpose(0, 1).reshape(1, ids.shape[1], 32)
        hidden = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + hidden)
        inner = F.gelu(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(layer.output.dense(inner) + hidden)
    return hidden


@cache
def by_hand(arch: str, method: str, side: str) -> Tensor:
    """Of all rows, at the text's own positions; zero in the padding."""
    model, inputs = adapted(arch, METHODS[method]), batch(arch, LENGTHS, side=side)
    seen = inputs["attention_mask"].bool()
    read = read_with_prompt if method == "prompt" else read_with_prefix
    hidden = torch.zeros(*seen.shape, 32, dtype=torch.float64)
    for row in range(len(seen)):
        places = seen[row].nonzero().T
        hidden[row, seen[row]] = read(arch, model, inputs["input_ids"][row : row + 1, seen[row]], places)[0]
    return hidden


# ---- losses by hand


def ce(scores: Tensor, label: Tensor | int) -> float:
    shares = scores.double().exp() / scores.double().exp().sum()
    return -float(shares[int(label)].log())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def loss_by_hand(kind: str, said: Any, given: dict[str, Tensor]) -> float:
    seen, rows = given["attention_mask"].bool(), range(2)
    if kind in ("first", "last", "choice"):
        return mean([ce(scores, label) for scores, label in zip(said, given["labels"], strict=True)])
    if kind == "qa":
        ends = [given["start_positions"], given["end_positions"]]
        first = seen.long().argmax(1)
        return mean([ce(said[row, seen[row], e], ends[e][row] - first[row]) for row in rows for e in (0, 1)])
    if kind == "parsing":
        arcs, rels = said
        heads, kinds = given["labels_arcs"], given["labels_rels"]
        words = [(row, word) for row in rows for word in (0, 1)]
        return mean([ce(arcs[i], heads[i]) for i in words]) + mean([ce(rels[i][heads[i]], kinds[i]) for i in words])
    if kind == "causal_lm":
        ids = given["input_ids"]
        pairs = [(row, place) for row in rows for place in range(6) if seen[row, place] and seen[row, place + 1]]
        return mean([ce(said[row, place], ids[row, place + 1]) for row, place in pairs])
    return mean([ce(said[tuple(at)], given["labels"][tuple(at)]) for at in (given["labels"] >= 0).nonzero()])


# ---- the law


@pytest.mark.parametrize(("kind", "arch", "side"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_head_reads_is_the_text(kind: str, arch: str, side: str, method: str) -> None:
    model, inputs = adapted(arch, METHODS[method]), batch(arch, LENGTHS, side=side)
    ADD[kind](model)
    randomise(model.heads, 0.3, seed=1)
    given = labelled(kind, inputs)
    with torch.no_grad():
        out = model(**given)
        hidden = by_hand(arch, method, side)
        head: Any = model.heads[key_of("a")]
        wanted = head(SimpleNamespace(last_hidden_state=hidden), given, given.get("labels")).logits
        if kind in ("first", "last"):  # which vector it is, by hand too
            seen = inputs["attention_mask"].bool()
            vectors = torch.stack([hidden[row, seen[row]][0 if kind == "first" else -1] for row in range(2)])
            assert gap(head.scores(vectors), wanted) < 1e-6
    if kind == "parsing":
        assert [part.shape[1] for part in out.logits] == [2, 2]
        gaps = [gap(one, other) for one, other in zip(out.logits, wanted, strict=True)]
    elif kind in ("first", "last", "choice"):
        gaps = [gap(out.logits, wanted)]
    else:
        assert out.logits.shape[:2] == inputs["input_ids"].shape
        seen = inputs["attention_mask"].bool()
        gaps = [gap(out.logits[seen], wanted[seen])]
    assert max(gaps) < 2e-5
    assert out.loss.item() == pytest.approx(loss_by_hand(kind, wanted, given), rel=1e-4)


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama"])
def test_without_the_adapter_the_same_head_says_something_else(arch: str) -> None:
    """The law above cannot hold by the prompt doing nothing."""
    for config in METHODS.values():
        model, inputs = adapted(arch, config), batch(arch, LENGTHS)
        ADD["tagging"](model)
        randomise(model.heads, 0.3, seed=1)
        seen = inputs["attention_mask"].bool()
        with torch.no_grad():
            one = model(**inputs).logits
            model.set_active_adapters(None)
            model.active_head = "a"
            assert gap(one[seen], model(**inputs).logits[seen]) > 1e-2
