"""`adaptrain average`: saved folders in, a folder out that loads, and is evaluated with nothing else given."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny_run
from adaptrain.cli import candidates
from adaptrain.cli.main import main
from adaptrain.cli.verbs import VERBS
from adaptrain.files import read_json, read_tensors, write_json
from adaptrain.methods import IA3Config, LoRAConfig
from adaptrain.mixture import STRATEGIES
from adaptrain.training.run import train
from matrix import METHODS, adapted, add, batch, gap, run


def said(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one task, and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    base, mirror = tiny_run.save_base(folder / "base"), tiny_run.save_data(folder / "mirror")

    def made(**more):
        config = tiny_run.run_config(base, mirror, folder / "outputs", adapter={"method": "lora", "alpha": 3}, **more)
        return train(config, display=tiny_run.Recorder()).folder

    return [made(seed=1), made(seed=2), made(task=tiny_run.NUMBER, max_steps=2)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Folders without a task or a head, and the model they are from."""
    folder = tmp_path_factory.mktemp("bare")
    model = adapted("bert")
    configs = {
        "a": METHODS["lora"],
        "b": METHODS["lora"],
        "wide": LoRAConfig(r=5, alpha=2),
        "ia3": IA3Config(),
        "pissa": METHODS["pissa"],
    }
    for seed, (name, config) in enumerate(configs.items(), start=2):
        add(model, name, config, seed=seed)
        model.save_adapter(folder / name, name)
    return folder, model


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Runs


def test_the_average_of_two_runs_is_evaluated_with_nothing_else_given(capsys, runs):
    one, two, _ = runs
    code, out, err = said(capsys, "average", one, two, "--weights", "3,1", "--out", "mean")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "linear of 2 lora, heads too",
        "weight  adapter",
        f"  0.75  {one}",
        f"  0.25  {two}",
        "saved: mean",
        "next:  adaptrain eval mean",
    ]
    names = {"adapter_config.json", "adapter.safetensors", "head_config.json", "head.safetensors", "task.json"}
    assert {path.name for path in Path("mean").iterdir()} == names | {"average.json"}
    assert [path.name for path in Path().iterdir()] == ["mean"]
    for file in ("adapter.safetensors", "head.safetensors"):
        first, second, mean = (read_tensors(folder / file) for folder in (one, two, Path("mean")))
        assert all(gap(mean[key], 0.75 * first[key] + 0.25 * second[key]) < 1e-6 for key in mean)

    code, out, err = said(capsys, "eval", "mean")
    scores = [read_json(folder / "result.json")["score"] for folder in (one, two)]
    assert code == 0
    assert out.startswith("mood, split 'validation', 50 rows")
    assert "training reported" not in out  # nobody has reported this one's score
    reported = ", ".join(f"{score:.8f}" for score in scores)
    assert err == f"note: an average of 2 adapters, for which training reported {reported}\n"
    assert said(capsys, "eval", "mean", "split=test")[2] == ""

    assert said(capsys, "average", one, "mean", "--out", "deeper")[0] == 0  # an average can be averaged
    code, _, err = said(capsys, "eval", "deeper")
    assert (code, err) == (0, "")


def test_the_average_of_a_run_with_itself_predicts_what_the_run_did(capsys, runs):
    one = runs[0]
    for strategy in (["linear"], ["lora_delta_w_svd", "--svd-rank", "9"], ["dare", "--density", "1"]):
        assert said(capsys, "average", one, one, "--out", "same", "--strategy", *strategy)[0] == 0
        out = said(capsys, "eval", "same")[1]
        (score,) = re.findall(r"^mcc .* (-?[01]\.\d{8})$", out, re.MULTILINE)
        assert float(score) == pytest.approx(read_json(one / "result.json")["score"], abs=1e-6)
    assert read_json(Path("same/adapter_config.json"))["config"]["r"] == 8


def test_runs_of_different_tasks_give_an_adapter_alone(capsys, runs):
    one, _, other = runs
    code, out, err = said(capsys, "average", one, other, "--out", "both")
    assert code == 0
    assert out.startswith("linear of 2 lora\n")
    assert "next:" not in out
    notes = err.splitlines()
    assert re.match(r"note: no head was written, because those of .* differ in .*num_labels \(2 and 1\)", notes[0])
    assert re.match(r"note: no task\.json was written.*differ in .*name \(mood and number\)", notes[1])
    assert {path.name for path in Path("both").iterdir()} == {
        *("adapter_config.json", "adapter.safetensors", "average.json")
    }
    assert read_json(Path("both/adapter_config.json"))["name"] == "both"
    assert said(capsys, "eval", "both")[0] == 3


# Bare folders


def test_in_a_process_without_the_base_model_and_negative_weights_apart(bare):
    folder, model = bare
    arguments = ["average", folder / "a", folder / "b", "--weights", "1.5", "-0.5", "--out", "diff", "--no-normalize"]
    code = (
        "import sys; from transformers import PreTrainedModel as model\n"
        "def refuse(self, *_, **__): raise AssertionError('a model was made')\n"
        "model.__init__ = refuse\n"
        "from adaptrain.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("saved: diff\n")
    model.average_adapter("due", ["a", "b"], [1.5, -0.5], normalize_weights=False, overwrite_ok=True)
    due = model.get_adapter("due").tensors()
    assert all(torch.equal(tensor, due[key]) for key, tensor in read_tensors(Path("diff/adapter.safetensors")).items())
    record = read_json(Path("diff/average.json"))
    assert record["strategy"] == "linear"
    assert [source["weight"] for source in record["sources"]] == [1.5, -0.5]


@pytest.mark.parametrize(
    ("options", "python"),
    [
        (["--strategy", "dare", "--density=0.4", "--seed", "3"], {"density": 0.4, "seed": 3}),
        (["--strategy", "ties", "--density", "0.4"], {"density": 0.4}),
        (["--strategy=ties", "--density=0.4", "--svd-rank=4"], {"density": 0.4, "svd_rank": 4}),
        (["--strategy", "lora_delta_w_svd", "--svd-rank", "4"], {"svd_rank": 4}),
        (["--strategy", "lora_linear_only_negate_b"], {}),
    ],
)
def test_the_folder_is_what_the_model_would_have_made(capsys, bare, options, python):
    folder, model = bare
    strategy = next(each for each in STRATEGIES if any(each in option for option in options))
    model.average_adapter("due", ["a", "b"], None, strategy, overwrite_ok=True, set_active=True, **python)
    assert said(capsys, "average", folder / "a", folder / "b", "--out", "out", "--name", "mine", *options)[0] == 0
    assert model.load_adapter("out") == "mine"
    due = run(model, batch("bert"))
    assert gap(due, torch.zeros(1)) > 0.1
    model.set_active_adapters("mine")
    assert torch.equal(run(model, batch("bert")), due)


def test_an_own_head_of_the_base_models_class(capsys, tmp_path):
    import transformers as hf

    model = adapted("bert", auto=hf.AutoModelForSequenceClassification)
    for seed, name in enumerate(("a", "b"), start=2):
        add(model, name, METHODS["seq_bn"], seed=seed)
        torch.nn.init.normal_(model.base_model.classifier.bias)
        model.save_adapter(tmp_path / name, name)
    assert said(capsys, "average", "a", "b", "--out", "m")[1].startswith("linear of 2 bottleneck, heads too\n")
    model.load_adapter(tmp_path / "m")
    heads = [read_tensors(tmp_path / name / "head.safetensors")["classifier.bias"] for name in ("a", "b")]
    assert gap(model.base_model.classifier.bias, (heads[0] + heads[1]) / 2) < 1e-6


def test_full_fine_tuning_is_averaged_as_folders(capsys, tmp_path):
    model = adapted("bert")
    model.add_adapter("all", "full")
    for name in ("a", "b"):
        torch.nn.init.normal_(model.base_model.encoder.layer[0].attention.self.query.bias)
        model.save_adapter(tmp_path / name, "all")
    assert said(capsys, "average", "a", "b", "--out", "m")[0] == 0
    key = "encoder.layer.0.attention.self.query.bias"
    a, b, mean = (read_tensors(tmp_path / name / "adapter.safetensors")[key] for name in ("a", "b", "m"))
    assert gap(mean, (a + b) / 2) < 1e-6
    model.load_adapter("m")
    assert gap(model.base_model.encoder.layer[0].attention.self.query.bias, mean) == 0


# Refusals


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["average"], 2, "needs adapter folders; see adaptrain average --help"),
        (["average", "a"], 2, "needs --out FOLDER"),
        (["average", "a", "--out"], 2, "--out needs a value"),
        (["average", "a", "--out", "m", "--strtegy", "ties"], 2, "no option '--strtegy', did you mean '--strategy'?"),
        (["average", "a", "--out", "m", "seed=1"], 2, "adaptrain average has no key 'seed'"),
        (["average", "a", "--out", "m", "--weights", "x"], 2, "--weights is 'x'; it must be a number"),
        (["average", "a", "--out", "m", "--svd-rank", "2.5"], 2, "--svd-rank is '2.5'; it must be a whole number"),
        (["average", "a", "b", "--weights", "1,-1", "--out", "m"], 2, "sum to 0"),
        (["average", "a", "b", "--weights", "1", "2", "3", "--out", "m"], 2, "3 weights for 2"),
        (["average", "a", "--out", "m", "--strategy", "tie"], 2, "There is no --strategy 'tie', did you mean 'ties'?"),
        (["average", "a", "--out", "m", "--strategy", "ties"], 2, "--density is missing"),
        (["average", "a", "--out", "m", "--svd-rank", "2"], 2, "--svd-rank is for"),
        (["average", "a", "wide", "--out", "m"], 2, "differ in alpha (5 and 2), r (3 and 5)"),
        (["average", "a", "ia3", "--out", "m"], 2, "are of different methods, lora and ia3"),
        (["average", "ia3", "--strategy", "lora_delta_w_svd", "--svd-rank", "2", "--out", "m"], 2, "(ia3) has none"),
        (["average", "pissa", "--strategy", "lora_delta_w_svd", "--svd-rank", "2", "--out", "m"], 2, "load it onto"),
        (["average", "a", "--out", "m", "--name", "a(b"], 2, "cannot name an adapter"),
        (["average", "a", "nowhere", "--out", "m"], 3, "There is no adapter folder nowhere"),
        (["average", "a", "empty", "--out", "m"], 3, "has no adapter_config.json"),
        (["average", "a", "stack", "--out", "m"], 3, "stack holds a composition; name adapters in it"),
        (["average", "a", "hub", "--out", "m"], 3, "hub is AdapterHub's"),
        (["average", "a", "llama", "--out", "m"], 3, "different base models: model_type is bert and llama"),
        (["average", "a", "renamed", "--out", "m"], 3, "name is None and other; if they are the same, say so"),
        (["average", "summed", "resummed", "--out", "m"], 3, "fingerprint is 1111"),
        (["average", "a", "broken", "--out", "m"], 3, "broken/adapter.safetensors"),
        (["average", "a", "b", "--out", "empty"], 3, "empty is there but holds no average; name another folder"),
        (["average", "a", "b", "--out", "a"], 3, "a would replace a, which is to be averaged"),
        (["average", "a", "b", "--out", ".", "--force"], 3, ". would replace a, which is to be averaged"),
        (
            ["average", "a", "b", "--out", "a/adapter_config.json/m"],
            3,
            "File exists: 'a/adapter_config.json'; name another folder",
        ),
    ],
)
def test_refusals_write_nothing(capsys, bare, tmp_path, arguments, code, says):
    shutil.copytree(bare[0], tmp_path, dirs_exist_ok=True)
    for name, change in {
        "llama": {"model_type": "llama"},
        "renamed": {"name": "other"},
        "summed": {"fingerprint": "1" * 64},
        "resummed": {"fingerprint": "2" * 64},
    }.items():
        shutil.copytree("a", name)
        values = read_json(Path(name, "adapter_config.json"))
        write_json(Path(name, "adapter_config.json"), values | {"base_model": values["base_model"] | change})
    Path("empty").mkdir()
    write_json(Path("stack/composition.json"), {})
    write_json(Path("hub/adapter_config.json"), {"config": {}, "model_type": "bert"})
    shutil.copytree("a", "broken")
    Path("broken/adapter.safetensors").write_bytes(b"no")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    found, out, err = said(capsys, *arguments)
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_average_is_replaced_and_other_things_only_by_force(capsys, bare, tmp_path):
    a, b = (bare[0] / name for name in "ab")
    for weights in ("1,0", "0,1"):
        assert said(capsys, "average", a, b, "--weights", weights, "--out", "m")[0] == 0
    due = read_tensors(b / "adapter.safetensors")
    assert all(torch.equal(tensor, due[key]) for key, tensor in read_tensors(Path("m/adapter.safetensors")).items())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert said(capsys, "average", a, "--out", "other")[0] == 3
    assert (tmp_path / "other" / "thesis.txt").exists()
    assert said(capsys, "average", a, "--out", "other", "--force")[0] == 0
    assert json.loads((tmp_path / "other" / "average.json").read_text())["sources"][0]["name"] == "a"


# What the page and the help show


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "averaging.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        match
        for text in (PAGE, VERBS["average"].details)
        for match in re.findall(r"^ +adaptrain (average .*?)(?:  .*)?$", text, re.MULTILINE)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_shown_runs(capsys, bare, tmp_path, command):
    places = {"a": ["A", "outputs/lora_cola/1", "outputs/quickstart/1"], "b": ["B", "C", "outputs/quickstart/2"]}
    for name, copies in places.items():
        for copy in copies:
            shutil.copytree(bare[0] / name, tmp_path / copy)
    words = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in shlex.split(command)]
    arguments = [each for word in words for each in word]
    assert said(capsys, *arguments)[0] == 0
    assert Path(arguments[arguments.index("--out") + 1], "adapter.safetensors").is_file()


def test_there_are_commands_to_run():
    assert len(COMMANDS) == 9
    assert {strategy for strategy in STRATEGIES if f"`{strategy}`" in PAGE} == set(STRATEGIES)


def test_the_pages_python_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names = {}
    exec(block, names)
    assert names["model"].adapter_names() == ["a", "b", "mean", "sum", "both", "merged"]


def test_completion_knows_every_strategy():
    assert candidates.candidates("adaptrain average a --strategy ") == list(STRATEGIES)
