"""Names of other tools: each is one of our keys, and is said so wherever an unknown key is answered."""

from __future__ import annotations

import pytest

from adaptrain.config.compose import compose
from adaptrain.config.keys import legal_keys
from adaptrain.errors import ConfigError
from adaptrain.methods import LoRAConfig, config_from_string, methods
from adaptrain.synonyms import SYNONYMS, synonym, translation

OURS = {
    "rank": "adapter.r",
    "lora_r": "adapter.r",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "lr": "trainer.learning_rate",
    "num_train_epochs": "trainer.epochs",
    "per_device_train_batch_size": "trainer.batch_size",
    "per_device_eval_batch_size": "trainer.eval_batch_size",
    "gradient_accumulation_steps": "trainer.micro_batch_size",
    "warmup_ratio": "trainer.warmup",
    "lr_scheduler_type": "trainer.schedule",
    "optimiser": "trainer.adam_beta1",
    "gradient_clipping": "trainer.max_grad_norm",
    "fp16": "trainer.precision",
    "early_stopping_patience": "trainer.patience",
    "output_dir": "outputs",
    "random_seed": "seed",
    "max_seq_length": "data.max_length",
    "max_train_samples": "data.max_train",
    "model_name_or_path": "model.name",
    "load_in_4bit": "model.quantize",
    "attn_implementation": "model.attention",
    "dataset": "task.path",
    "metric_for_best_model": "task.metric",
    "num_virtual_tokens": "adapter.prefix_length",
    "Per-Device-Train-Batch-Size": "trainer.batch_size",
}


@pytest.fixture(autouse=True)
def own_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path / "recipes"


def one_problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    (problem,) = caught.value.problems
    return problem


def test_every_name_is_a_key_of_ours_or_is_explained():
    of_methods = {f"adapter.{key}" for config in methods().values() for key in config.fields()}
    sections = {key.partition(".")[0] for key in legal_keys()}
    known = {*legal_keys(), *of_methods, *sections}
    assert len(SYNONYMS) >= 60
    for name, entry in SYNONYMS.items():
        assert set(entry.keys) <= known, name
        assert entry.keys or entry.note, name


def test_no_name_hides_a_key_of_ours():
    ours = {word for key in legal_keys() for word in (key, key.rpartition(".")[2])}
    ours |= {key for config in methods().values() for key in config.fields()}
    assert not ours & set(SYNONYMS)


@pytest.mark.parametrize(("name", "key"), OURS.items())
def test_a_name_is_translated(name, key):
    entry = synonym(name)
    assert entry is not None
    assert entry.keys[0] == key


@pytest.mark.parametrize("name", ["rank", "lr", "gradient_clipping", "per_device_train_batch_size", "output_dir"])
def test_on_the_command_line_and_in_a_file_and_never_a_similar_key_instead(name, own_recipes):
    (own_recipes / "r.yaml").write_text(f"{name}: 1\n")
    for problem in (one_problem(f"{name}=1"), one_problem("recipe=r")):
        assert f"in adaptrain it is {OURS[name]}" in problem
        assert "did you mean" not in problem


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.lr=1", "trainer has no key 'lr'; in adaptrain it is trainer.learning_rate"),
        ("trainer.gradient_clipping=1", "in adaptrain it is trainer.max_grad_norm"),
        ("adapter.rank=4", "method lora has no key 'rank'; in adaptrain it is adapter.r"),
        ("adapter.lora_alpha=4", "in adaptrain it is adapter.alpha"),
        ("model.load_in_4bit=true", "in adaptrain it is model.quantize; it takes bnb_4bit"),
        ("task.dataset=x", "in adaptrain it is task.path"),
        ("trainer.fp16=true", "in adaptrain it is trainer.precision; it takes auto, fp32 or bf16"),
        ("modules_to_save=[x]", "there is no key 'modules_to_save'; every run trains the head"),
    ],
)
def test_in_the_section_where_it_stands(override, says):
    assert says in one_problem(override)


def test_in_an_adapter_of_a_composition_the_key_has_its_place():
    problem = one_problem("composition=parallel(b, verdict)", "adapters.b.trainer.lr=1")
    assert "in adaptrain it is adapters.b.trainer.learning_rate" in problem


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRAConfig(rank=8),  # pyright: ignore[reportCallIssue]
        lambda: LoRAConfig.from_dict({"rank": 8}),
        lambda: LoRAConfig().replace(rank=8),
        lambda: config_from_string("lora[rank=8]"),
    ],
)
def test_in_python(make):
    with pytest.raises(ConfigError, match="no key of LoRAConfig 'rank'; in adaptrain it is r$"):
        make()


def test_several_unknown_keys_in_python_come_together():
    with pytest.raises(ConfigError) as caught:
        LoRAConfig(lora_alpha=8, alhpa=8, r=4)  # pyright: ignore[reportCallIssue]
    first, second = caught.value.problems
    assert "it is alpha" in first
    assert "did you mean 'alpha'?" in second


def test_what_no_tool_calls_so_is_left_to_others():
    assert translation("frobnicate") == ""
