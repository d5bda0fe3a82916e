"""Adapter folders: what they hold, names of every kind, and every way in which one can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import adaptrain
from adaptrain.checkpoint import read_adapter_config
from adaptrain.errors import AdapterNameError, AdaptrainError, CheckpointError, OutputError
from adaptrain.files import read_json, read_tensors, write_json, write_tensors
from adaptrain.methods import LoRAConfig
from matrix import METHODS, adapted, add, base, batch, randomise, run

CONFIG, TENSORS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_TENSORS = "head_config.json", "head.safetensors"
CLASSIFIER = hf.AutoModelForSequenceClassification


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a LoRA and a head, made by bert."""
    model = adapted("bert", METHODS["lora"])
    model.add_classification_head("a", num_labels=3, id2label={0: "x", 1: "y", 2: "z"})
    randomise(model.heads, 0.3, seed=1)
    model.set_base_identity(name="tiny", revision="r1", fingerprint="f00")
    model.save_adapter(tmp_path / "saved", "a")
    return tmp_path / "saved"


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


# ---- what a folder holds


def test_a_folder_says_what_it_is(saved):
    values = read_json(saved / CONFIG)
    assert list(values) == ["format", "name", "config", "base_model", "versions"]
    assert values["format"] == "adaptrain/1"
    assert values["name"] == "a"
    assert values["config"] == METHODS["lora"].to_dict()
    assert values["base_model"] == {
        "name": "tiny",
        "revision": "r1",
        "fingerprint": "f00",
        "model_type": "bert",
        "hidden_size": 32,
    }
    assert values["versions"] == {
        "adaptrain": adaptrain.__version__,
        "torch": torch.__version__,
        "transformers": hf.__version__,
    }
    head = read_json(saved / HEAD_CONFIG)
    assert head["config"]["type"] == "classification"
    assert head["config"]["id2label"] == ["x", "y", "z"]
    file = read_adapter_config(saved)
    assert (file.name, file.config, file.head) == ("a", METHODS["lora"], head["config"])
    assert file.base["fingerprint"] == "f00"


def test_saving_again_replaces_and_leaves_no_parts(saved):
    model = adapted("bert", METHODS["lora"])
    before = run(model, batch("bert"))
    model.save_adapter(saved, "a", with_head=False)
    assert {path.name for path in saved.iterdir()} == {CONFIG, TENSORS}
    other = adapted("bert")
    other.load_adapter(saved, set_active=True, with_head=False)
    assert torch.equal(run(other, batch("bert")), before)


def test_saving_without_a_head_leaves_no_old_head(saved):
    adapted("bert", METHODS["lora"]).save_adapter(saved, "a")
    other = adapted("bert")
    other.load_adapter(saved, set_active=True)
    assert other.active_head is None


def test_without_its_head(saved):
    model = adapted("bert")
    model.load_adapter(saved, set_active=True, with_head=False)
    assert list(model.heads) == []
    assert run(model, batch("bert")).shape == (2, 7, 32)


def test_loading_replaces_an_adapter_of_the_name(saved):
    model = adapted("bert", METHODS["prefix_tuning"])
    model.load_adapter(saved, with_head=False)
    assert model.get_adapter("a").config == METHODS["lora"]
    assert model.config._attn_implementation == "sdpa"  # the prefix is gone
    assert torch.equal(run(model, batch("bert")), run(adapted("bert", METHODS["lora"]), batch("bert")))


def test_an_adapter_goes_where_the_model_is_and_trains(saved):
    model = adapted("bert")
    model.train()
    model.load_adapter(saved)
    assert model.get_adapter("a").training
    model.train_adapter("a")
    assert {name.split(".")[0] for name, _ in model.trainable_parameters()} == {"adapters", "heads"}


@pytest.mark.parametrize(
    "auto", [hf.AutoModelForCausalLM, hf.AutoModelForMaskedLM, CLASSIFIER], ids=lambda a: a.__name__
)
def test_an_adapter_of_a_model_class_loads_into_another(auto, tmp_path):
    """Canonical names do not know the class: no `bert.` in front."""
    arch = "gpt2" if auto is hf.AutoModelForCausalLM else "bert"
    with_head = adapted(arch, METHODS["lora-everywhere"], auto=auto)
    with_head.save_adapter(tmp_path, "a")
    assert all(key.startswith(("encoder.", "decoder.")) for key in load_file(tmp_path / TENSORS))
    plain = adapted(arch)
    plain.load_adapter(tmp_path, set_active=True, with_head=False)
    inputs = batch(arch)
    with torch.no_grad():
        expected = with_head.base_model.base_model(**inputs).last_hidden_state  # the body alone, still adapted
    assert torch.equal(run(plain, inputs), expected)


def test_a_models_own_head_is_saved_beside_the_adapter(tmp_path):
    model = adapted("bert", METHODS["seq_bn"], auto=CLASSIFIER)
    model.train_adapter("a")
    assert {name for name, _ in model.trainable_parameters() if name.startswith("base_model")} == {
        "base_model.classifier.weight",
        "base_model.classifier.bias",
    }
    randomise(model.base_model.classifier, 0.5, seed=9)
    model.eval().save_adapter(tmp_path, "a")
    assert read_json(tmp_path / HEAD_CONFIG)["config"] == {
        "type": "own",
        "model_class": "BertForSequenceClassification",
    }
    fresh = adapted("bert", auto=CLASSIFIER)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(fresh, batch("bert")), run(model, batch("bert")))
    without = adapted("bert", auto=CLASSIFIER)
    without.load_adapter(tmp_path, set_active=True, with_head=False)
    assert torch.equal(without.base_model.classifier.weight, base("bert", auto=CLASSIFIER).classifier.weight)


@pytest.mark.parametrize("auto", [hf.AutoModel, CLASSIFIER, hf.AutoModelForMaskedLM], ids=lambda a: a.__name__)
def test_full_fine_tuning_round_trip(auto, tmp_path):
    model = adapted("bert", METHODS["full"], auto=auto)
    randomise(model.base_model, 0.2, seed=31)
    model.save_adapter(tmp_path, "a")
    expected = run(model, batch("bert"))
    fresh = adapted("bert", auto=auto)
    assert not torch.allclose(run(fresh, batch("bert")), expected)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(fresh, batch("bert")), expected)
    sizes = sum(tensor.numel() for file in tmp_path.glob("*.safetensors") for tensor in load_file(file).values())
    assert sizes == sum(parameter.numel() for parameter in model.base_model.parameters())


def test_tied_weights_are_saved_once(tmp_path):
    model = adapted("gpt2", METHODS["full"], auto=hf.AutoModelForCausalLM)
    model.save_adapter(tmp_path, "a")
    keys = set(load_file(tmp_path / TENSORS))
    assert "transformer.wte.weight" in keys
    assert "lm_head.weight" not in keys
    randomise(model.base_model, 0.2, seed=31)
    model.save_adapter(tmp_path, "a")
    fresh = adapted("gpt2", auto=hf.AutoModelForCausalLM)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(run(fresh, batch("gpt2")), run(model, batch("gpt2")))


# ---- names


NAMES = [
    "sst2",
    "sst2.v1",
    "sst2%2Ev1",
    "sst2,mrpc",
    "sst",
    "español",
    "日本語",
    "a b",
    "<a>",
    "50%",
    "50%25",
    "train",
    "forward",
    "%2E",
]


def test_names_of_every_kind_are_kept_apart(tmp_path):
    model, inputs = adapted("bert"), batch("bert")
    expected = {}
    for seed, name in enumerate(NAMES):
        add(model, name, METHODS["lora"], seed=seed)
        model.set_active_adapters(name)
        expected[name] = run(model, inputs)
        model.save_adapter(tmp_path / str(seed), name)
    assert model.adapter_names() == NAMES
    fresh = adapted("bert")
    for seed, name in enumerate(NAMES):
        assert fresh.load_adapter(tmp_path / str(seed)) == name
    for name in NAMES:
        fresh.set_active_adapters(name)
        assert torch.equal(run(fresh, inputs), expected[name])
    fresh.set_active_adapters(None)
    for name in NAMES[:3]:
        fresh.delete_adapter(name)
    assert fresh.adapter_names() == NAMES[3:]
    fresh.set_active_adapters("sst")
    assert torch.equal(run(fresh, inputs), expected["sst"])


@pytest.mark.parametrize("name", ["", " a", "a ", "a\tb", "a\n", "f(x)", "it's", 'a"b', None, 3])
def test_what_cannot_be_a_name(name):
    model = adapted("bert")
    with pytest.raises(AdapterNameError, match="cannot name an adapter"):
        model.add_adapter(name, "lora")
    assert model.adapter_names() == []


@pytest.mark.parametrize("name", [" b", "b\n"], ids=repr)
def test_load_as_takes_no_other_names_than_add_adapter(saved, name):
    model = adapted("bert", METHODS["par_bn"], name="mine")
    before = fingerprint(model)
    with pytest.raises(AdapterNameError):
        model.load_adapter(saved, load_as=name)
    assert unchanged(before, fingerprint(model))


# ---- what is refused


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


# ---- files


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = adapted("bert", METHODS["lora"])
    with pytest.raises(OutputError, match="Cannot write .*file"):
        model.save_adapter(tmp_path / "file" / "folder", "a")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": "ü"})
    assert read_json(path) == {"a": "ü"}

    def full(self, *_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": "ü"}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_tensors_are_written_contiguous_and_equal(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).T.requires_grad_(True)
    write_tensors(tmp_path / "t.safetensors", {"x": tensor})
    read = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(read["x"], tensor)
    assert not read["x"].requires_grad
    with pytest.raises(CheckpointError, match="There is no file"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="There is no file"):
        read_json(tmp_path / "none.json")


def test_an_unknown_adapter_cannot_be_saved(tmp_path):
    with pytest.raises(AdapterNameError, match="'b'.*a"):
        adapted("bert", LoRAConfig()).save_adapter(tmp_path, "b")
    assert list(tmp_path.iterdir()) == []
    assert issubclass(AdapterNameError, AdaptrainError)
