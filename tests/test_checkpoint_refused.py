"""Adapter folders that are refused: every way in which one can be wrong, and a model that stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import adaptrain
from adaptrain.errors import AdapterNameError, CheckpointError
from matrix import METHODS, adapted, base, batch, run
from tiny_folder import CLASSIFIER, CONFIG, HEAD_CONFIG, HEAD_TENSORS, TENSORS, save_folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a LoRA and a head, made by bert."""
    return save_folder(tmp_path / "saved")


def fingerprint(model: adaptrain.AdaptedModel) -> tuple:
    """All that a failed load might have changed."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.base_model.modules())
    with torch.no_grad():
        out = run(model, batch("bert"))
    return state, hooks, out, model.adapter_names(), model.active_adapters, model.active_head, list(model.heads)


def unchanged(before: tuple, after: tuple) -> bool:
    (state, hooks, out, *names), (state2, hooks2, out2, *names2) = before, after
    same = list(state) == list(state2) and all(torch.equal(state[key], state2[key]) for key in state)
    return same and hooks == hooks2 and torch.equal(out, out2) and names == names2


def refused(folder: Path, *said: str, model: adaptrain.AdaptedModel | None = None, **options) -> None:
    """Loading must raise a CheckpointError with these words, and leave the model exactly as it was."""
    model = model or adapted("bert", METHODS["par_bn"], name="mine")
    before = fingerprint(model)
    with pytest.raises(CheckpointError) as caught:
        model.load_adapter(folder, set_active=True, **options)
    message = str(caught.value)
    assert all(word in message for word in said), message
    assert unchanged(before, fingerprint(model))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def retensor(path: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("name", [" b", "b\n"], ids=repr)
def test_load_as_takes_no_other_names_than_add_adapter(saved, name):
    model = adapted("bert", METHODS["par_bn"], name="mine")
    before = fingerprint(model)
    with pytest.raises(AdapterNameError):
        model.load_adapter(saved, load_as=name)
    assert unchanged(before, fingerprint(model))


# ---- files that are damaged, or not of this model


@pytest.mark.parametrize("head", [True, False], ids=["with-head", "without"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("encoder.1.attention.value.lora.B"), ["'encoder.1.attention.value.lora.B' is missing"]),
        (lambda t: t.clear(), ["'encoder.0.attention.query.lora.A' is missing", "and 3 more"]),
        (
            lambda t: t.update({"encoder.1.attention.valu.lora.B": torch.ones(32, 3)}),
            ["'encoder.1.attention.valu.lora.B' has no place", "did you mean 'encoder.1.attention.value.lora.B'"],
        ),
        (
            lambda t: t.update({"encoder.0.attention.query.lora.A": torch.ones(4, 32)}),
            ["'encoder.0.attention.query.lora.A' is (4, 32), this model needs (3, 32)"],
        ),
    ],
    ids=["missing", "empty", "extra", "shape"],
)
def test_tensors_that_do_not_fit(saved, change, said, head):
    retensor(saved / TENSORS, change)
    refused(saved, "'a'", *said, with_head=head)


def test_tensors_that_do_not_fit_name_the_folder(saved):
    edit(saved / CONFIG, lambda values: values["config"].update(r=5))
    refused(saved, str(saved), "'encoder.0.attention.query.lora.A' is (3, 32), this model needs (5, 32)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("out.bias"), ["out.bias"]),
        (lambda t: t.update(extra=torch.ones(1)), ["extra"]),
        (lambda t: t.update({"out.weight": torch.ones(2, 32)}), ["out.weight"]),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_head_that_does_not_fit(saved, change, said):
    retensor(saved / HEAD_TENSORS, change)
    refused(saved, HEAD_TENSORS, *said)
    adapted("bert").load_adapter(saved, with_head=False)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (CONFIG, lambda v: v.update(format="adaptrain/9"), ["'adaptrain/9'", "this version reads adaptrain/1"]),
        (CONFIG, lambda v: v.pop("format"), ["None", "adaptrain/1"]),
        (CONFIG, lambda v: v.pop("name"), ["'name'"]),
        (CONFIG, lambda v: v.pop("config"), ["'config'"]),
        (CONFIG, lambda v: v.pop("base_model"), ["'base_model'"]),
        (CONFIG, lambda v: v.update(config=["lora"]), ["`method:`"]),
        (CONFIG, lambda v: v.update(config={"method": "bottleneck"}), ["reduction_factor"]),
        (CONFIG, lambda v: v["config"].update(method="lorra"), ["'lorra'", "'lora'"]),
        (CONFIG, lambda v: v["config"].update(r=0), ["r is 0"]),
        (CONFIG, lambda v: v["config"].update(rank=3), ["'rank'"]),
        (CONFIG, lambda v: v["config"].update(leave_out=[0, 1]), ["does not fit"]),
        (CONFIG, lambda v: v["base_model"].update(model_type="roberta"), ["model_type roberta", "tiny", "bert"]),
        (CONFIG, lambda v: v["base_model"].update(hidden_size=64), ["hidden_size 64", "32"]),
        (HEAD_CONFIG, lambda v: v["config"].update(type="tagger"), ["'tagger'", "classification"]),
        (HEAD_CONFIG, lambda v: v["config"].update(num_labels=5, id2label=None), [HEAD_TENSORS, "out.weight"]),
        (HEAD_CONFIG, lambda v: v["config"].update(colour=1), ["colour"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_does_not_fit(saved, name, change, said):
    edit(saved / name, change)
    refused(saved, str(saved) if name == CONFIG else "", *said)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (HEAD_CONFIG, lambda v: v.pop("config")),
        (HEAD_CONFIG, lambda v: v.update(config=None)),
        (HEAD_CONFIG, lambda v: v["config"].update(layers=0)),
        (CONFIG, lambda v: v.update(config=None)),
        (CONFIG, lambda v: v.update(base_model=None)),
        (CONFIG, lambda v: v.update(name=None)),
    ],
    ids=["no-head", "null-head", "headless-layers", "null", "no-base", "no-name"],
)
def test_a_config_that_is_no_config(saved, name, change):
    edit(saved / name, change)
    refused(saved)


@pytest.mark.parametrize("name", [CONFIG, HEAD_CONFIG])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[1]", "holds list, not a JSON object"),
        (b"\xff\xfe", "Cannot read"),
    ],
    ids=["cut-off", "empty", "list", "not-text"],
)
def test_a_file_that_is_not_json(saved, name, content, said):
    (saved / name).write_bytes(content)
    refused(saved, str(saved / name), said)


@pytest.mark.parametrize("name", [TENSORS, HEAD_TENSORS])
@pytest.mark.parametrize("damage", ["cut-off", "empty", "text", "missing"])
def test_a_file_that_is_not_tensors(saved, name, damage):
    path = saved / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut-off": path.read_bytes()[:-50], "empty": b"", "text": b"hello, world"}[damage])
    refused(saved, str(path), "There is no file" if damage == "missing" else "damaged or not safetensors")


def test_folders_that_are_none(tmp_path, saved):
    refused(tmp_path / "nothing", "There is no adapter folder", "nothing")
    refused(tmp_path, "has no adapter_config.json, so it is not an adapter folder")
    refused(Path("/a/b/c"), "There is no adapter folder /a/b/c")
    refused(Path("./here"), "here")


def test_a_hub_id_that_cannot_be_had_is_one_line():
    model = adapted("bert")
    with pytest.raises(CheckpointError) as caught:
        model.load_adapter("nobody/no-such-adapter-anywhere")
    assert "'nobody/no-such-adapter-anywhere'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_architecture(tmp_path):
    adapted("gpt2", METHODS["lora"]).save_adapter(tmp_path, "a")
    refused(tmp_path, "model_type gpt2", "bert")


def test_a_named_head_does_not_fit_a_model_that_has_its_own(saved):
    model = adapted("bert", METHODS["par_bn"], auto=CLASSIFIER, name="mine")
    refused(saved, "BertForSequenceClassification has a head of its own", "with_head=False", model=model)
    assert model.load_adapter(saved, with_head=False) == "a"


def test_a_models_own_head_does_not_fit_another_class(tmp_path):
    adapted("bert", METHODS["lora"], auto=CLASSIFIER).save_adapter(tmp_path, "a")
    refused(tmp_path, HEAD_TENSORS, "its head is that of BertForSequenceClassification", "classifier.weight")


def test_full_fine_tuning_of_another_size(tmp_path):
    adapted("bert", METHODS["full"]).save_adapter(tmp_path, "a")
    config = base("bert").config
    config.intermediate_size = 64
    other = adaptrain.init(hf.AutoModel.from_config(config)).eval()
    refused(tmp_path, "it is not this base model", "encoder.layer.0.intermediate.dense.weight", model=other)


def test_a_model_with_more_layers(saved):
    config = base("bert").config
    config.num_hidden_layers = 3
    other = adaptrain.init(hf.AutoModel.from_config(config)).eval()
    refused(saved, "'encoder.2.attention.query.lora.A' is missing", model=other)
