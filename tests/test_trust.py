"""Nothing that a stranger sends makes code run: every verb and loader before folders and files with Python in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils

import adaptrain
from adaptrain.cli.ls import read_head
from adaptrain.cli.main import main
from adaptrain.config.compose import compose
from adaptrain.config.library import library
from adaptrain.config.remote_code import VARIABLE, may_run
from adaptrain.config.schema import ModelConfig
from adaptrain.config.sweep import plan
from adaptrain.errors import AdaptrainError, ConfigError, ModelError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.packages import is_shipped, package_folder
from adaptrain.training.base_model import find_base
from adaptrain.training.run import train
from finished_runs import PREFIX, config_of, save_place
from hostile_folders import (
    CODE,
    PACKAGE,
    RECIPE,
    change_json,
    save_base_with_code,
    save_package,
    save_pickles,
    save_run,
)
from tiny_run import Recorder

WORD = "model.allow_remote_code="


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, rows, and a run that is nobody's trap."""
    place = save_place(tmp_path_factory.mktemp("trust"))
    train(config_of(place, place / "outputs", adapter=PREFIX, epochs=1), display=Recorder()).folder.rename(
        place / "run"
    )
    return place


@pytest.fixture(scope="module")
def here(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of traps."""
    here = tmp_path_factory.mktemp("here")
    mark = here / "mark"
    save_base_with_code(here / "code", place / "base", mark)
    save_base_with_code(here / "bert", place / "base", mark, "bert")
    save_package(here, mark)
    save_pickles(here / "pickles", mark)
    (here / "recipes").mkdir()
    code = f"model:\n  name: {here}/code\n  allow_remote_code: {here}/code\n"
    (here / "recipes" / "allowing.yaml").write_text(RECIPE + code)
    (here / "recipes" / "including.yaml").write_text("defaults:\n  - allowing\nseed: 2\n")
    (here / "model.yaml").write_text(code.replace("model:\n", "").replace("  ", ""))
    (here / "filled.yaml").write_text(f"{RECIPE}model: {{name: {here}/code, package: null, sha256: null}}\n")
    (here / "packaged.yaml").write_text(f"{RECIPE}model: {{name: a/b, package: '{PACKAGE}:model', sha256: null}}\n")
    (here / "tagged.yaml").write_text(f"seed: !!python/object/apply:builtins.open [{mark}, w]\n")
    run, runs = place / "run", here / "runs"
    for name, base in (("allowing", "code"), ("known", "bert")):
        save_run(runs / name, run, model={"name": str(here / base), "allow_remote_code": str(here / base)})
    save_run(runs / "plain", run, model={"name": str(here / "code")})
    save_run(runs / "package", run, model={"name": "a/b", "package": f"{PACKAGE}:model"})
    save_run(runs / "rows", run, task={"path": f"package:{PACKAGE}:data"}, data={"mirror": None})
    save_run(runs / "bare", run)
    (runs / "bare" / "task.json").unlink()
    change_json(runs / "bare" / "adapter_config.json", base_model={"name": str(here / "code")})
    return here


@pytest.fixture(autouse=True)
def mark(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the traps leave, in the current folder, which is where Python looks for modules too."""
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question, in a program that asks none"))
    (here / "mark").unlink(missing_ok=True)
    return here / "mark"


# ---- from the command line

BASE = f"{WORD}.*/code"
COMMANDS = [
    ("eval runs/allowing", 3, BASE),
    ("eval runs/known", 3, f"{WORD}.*/bert"),
    ("eval runs/plain", 3, BASE),
    ("eval runs/package", 3, f"model.package={PACKAGE}:model"),
    ("eval runs/rows", 3, f"task.path=package:{PACKAGE}:data"),
    ("eval runs/allowing data.mirror=x model.revision=main", 3, f"{BASE}@main"),
    ("predict runs/allowing --text kind", 3, BASE),
    ("predict runs/known --text kind", 3, f"{WORD}.*/bert"),
    ("predict runs/plain --text kind", 3, BASE),
    ("predict runs/package --text kind", 3, f"model.package={PACKAGE}:model"),
    ("eject-prefix runs/allowing out=flat", 3, BASE),
    ("eject-prefix runs/plain out=flat", 3, BASE),
    ("eject-prefix runs/package out=flat", 3, f"model.package={PACKAGE}:model"),
    ("eject-prefix runs/bare out=flat", 3, BASE),
    ("train recipe=allowing", 2, rf"recipes/allowing.yaml:7.*{BASE}"),
    ("train recipe=including", 2, rf"recipes/allowing.yaml:7.*{BASE}"),
    ("train recipe=./recipes/allowing.yaml", 2, rf"allowing.yaml:7.*{BASE}"),
    ("train recipe=quickstart model=./model.yaml", 2, rf"model.yaml:2.*{BASE}"),
    ("train -m recipe=allowing seed=1,2", 2, rf"recipes/allowing.yaml:7.*{BASE}"),
    ("train recipe=./filled.yaml", 3, BASE),
    ("train recipe=./filled.yaml architecture=bert", 3, BASE),
    ("train recipe=./filled.yaml model.allow_remote_code=${model.name}", 2, BASE),
    ("train recipe=./packaged.yaml", 3, ""),
    ("train recipe=./tagged.yaml", 2, "tagged.yaml"),
    ("train recipe=quickstart architecture=./tagged.yaml", 2, "tagged.yaml"),
    (f"train recipe=quickstart task.path=package:{PACKAGE}:data", 3, "evilpackage/deep/data has no split"),
    ("show recipe=allowing", 2, rf"recipes/allowing.yaml:7.*{BASE}"),
    ("data task=verdict model=./model.yaml", 2, rf"model.yaml:2.*{BASE}"),
    ("data task=verdict recipe=./filled.yaml", 3, BASE),
    ("data pickles/rows.npz", 3, "rows.npz"),
    ("data pickles/rows.pkl", 3, "rows.pkl"),
    ("ls adapters model=./model.yaml", 2, rf"model.yaml:2.*{BASE}"),
    ("average runs/allowing runs/plain --out mean", 0, ""),
    ("table runs", None, ""),
    ("ls", 0, ""),
    ("_complete adaptrain train recipe=", 0, ""),
]


@pytest.mark.parametrize(("line", "code", "says"), COMMANDS, ids=[line for line, _, _ in COMMANDS])
def test_no_verb_runs_what_a_stranger_sent(line: str, code: int | None, says: str, mark: Path, capsys: Any) -> None:
    verb, *rest = line.split(" ") if not line.startswith("_") else line.split(" ", 1)
    exit_code = main([verb, *rest])
    message = capsys.readouterr().err
    assert not mark.exists(), "code of a stranger has run"
    assert code in (exit_code, None), message
    assert re.search(says, message) and "bug in adaptrain" not in message


# ---- from Python


def bert(place: Path) -> Any:
    return adaptrain.AutoAdapterModel.from_pretrained(place / "base")


LOADERS: dict[str, Callable[[Path, Path], Any]] = {
    "a base with code": lambda here, _: adaptrain.AutoAdapterModel.from_pretrained(here / "code"),
    "a pickled base": lambda here, _: adaptrain.AutoAdapterModel.from_pretrained(here / "pickles" / "base"),
    "a pickled adapter": lambda here, place: bert(place).load_adapter(here / "pickles" / "adapter"),
    "pickled embeddings": lambda here, place: bert(place).load_embeddings(here / "pickles" / "words", "x"),
    "an adapter as a composition": lambda here, place: bert(place).load_composition(here / "runs" / "allowing"),
    "an architecture": lambda here, place: adaptrain.AutoAdapterModel.from_pretrained(
        place / "base", architecture=here / "tagged.yaml"
    ),
    "a run": lambda here, _: evaluate_folder(here / "runs" / "allowing"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_no_loader_runs_what_a_stranger_sent(name: str, mark: Path, place: Path) -> None:
    with pytest.raises(AdaptrainError):
        LOADERS[name](mark.parent, place)
    assert not mark.exists(), "code of a stranger has run"


def test_a_tokenizer_beside_embeddings_runs_no_code(mark: Path, place: Path, here: Path, tmp_path: Path) -> None:
    model, tokenizer = bert(place), transformers.AutoTokenizer.from_pretrained(place / "base")
    model.add_embeddings("words", tokenizer)
    model.save_embeddings(tmp_path / "words", "words", tokenizer)
    for name in ("stranger.py", "tokenizer_config.json"):
        shutil.copy(here / "code" / name, tmp_path / "words" / "tokenizer" / name)
    with suppress(AdaptrainError):  # some versions of transformers refuse it, others take a class of their own
        bert(place).load_embeddings(tmp_path / "words")
    assert not mark.exists()


def test_attention_from_the_hub_is_code_too(mark: Path, place: Path, tmp_path: Path) -> None:
    folder = save_base_with_code(tmp_path / "kernel", place / "base", mark, "bert")
    change_json(folder / "config.json", attn_implementation="stranger/kernel")
    with pytest.raises(ModelError, match=r"stranger/kernel.*model\.attention=sdpa"):
        adaptrain.AutoAdapterModel.from_pretrained(folder)
    adaptrain.AutoAdapterModel.from_pretrained(folder, attn_implementation="sdpa")
    assert not mark.exists()


# ---- whose word it is


def test_the_words_of_a_message_are_enough(mark: Path, place: Path, capsys: Any) -> None:
    """From a model with code to a run of one's own and its evaluation: each refusal says the words that help."""
    call = ["train", "recipe=own", "architecture=bert"]
    own = f"{RECIPE}model: {{name: {mark.parent}/code, package: null, sha256: null}}\ndata: {{mirror: {place}/data}}\n"
    own += "trainer: {epochs: 1, batch_size: 50, precision: fp32, device: cpu}\n"
    task = "{name: mood, type: classification, path: a/b, columns: {text: sentence}, labels: [bad, good], metric: mcc}"
    (mark.parent / "recipes" / "own.yaml").write_text(f"{own}task: {task}\n")

    def refused_then_done(call: list[str]) -> str:
        assert main(call) == 3
        words = re.findall(rf"{WORD}\S+", capsys.readouterr().err)
        assert words and not mark.exists()
        assert main([*call, words[0]]) == 0
        assert mark.exists()
        mark.unlink()
        for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
            del sys.modules[name]  # else it would not be run again
        return capsys.readouterr().out

    trained = refused_then_done(call)
    folder = re.findall(r"saved: (\S+)", trained)[0]
    assert "is the same as training reported" in refused_then_done(["eval", folder])
    assert "prediction" in refused_then_done(["predict", folder, "--text", "kind"])


def test_permission_of_the_command_line_reaches_every_cell() -> None:
    sweep = plan(["recipe=quickstart", "model={name: a/b, package: null}", f"{WORD}a/b", "seed=1,2"])
    assert [run.config.model.allow_remote_code for run in sweep.runs] == ["a/b", "a/b"]


def test_the_command_line_goes_before_the_file_that_may_not(mark: Path) -> None:
    config = compose(["recipe=allowing", f"{WORD}{mark.parent}/code", "~model.package", "~model.sha256"]).config
    assert config.model.allow_remote_code == config.model.name == f"{mark.parent}/code"
    with pytest.raises(ConfigError, match="allow_remote_code.*a/b@main"):
        compose(["model={name: a/b, package: null, revision: main}", f"{WORD}a/b"])
    with pytest.raises(ConfigError, match=r"model\.package"):
        compose(["model.name=a/b", f"{WORD}a/b", f"model.package={PACKAGE}:model"])


def test_the_users_own_setting(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = ModelConfig(name=f"{mark.parent}/code")
    assert not find_base(code).remote_code
    monkeypatch.setenv(VARIABLE, f"a/b@c0ffee, {mark.parent}/code")
    assert find_base(code).remote_code
    assert may_run(ModelConfig(name="a/b", revision="c0ffee"), "a/b")
    assert not may_run(ModelConfig(name="a/b"), "a/b")
    assert not may_run(ModelConfig(name="a/b", revision="refs/pr/1"), "a/b")


@pytest.mark.parametrize("name", ["code", "owner/code"])
def test_the_id_of_the_hub_allows_no_folder_of_that_name(
    name: str, here: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(here / "code", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=rf"model\.name=\./{name} {re.escape(WORD)}\./{name}"):
        assert find_base(ModelConfig(name=name, allow_remote_code=name)).remote_code
    assert find_base(ModelConfig(name=f"./{name}", allow_remote_code=f"./{name}")).remote_code
    monkeypatch.setenv(VARIABLE, name)
    assert not find_base(ModelConfig(name=name)).remote_code


# ---- packages are located, not imported


def test_a_package_is_located_without_its_code(mark: Path) -> None:
    assert package_folder(f"{PACKAGE}:data") == mark.parent / "evilpackage" / "deep" / "data"
    assert package_folder("evilpackage.deeper:data") is None
    assert package_folder("evilpackage...:data") is None
    for folder in ("../../pickles", str(mark.parent)):
        with pytest.raises(ConfigError, match="leaves the Python package"):
            package_folder(f"{PACKAGE}:{folder}")
    assert not mark.exists()


def test_packages_that_a_saved_run_may_name() -> None:
    specs = {read_head(file)[0].get("package") for file in library().choices("model").values()}
    specs |= {read_head(file)[0]["path"].partition("package:")[2] for file in library().choices("task").values()}
    assert "adaptrain:data/verdict" in specs and len(specs) > 2
    assert all(is_shipped(spec) for spec in specs if spec)
    assert not is_shipped(f"{PACKAGE}:data") and not is_shipped("adaptrainer:data")


def test_python_m_does_not_look_into_the_current_folder(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins").mkdir()  # Hydra imports every module in there
    for module in ("torch.py", "yaml.py", "hydra_plugins/evil.py"):
        (tmp_path / module).write_text(CODE.format(mark=str(mark)))
    command = [sys.executable, "-m", "adaptrain", "show", "recipe=quickstart"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert not mark.exists() and done.returncode == 0, done.stderr
