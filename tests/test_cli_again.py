"""The same command again: a finished run is the answer only while it would be made of the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tiny_media
import tiny_run
from adaptrain.cli.again import asked_by, finished_run
from adaptrain.cli.main import main
from adaptrain.config.compose import compose, draft
from adaptrain.config.schema import RunConfig
from adaptrain.reporting.folder import run_hash
from adaptrain.reporting.sums import changes, record
from adaptrain.training.ingredients import compare, note_commits, note_named, take_stock
from adaptrain.training.prepare import load_splits
from adaptrain.training.recheck import named_files
from written_recipe import RECIPE, TASK

NUMBER = """\
name: number
type: regression
path: somebody/number
columns: {text: one, text_pair: two, label: score}
metric: pearson
"""
BRANCHES = """\
composition: stack(saved, parallel(mood, number))
adapters:
  saved: {path: outputs/member}
  number: {task: ./number.yaml}
"""
SHORT = ["trainer.max_steps=1", "data.max_train=16", "data.max_eval=8"]
ALL = ["train", "recipe=all", *SHORT]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of all kinds of ingredients: a base, rows of two tasks, an adapter that was saved before."""
    place = tmp_path_factory.mktemp("again") / "place"
    tiny_run.save_base(place / "base")
    tiny_run.save_data(place / "mirror")
    recipe = RECIPE.format(mirror="mirror")
    (place / "recipes").mkdir()
    texts = {"model.yaml": "name: ./base\n", "task.yaml": TASK, "number.yaml": NUMBER}
    texts |= {"recipes/member.yaml": recipe, "recipes/all.yaml": recipe + BRANCHES}
    for name, text in texts.items():
        (place / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "recipe=member", *SHORT]) == 0
        assert main(ALL) == 0
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder: other inodes and times, the same content."""
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def other_row(file: str) -> Callable[[], str]:
    def change() -> str:
        first, *rest = Path(file).read_text().splitlines(keepends=True)
        words = json.loads(first)
        key = "sentence" if "sentence" in words else "one"
        Path(file).write_text(json.dumps({**words, key: "the day"}) + "\n" + "".join(rest))
        return file

    return change


def other_tensor(pattern: str) -> Callable[[], str]:
    def change() -> str:
        (file,) = Path().glob(pattern)
        tensors = load_file(file)
        name = min(tensors)
        save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
        return str(file)

    return change


def other_text(file: str) -> Callable[[], str]:
    def change() -> str:
        Path(file).write_text(Path(file).read_text().replace("bright", "brighter"))
        return file

    return change


def gone(folder: str) -> Callable[[], str]:
    def change() -> str:
        shutil.rmtree(folder)
        return Path(folder).name

    return change


CHANGED = {
    "a row of train": other_row("mirror/mood/train.jsonl"),
    "a row of validation": other_row("mirror/mood/dev.jsonl"),
    "a row of a branch": other_row("mirror/number/train.jsonl"),
    "the weights": other_tensor("base/model.safetensors"),
    "the tokenizer": other_text("base/tokenizer.json"),
    "a saved adapter": other_tensor("outputs/member/*/adapter.safetensors"),
    "no rows": gone("mirror/number"),
    "no base": gone("base"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_has_changed_is_named_and_the_old_result_is_not_the_answer(what: str, place: Path, capsys) -> None:
    file = CHANGED[what]()
    code, out, err = run(capsys, *ALL)
    assert (code, out) == (3, "")
    assert file in err and "force=true" in err and err.count("\n") == 1
    assert "no" in what.split() or "sha256" in err


def nothing() -> None:
    """Copied as it is."""


def touched() -> None:
    for file in Path().rglob("*"):
        os.utime(file)


def unused_rows() -> None:
    other_row("mirror/mood/test.jsonl")()
    Path("mirror/mood/README.md").write_text("x")


def the_same_rows() -> None:
    file = Path("mirror/mood/train.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row, separators=(" ,", " : ")) + "\n" for row in rows))


def no_ingredients() -> None:
    (folder,) = Path("outputs/all").iterdir()
    (folder / "ingredients.json").unlink()


@pytest.mark.parametrize("change", [nothing, touched, unused_rows, the_same_rows, no_ingredients])
def test_what_is_the_same_is_the_answer(change: Callable[[], None], place: Path, capsys) -> None:
    change()
    code, out, err = run(capsys, *ALL)
    assert (code, err) == (0, "") and "finished before" in out
    quick = finished_run(draft(ALL[1:])) is not None
    assert quick == (change in (nothing, touched))  # the others need a look at the rows


@pytest.mark.parametrize("what", ["a row of train", "a row of a branch", "the weights"])
def test_a_run_of_an_earlier_version_is_compared_by_its_sums(what: str, place: Path, capsys) -> None:
    no_ingredients()
    CHANGED[what]()
    code, _, err = run(capsys, *ALL)
    assert code == 3 and "force=true" in err


def test_force_trains_with_what_is_there_now(place: Path, capsys) -> None:
    command = ["train", "recipe=member", *SHORT]
    other_row("mirror/mood/train.jsonl")()
    assert run(capsys, *command)[0] == 3
    assert "saved:" in run(capsys, *command, "force=true")[1]
    assert "finished before" in run(capsys, *command)[1]


def test_cells_of_a_sweep_that_are_no_longer_true_are_listed(place: Path, capsys) -> None:
    command = ["train", "-m", "recipe=member", "seed=42,2", *SHORT]
    code, out, _ = run(capsys, *command)
    assert code == 0 and "finished before" in out and "done" in out
    file = CHANGED["a row of train"]()
    code, out, err = run(capsys, *command)
    assert code == 3 and "2 runs, 2 failed" in out
    assert out.count(file) == 2 and err.count(file) == 2


def test_the_answer_imports_nothing_heavy(place: Path) -> None:
    code = "import sys; from adaptrain.cli.main import main; print(main(sys.argv[1:]), "
    code += "[m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *ALL], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "finished before" in done.stdout


@pytest.mark.parametrize(
    "changed", ["trainer.max_steps=2", "model.name=./other", "data.mirror=other", "adapters.saved.path=other"]
)
def test_another_command_is_not_answered(changed: str, place: Path) -> None:
    shutil.copytree("base", "other")
    assert finished_run(draft(ALL[1:])) is not None
    assert finished_run(draft([*ALL[1:], changed])) is None
    assert finished_run(draft([*ALL[1:], "force=true"])) is None


def test_a_copy_of_a_run_is_not_the_run(place: Path) -> None:
    (folder,) = Path("outputs/all").iterdir()
    folder.rename(folder.with_name("copy"))
    assert finished_run(draft(ALL[1:])) is None


def test_an_architecture_file_is_part_of_the_config(place: Path) -> None:
    command = ["recipe=member", "architecture=./mine.yaml"]
    text = "like: bert\nstacks: {encoder: {projections: {mlp.up: intermediate.dense}}}\n"
    Path("mine.yaml").write_text(text)
    asked, name = asked_by(draft(command)), run_hash(compose(command).config)
    assert asked_by(draft(command)) == asked
    Path("mine.yaml").write_text(text.replace("mlp.up: intermediate", "mlp.down: output"))
    assert asked_by(draft(command)) != asked and run_hash(compose(command).config) != name


# Files


def test_a_file_is_known_by_its_content_even_where_size_and_time_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    os.utime(file, ns=(10**18, 10**18))
    noted = record({"file": file})
    assert not changes(noted, {"file": file})
    file.write_text("two")
    os.utime(file, ns=(10**18, 10**18))
    assert "sha256" in changes(noted, {"file": file})[0]
    assert "new" in changes({}, {"file": file})[0]
    assert "file" in changes(noted, {})[0]


def config_of(tmp_path: Path, task: str, **model: Any) -> RunConfig:
    name = model.pop("name", str(tmp_path))
    return compose([f"task={task}", f"model.name={name}", *(f"{key}={value}" for key, value in model.items())]).config


@pytest.mark.parametrize("how", ["paths", "folders"])
def test_images_that_rows_name_are_ingredients(how: str, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        rows = tiny_media.save_pictures(tmp_path / f"data/{split}/all", 6)
        for row in rows:
            row["image"] = f"{split}/{row['image']}"
        tiny_run.write_jsonl(tmp_path / f"data/{split}.jsonl", rows)
        if how == "folders":
            (tmp_path / f"data/{split}.jsonl").unlink()
            for label in (0, 1):
                (tmp_path / f"data/{split}/{label}").mkdir()
            for row in rows:
                file = tmp_path / "data" / row["image"]
                file.rename(tmp_path / f"data/{split}/{row['label']}" / file.name)
    image = min((tmp_path / "data/validation").rglob("*.png"))
    config = config_of(tmp_path, "own_images", **{"task.path": tmp_path / "data", "task.labels": "['0','1']"})
    stock = take_stock(config)
    files = set(named_files(load_splits(config)))
    assert image in files and len(files) == 12
    note_named(stock, files)
    stock = json.loads(json.dumps(stock))
    assert not compare(stock).rows
    image.write_bytes(image.read_bytes() + b"x")
    assert compare(stock).rows


def test_commits_of_the_hub_are_compared_where_the_cache_knows_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = config_of(tmp_path, "mrpc", name="somebody/model")
    stock = take_stock(config)
    assert not compare(stock)
    for kind, name in (("models", "somebody--model"), ("datasets", "nyu-mll--glue")):
        reference = tmp_path / f"{kind}--{name}/refs/main"
        reference.parent.mkdir(parents=True)
        reference.write_text("a" * 40)
        assert not compare(stock)  # nothing was known to compare with
        note_commits(stock)
        assert not compare(stock)
        reference.write_text("b" * 40)
        (sentence,) = compare(stock).certain
        assert "b" * 12 in sentence and "a" * 12 in sentence
        reference.write_text("a" * 40)
