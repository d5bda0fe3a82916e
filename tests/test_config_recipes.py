"""What a recipe may be: choices, dotted keys, a layer over other recipes, the config of a finished run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adaptrain.config.compose import compose
from adaptrain.config.composition import complete_members
from adaptrain.config.schema import RunConfig
from adaptrain.config.sweep import plan
from adaptrain.errors import ConfigError
from adaptrain.reporting.folder import run_folder
from adaptrain.training.run import config_yaml

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Writes a recipe of the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()

    def write(name: str, text: str) -> str:
        (tmp_path / "recipes" / name).write_text(text, encoding="utf-8")
        return f"recipe={name.partition('.')[0]}"

    return write


def one_problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    (problem,) = caught.value.problems
    return problem


# Choices


def test_a_choice_as_everyone_writes_it_first(own):
    flat = compose([own("flat.yaml", "model: gpt2\nadapter: seq_bn\ntask: cola\ntrainer: debug\nseed: 3\n")])
    entries = "".join(
        f"  - override /{group}: {name}\n"
        for group, name in {"model": "gpt2", "adapter": "seq_bn", "task": "cola", "trainer": "debug"}.items()
    )
    listed = compose([own("listed.yaml", f"defaults:\n{entries}seed: 3\n")])
    assert flat.choices | {"recipe": ""} == listed.choices | {"recipe": ""}
    assert run_folder(flat.config).name == run_folder(listed.config).name


def test_it_is_a_diff_like_any_other(own):
    own("below.yaml", "adapter: seq_bn\nmodel: gpt2\n")
    above = own("above.yaml", "defaults:\n  - below\nadapter: lora\nadapter.r: 2\n")
    run = compose([above])
    assert (run.choices["model"], run.choices["adapter"], run.config.adapter["r"]) == ("gpt2", "lora", 2)
    assert compose([above, "model=minilm"]).choices["model"] == "minilm"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: minilmm\n", "model=minilmm (recipes/r.yaml:1): there is no model 'minilmm', did you mean 'minilm'?"),
        ("task: ./none.yaml\n", "task=./none.yaml (recipes/r.yaml:1): there is no file ./none.yaml"),
        ("defaults:\n  - override /model: minilm\nmodel: gpt2\n", "recipes/r.yaml:3: model is chosen twice"),
        ("task: 5\n", "task (recipes/r.yaml:1): is one value; it must be a mapping"),
    ],
)
def test_a_wrong_choice_names_its_line(own, text, says):
    assert says in one_problem(own("r.yaml", text))


# Dotted keys


def test_dotted_keys_are_sections_as_on_the_command_line(own):
    text = "trainer.epochs: 5\nadapter.r: 2\ntask:\n  columns.text: body\nadapter.leave_out: [1]\n"
    run = compose([own("r.yaml", text)])
    assert (run.config.trainer.epochs, run.config.adapter["r"], run.config.task.columns.text) == (5, 2, "body")
    assert str(run.origin("trainer.epochs")) == "recipes/r.yaml:1"
    assert str(run.origin("task.columns.text")) == "recipes/r.yaml:4"
    same = compose(["trainer.epochs=5", "adapter.r=2", "task.columns.text=body", "adapter.leave_out=[1]"])
    assert run_folder(run.config).name == run_folder(same.config).name


def test_dotted_keys_of_the_adapters_of_a_composition(own):
    run = compose([own("r.yaml", "composition: stack(b, verdict)\nadapters.b.adapter: seq_bn\n")])
    adapter = run.config.adapters["b"].adapter
    assert adapter is not None
    assert adapter["method"] == "bottleneck"


def test_keys_with_dots_that_are_data_stay_as_they_are(own):
    text = "task:\n  labels: [a.b, c.d]\narchitecture:\n  like: bert\n"
    run = compose([own("r.yaml", text)])
    assert run.config.task.labels == ("a.b", "c.d")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer.epochs: 3\ntrainer:\n  epochs: 4\n", "recipes/r.yaml:3: the key 'trainer.epochs' is given twice"),
        ("trainer:\n  epochs: 4\ntrainer.epochs: 3\n", "recipes/r.yaml:3: the key 'trainer.epochs' is given twice"),
        ("trainer.epoch: 3\n", "trainer.epoch (recipes/r.yaml:1): trainer has no key 'epoch', did you mean 'epochs'?"),
        ("trainr.epochs: 3\n", "trainr (recipes/r.yaml:1): there is no key 'trainr', did you mean 'trainer'?"),
    ],
)
def test_a_wrong_dotted_key_names_its_line(own, text, says):
    assert says in one_problem(own("r.yaml", text))


# Numbers that look like something else


@pytest.mark.parametrize(
    ("text", "number", "meant"),
    [
        ("seed: 010\n", "010", "8"),
        ("seed: 0b11\n", "0b11", "3"),
        ("seed: 0x10\n", "0x10", "16"),
        ("seed: 1_6\n", "1_6", "16"),
        ("trainer:\n  epochs: 1:30\n", "1:30", "90"),
        ("trainer:\n  max_grad_norm: 1_0.5\n", "1_0.5", "10.5"),
        ("adapter:\n  leave_out: [1, 010]\n", "010", "8"),
        ("adapter:\n  r: {010: 4, default: 8}\n", "010", "8"),
    ],
)
def test_a_number_that_yaml_reads_as_another_is_refused(own, text, number, meant):
    problem = one_problem(own("r.yaml", text))
    assert problem.startswith(f"recipes/r.yaml:{text.count(chr(10))}: {number} would be read as {meant}; write {meant}")


@pytest.mark.parametrize("text", ["seed: '010'\n", "trainer:\n  learning_rate: 1_0e-4\n", "seed: 08\n"])
def test_nor_is_a_string_read_as_one(own, text):
    assert "it must be a" in one_problem(own("r.yaml", text))


def test_numbers_that_look_as_they_are(own):
    text = "trainer: {warmup: .5, learning_rate: 1.0e-4, adam_epsilon: 1e-8, epochs: +3}\nmodel.revision: '010'\n"
    config = compose([own("r.yaml", text)]).config
    assert (config.trainer.warmup, config.trainer.epochs, config.model.revision) == (0.5, 3, "010")


# Recipes over recipes


@pytest.mark.parametrize(
    ("recipes", "says"),
    [
        ({"a": "a"}, "defaults (recipes/a.yaml:2): recipes include each other: a → a; remove this line"),
        ({"a": "b", "b": "a"}, "defaults (recipes/b.yaml:2): recipes include each other: a → b → a"),
        ({"a": "b", "b": "c", "c": "b"}, "defaults (recipes/c.yaml:2): recipes include each other: b → c → b"),
        ({"a": "./recipes/a.yaml"}, "recipes include each other: a → ./recipes/a.yaml"),
    ],
)
def test_recipes_in_a_circle_are_named(own, recipes, says):
    for name, inner in recipes.items():
        own(f"{name}.yaml", f"defaults:\n  - {inner}\n")
    assert says in one_problem("recipe=a")


def test_a_recipe_cannot_lie_over_the_shipped_one_that_it_hides(own):
    assert "give yours another name" in one_problem(own("lora_cola.yaml", "defaults:\n  - lora_cola\n"))


def test_one_recipe_below_two_others_is_no_circle(own):
    own("base.yaml", "seed: 5\n")
    own("left.yaml", "defaults:\n  - base\n")
    own("right.yaml", "defaults:\n  - base\n")
    assert compose([own("top.yaml", "defaults:\n  - left\n  - right\n")]).config.seed == 5


# Endings


def test_a_recipe_may_end_in_yml(own):
    recipe = own("short.yml", "seed: 5\n")
    assert compose([recipe]).config.seed == 5
    assert compose([recipe]).config.recipe == "short"
    own("short.yaml", "seed: 6\n")
    assert one_problem(recipe).startswith("recipes/short.yaml: recipes/short.yml lies beside it")


# The config of a finished run


@pytest.fixture
def finished(own):
    """Writes what a run of these overrides leaves as its config."""

    def write(*overrides: str) -> RunConfig:
        config = compose(overrides).config
        config = config if config.plain else complete_members(config)
        own("again.yaml", config_yaml(config))
        return config

    return write


def again(*overrides: str) -> RunConfig:
    config = compose(["recipe=./recipes/again.yaml", *overrides]).config
    return config if config.plain else complete_members(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ("recipe=quickstart", "adapter=seq_bn", "seed=7"),
        ("recipe=double_seq_bn_mrpc", "adapter.reduction_factor={0: 8, default: 16}"),
        ("recipe=unipelt_cola", "outputs=other"),
        ("recipe=adapterdrop_rte", "trainer=debug"),
        ("recipe=fusion_glue",),
        ("recipe=parallel_glue",),
        ("recipe=seq_bn_ud_en_ewt",),
        ("task=own", "task.name=mine", "task.labels=[no, yes]", "model.name=some/model"),
    ],
)
def test_it_names_the_same_run(finished, overrides):
    config = finished(*overrides)
    assert run_folder(again()) == run_folder(config)
    assert run_folder(compose(["recipe=again"]).config).parent == run_folder(config).parent  # among one's own too


def test_it_does_not_replace_the_run(finished):
    finished("recipe=quickstart", "force=true")
    assert not again().force


def test_keys_and_choices_go_over_it(finished):
    config = finished("recipe=quickstart", "adapter=seq_bn", "trainer.epochs=9")
    assert run_folder(again("seed=9")).parent == run_folder(config).parent
    lora = again("adapter=lora", "trainer=debug")
    same = compose(["recipe=quickstart", "trainer=debug", "trainer.batch_size=8", "trainer.epochs=9"]).config
    assert run_folder(lora) == run_folder(same)
    assert again("model=gpt2").model == compose(["model=gpt2"]).config.model


def test_a_sweep_starts_from_it(finished):
    finished("recipe=quickstart", "adapter=seq_bn")
    runs = plan(["recipe=./recipes/again.yaml", "adapter=lora,par_bn", "seed=1,2"]).runs
    methods = [(run.config.adapter["method"], run.config.seed) for run in runs]
    assert methods == [("lora", 1), ("lora", 2), ("bottleneck", 1), ("bottleneck", 2)]


def test_a_recipe_can_be_laid_over_it(finished, own):
    finished("recipe=quickstart", "adapter=seq_bn")
    over = compose([own("over.yaml", "defaults:\n  - again\nadapter:\n  reduction_factor: 4\n")])
    assert (over.config.recipe, over.config.adapter["reduction_factor"]) == ("over", 4.0)
    other = compose([own("other.yaml", "defaults:\n  - again\nadapter: lora\ntrainer: debug\n")])
    assert (other.config.adapter["method"], other.config.trainer.max_steps) == ("lora", 10)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "5"])
def test_a_name_that_is_no_folders_is_refused(finished, own, name):
    config = finished("recipe=quickstart")
    own("again.yaml", config_yaml(config).replace("recipe: quickstart", f"recipe: {name!r}".replace("'5'", "5")))
    assert one_problem("recipe=again").startswith("recipe (recipes/again.yaml:1): is ")


def test_its_folder_is_not_its_config(finished, own, tmp_path):
    config = finished("recipe=quickstart")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config_yaml(config))
    assert "./run is a folder; write run/config.yaml" in one_problem("recipe=./run")


def test_a_recipe_that_names_another_is_told_how(own):
    problem = one_problem(own("r.yaml", "recipe: quickstart\ntrainer:\n  epochs: 1\n"))
    assert problem.startswith("recipe (recipes/r.yaml:1): ")
    assert "write `defaults:` and under it `- quickstart`" in problem


# The name of a run


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("task=own",), "lora_own"),
        (("task=own", "task.name=reviews"), "lora_reviews"),
        (("task=own", "adapter=seq_bn", "task.name='my reviews'"), "seq_bn_my reviews"),
        (("task=own", "task.name=a/b"), "lora_a%2Fb"),
        (("recipe=quickstart", "task.name=reviews"), "quickstart"),
    ],
)
def test_a_task_with_a_name_of_its_own_gives_it_to_the_folder(overrides, name):
    assert compose(overrides).config.recipe == name


# The page


def test_the_examples_of_the_page_compose(own, tmp_path):
    task, recipe = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "reviews.yaml").write_text(task)
    assert compose(["task=reviews", "model=minilm"]).config.recipe == "lora_reviews"
    run = compose([own("mine.yaml", recipe), "task=reviews"])
    assert (run.config.adapter["method"], run.config.data.max_length) == ("bottleneck", 64)
