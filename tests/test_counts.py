"""What each method trains, from a model's config alone."""

from __future__ import annotations

import pytest
import transformers as hf

from adaptrain.cli.main import main
from adaptrain.config.schema import ModelConfig
from adaptrain.errors import AdaptrainError, ModelError
from adaptrain.methods import presets
from adaptrain.training.counts import parameter_counts
from matrix import METHODS, UNITS, adapted, base

ROBERTA = {
    "seq_bn": 894_528,
    "double_seq_bn": 1_789_056,
    "par_bn": 7_091_712,
    "scaled_par_bn": 7_091_724,
    "seq_bn_inv": 1_190_592,
    "double_seq_bn_inv": 2_085_120,
    "adapterplus": 165_984,
    "compacter": 57_088,
    "compacter++": 28_576,
    "prefix_tuning": 9_872_384,
    "prefix_tuning_flat": 552_960,
    "prompt_tuning": 7_680,
    "lora": 294_912,
    "pissa": 294_912,
    "rslora": 2_359_296,
    "ia3": 55_296,
    "vera": 18_624,
    "dora": 313_344,
    "dvora": 37_056,
    "mtl_lora": 295_128,
    "loreft": 36_888,
    "noreft": 36_888,
    "direft": 36_888,
    "mam": 22_493_984,
    "unipelt": 11_083_376,
    "none": 0,
}
"""Closed forms on roberta-base: 12 layers of 768, feed-forward 3,072."""


@pytest.fixture
def roberta_base(tmp_path):
    """The config of roberta-base, and no weights."""
    hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1).save_pretrained(tmp_path)
    return tmp_path


def test_every_preset_trains_what_its_closed_form_says(roberta_base):
    configs = {name: make().to_dict() for name, make in presets().items()}
    total, counts = parameter_counts(ModelConfig(name=str(roberta_base)), configs)
    assert total == 124_645_632 - (768 * 768 + 768)  # without the pooler, which nothing reads
    assert counts == ROBERTA | {"full": total}


def test_a_count_is_that_of_the_adapter(tmp_path):
    base("llama").config.save_pretrained(tmp_path)
    _, counts = parameter_counts(ModelConfig(name=str(tmp_path)), {name: c.to_dict() for name, c in METHODS.items()})
    for name, config in UNITS.items():
        assert counts[name] == adapted("llama", config).parameter_count("a")


def test_what_does_not_fit_is_told_where_its_number_would_be(tmp_path):
    base("bert").config.save_pretrained(tmp_path)
    lora = METHODS["lora"]
    configs = {"fits": lora.to_dict(), "none left": lora.replace(leave_out=(0, 1)).to_dict()}
    _, counts = parameter_counts(ModelConfig(name=str(tmp_path)), configs)
    assert isinstance(counts["fits"], int)
    assert isinstance(counts["none left"], AdaptrainError)


def test_a_missing_model_is_told_as_such(tmp_path):
    with pytest.raises(ModelError, match="there is no such folder"):
        parameter_counts(ModelConfig(name=str(tmp_path / "nowhere")), {})
    with pytest.raises(ModelError, match="no config that can be read"):
        parameter_counts(ModelConfig(name=str(tmp_path)), {})


def test_ls_shows_the_counts(roberta_base, capsys):
    assert main(["ls", "adapters", "model=roberta_base", f"model.name={roberta_base}"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert "(124,055,040 parameters)" in out
    assert rows["vera"][2] == "18,624"
    assert rows["full"][2:4] == ["124,055,040", "100.000"]
    assert rows["unipelt"][2] == "11,083,376"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "adapters", "seed=1"], "takes no overrides but model=NAME"),
        (["ls", "recipes", "model=minilm"], "is for one list: adaptrain ls adapters model=NAME"),
        (["ls", "model=minilm"], "is for one list: adaptrain ls adapters model=NAME"),
        (["ls", "adapters", "model=minlm"], "did you mean 'minilm'"),
    ],
)
def test_other_overrides_are_refused(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
