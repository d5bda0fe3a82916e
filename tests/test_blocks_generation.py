"""Blocks inside `generate`: each row is what its own adapter generates alone, however often a row is repeated for beams
and for what is returned of it. In float64, so that no two words are equally likely."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers as hf

from adaptrain.composition import Average, BatchSplit, Composition, Fuse, MultiTask, Parallel, Split, Stack
from adaptrain.context import AdapterSetup, generating
from adaptrain.errors import CompositionError, UnsupportedError
from matrix import METHODS, adapted, add, batch, gap, long, randomise

CAUSAL, SEQ2SEQ = hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM
CACHE = "cache" if "cache" in inspect.signature(hf.LlamaModel.forward).parameters else "past_key_values"
NEW = 4
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
MODES = {"greedy": {}, "beams": {"num_beams": 3}, "returns": {"num_beams": 3, "num_return_sequences": 2}}
SAMPLED = {"do_sample": True, "num_return_sequences": 2}
LENGTHS = (6, 3, 5)

EVERY = pytest.mark.parametrize(
    ("arch", "method"),
    [
        ("gpt2", "lora"),
        ("gpt2", "prompt_tuning"),
        ("bart", "prefix_tuning"),
        *(long(arch, method) for arch in ("gpt2", "bart") for method in ("seq_bn_inv", "noreft", "bn-gated")),
        *(long(*pair) for pair in (("bart", "lora"), ("bart", "prompt_tuning"), ("gpt2", "prefix_tuning"))),
        *(long(arch, method) for arch in ("llama", "mistral", "t5", "bert-bert") for method in ("lora", "seq_bn")),
    ],
)


def several(arch: str, method: str, count: int = 3, **bases):
    auto = CAUSAL if arch in ("gpt2", "llama", "mistral") else SEQ2SEQ
    model = adapted(arch, **({"auto": auto} | bases))
    for seed, name in enumerate("abc"[:count]):
        add(model, name, METHODS[method], seed=20 + seed)
    return model.double()


def texts(arch: str) -> dict[str, torch.Tensor]:
    return {key: batch(arch, LENGTHS)[key] for key in ("input_ids", "attention_mask")}


def written(model, tree: Composition, inputs, **options) -> torch.Tensor:
    """What is generated, the prompt cut off, (rows · returned, NEW)."""
    torch.manual_seed(0)
    with AdapterSetup(tree):
        found = model.generate(**inputs, **OPTIONS | options)
    return found[:, -NEW:]


@EVERY
@pytest.mark.parametrize("mode", [long("greedy"), long("beams"), "returns"])
def test_each_row_is_what_its_adapter_generates_alone(arch, method, mode):
    model, inputs, more = several(arch, method), texts(arch), MODES[mode]
    a, b, c = (written(model, name, inputs, **more) for name in "abc")
    n = more.get("num_return_sequences", 1)
    assert not torch.equal(a, b)
    for tree, expected in (
        (Parallel("a", "b"), [a, b]),
        (BatchSplit("a", "b", sizes=[1, None]), [a[:n], b[n:]]),
        (BatchSplit("a", "b", sizes=[2, 1]), [a[: 2 * n], b[2 * n :]]),
        (Parallel("c", BatchSplit("a", "b", sizes=[1, 2])), [c, a[:n], b[n:]]),
        (BatchSplit("c", MultiTask("a", "b"), sizes=[1, 2]), [c[:n], b[n : 2 * n], a[2 * n :]]),
    ):
        tasks = {"task_ids": ["a", "b", "a"]} if "multitask" in str(tree) else {}
        assert torch.equal(written(model, tree, inputs, **more, **tasks), torch.cat(expected)), tree
    tree = BatchSplit("a", "b", sizes=[2, 1])
    assert torch.equal(written(model, tree, inputs, **more, use_cache=False), torch.cat([a[: 2 * n], b[2 * n :]]))


@EVERY
@pytest.mark.parametrize("mode", ["beams"])
def test_a_padded_row_is_what_it_is_alone(arch, method, mode):
    """Under blocks that give all rows the same."""
    model, inputs, more = several(arch, method), texts(arch), MODES[mode]
    trees = [Stack("a", "b")] + ([] if method == "seq_bn_inv" else [Average("a", "b", weights=[3, 1])])
    for tree in trees:
        together = written(model, tree, inputs, **more)
        for row, seen in enumerate(inputs["attention_mask"].bool()):
            single = {key: value[row : row + 1, seen] for key, value in inputs.items()}
            assert torch.equal(written(model, tree, single, **more), together[row : row + 1]), (tree, row)


def test_a_fusion_generates_with_the_cache_what_it_does_without():
    model, inputs = several("gpt2", "seq_bn", 2), texts("gpt2")
    model.add_adapter_fusion(["a", "b"])
    model.double()
    for fusion in model.fusions.values():
        randomise(fusion, 0.3, seed=5)
    tree = BatchSplit("a", Fuse("a", "b"), sizes=[1, 2])
    a, whole = (written(model, each, inputs, num_beams=3) for each in ("a", Fuse("a", "b")))
    for use in (True, False):
        assert torch.equal(written(model, tree, inputs, num_beams=3, use_cache=use), torch.cat([a[:1], whole[1:]]))


@pytest.mark.parametrize("method", ["lora", "seq_bn", long("noreft"), long("mtl_lora")])
@pytest.mark.parametrize("arch", ["gpt2", "t5", long("llama"), long("bart")])
def test_a_split_goes_on_where_its_prompt_ends(arch, method):
    """The positions of a cache are counted: with it the same as without."""
    model, inputs = several(arch, method), texts(arch)
    for tree in (Split("a", "b", sizes=[2, None]), Split("c", Split("a", "b", sizes=[1, None]), sizes=[2, None])):
        for more in MODES.values():
            cached, plain = (written(model, tree, inputs, **more, use_cache=use) for use in (True, False))
            assert torch.equal(cached, plain), tree
    if arch == "gpt2":  # all that is generated belongs to the first
        tree = Split("a", "b", sizes=[6 + NEW, None])
        assert torch.equal(written(model, tree, inputs), written(model, "a", inputs))


@EVERY
def test_what_is_sampled_has_its_own_adapters_probabilities(arch, method):
    """Each row of what is returned, read again by the adapter that wrote it."""
    model, inputs = several(arch, method), texts(arch)
    for tree, names in (
        (Parallel("a", "b"), "aaaaaabbbbbb"),
        (BatchSplit("a", "b", sizes=[1, 2]), "aabbbb"),
    ):
        with AdapterSetup(tree):
            torch.manual_seed(0)
            outputs = model.generate(**inputs, **OPTIONS | SAMPLED, return_dict_in_generate=True, output_logits=True)
        logits = torch.stack(outputs.logits, 1)
        for at, name in enumerate(names):
            row = at // 2 % len(LENGTHS)
            given = {key: value[row : row + 1] for key, value in inputs.items()}
            words = outputs.sequences[at : at + 1, :-1]
            if model.config.is_encoder_decoder:
                given["decoder_input_ids"] = words
            else:
                mask = torch.cat([given["attention_mask"], torch.ones(1, NEW - 1, dtype=torch.long)], 1)
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                given = {"input_ids": words, "attention_mask": mask, "position_ids": positions}
            prompt = 1 if model.config.is_encoder_decoder else max(LENGTHS)
            with AdapterSetup(name), generating(prompt, 1), torch.no_grad():
                told = model(**given).logits[:, -NEW:]
            assert gap(told[0], logits[at]) < 1e-5, (tree, at)  # generate hands out float32


@pytest.mark.parametrize("method", ["seq_bn_inv", "lora"])
def test_a_named_head_writes_for_each_row_what_it_does_alone(method):
    """The head stays the active one, and undoes what each row's own adapter has done to the embeddings."""
    model, inputs = several("gpt2", method, 2, auto=hf.AutoModel), texts("gpt2")
    model.add_causal_lm_head("head")
    model.double()
    for more in MODES.values():
        singles = []
        for name in "ab":
            with AdapterSetup(name, head_setup="head"):
                singles.append(model.generate(**inputs, **OPTIONS, **more))
        a, b = singles
        n = more.get("num_return_sequences", 1)
        for tree, tasks, expected in (
            (Parallel("a", "b"), None, [a, b]),
            (BatchSplit("a", "b", sizes=[2, 1]), None, [a[: 2 * n], b[2 * n :]]),
            (MultiTask("a", "b"), [1, 0, 0], [b[:n], a[n:]]),
        ):
            with AdapterSetup(tree, head_setup="head"):
                found = model.generate(**inputs, **OPTIONS, **more, task_ids=tasks)
            assert torch.equal(found, torch.cat(expected)), (tree, more)
    assert model.active_head == "head"


# ---- what is refused


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (BatchSplit("a", "b", sizes=[2, 2]), r"divides 4 rows, and there are 3"),
        (Parallel("c", BatchSplit("a", "b", sizes=[3, 3])), r"divides 6 rows, and there are 3"),
        (Split("a", "b", sizes=[3, 3]), r"split.*no place for the positions that are generated.*None"),
        (Split("a", "b", sizes=[None, 2]), r"split.*no place for the positions that are generated.*None"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_a_word_is_written(tree, expected):
    model, inputs, steps = several("gpt2", "lora"), texts("gpt2"), []
    before = written(model, "a", inputs)

    def count(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        steps.append(ids.shape)
        return scores

    with pytest.raises(CompositionError, match=expected):
        written(model, tree, inputs, num_beams=2, logits_processor=[count])
    assert not steps
    assert torch.equal(written(model, "a", inputs), before)


def test_a_generation_that_goes_on_with_some_rows_alone_is_refused():
    """As Whisper's does with long recordings: which adapter a row belongs to is lost then."""
    model, inputs = several("gpt2", "lora"), texts("gpt2")
    fewer = {key: value[:2] for key, value in inputs.items()}
    for tree in (Parallel("a", "b"), BatchSplit("a", "b", sizes=[1, None])):
        with generating(6, 6), AdapterSetup(tree), pytest.raises(CompositionError, match="6 rows .* 2 of them"):
            model(**fewer)
    with generating(6, 6), AdapterSetup(Stack("a", "b")):
        model(**fewer)  # nothing is divided


def test_a_sequence_that_goes_on_needs_a_last_size_that_takes_the_rest():
    model, ids = several("llama", "lora"), batch("llama", (6, 6))["input_ids"]
    with AdapterSetup(Split("a", "b", sizes=[2, None])), torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :4], use_cache=True)
        second = model(ids[:, 4:], **{CACHE: first[CACHE]})
    assert gap(torch.cat([first.logits, second.logits], 1), whole) < 1e-10
    with AdapterSetup(Split("a", "b", sizes=[None, 2])), torch.no_grad(), pytest.raises(CompositionError, match="None"):
        model(ids[:, 4:], **{CACHE: first[CACHE]})


def test_heads_of_several_branches_write_nothing():
    model = several("gpt2", "lora", 2, auto=hf.AutoModel)
    for name in "ab":
        model.add_causal_lm_head(name)
    model.set_active_adapters(Parallel("a", "b"))
    assert model.active_head == ("a", "b")
    with pytest.raises(UnsupportedError, match="activate one head"):
        model.generate(texts("gpt2")["input_ids"], max_new_tokens=1)
