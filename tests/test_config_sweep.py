"""Sweeps: which cells there are, and that none starts before all are right."""

from __future__ import annotations

import pytest

from adaptrain.config.sweep import launch, plan
from adaptrain.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(arguments)
    return caught.value.problems


def test_cells_are_all_combinations_in_the_order_given():
    sweep = plan(["recipe=lora_cola,prefix_cola", "seed=1,2", "trainer.epochs=3"])
    assert sweep.swept == (
        ("recipe=lora_cola", "seed=1"),
        ("recipe=lora_cola", "seed=2"),
        ("recipe=prefix_cola", "seed=1"),
        ("recipe=prefix_cola", "seed=2"),
    )
    assert [(run.config.recipe, run.config.seed, run.config.trainer.epochs) for run in sweep.runs] == [
        ("lora_cola", 1, 3),
        ("lora_cola", 2, 3),
        ("prefix_cola", 1, 3),
        ("prefix_cola", 2, 3),
    ]
    assert sweep.fixed == ("trainer.epochs=3",)


@pytest.mark.parametrize(
    ("argument", "count"),
    [
        ("seed=range(1,4)", 3),
        ("trainer.learning_rate=choice(1e-4,2e-4)", 2),
        ("recipe=glob(full_*)", 4),
        ("trainer.patience=null,3", 2),
        ("adapter.attn_matrices=[q],[q,v]", 2),
        ("+seed=1,2", 2),
        ("seed=5", 1),
    ],
)
def test_ways_to_give_several_values(argument, count):
    assert len(plan([argument]).runs) == count


def test_the_mistakes_of_all_cells_each_once():
    found = problems("adapter=lora,seq_bn", "seed=1,x", "trainer.learnin_rate=1", "adapter.r=2", "a=[")
    starts = [problem.split(" ")[0] for problem in found]
    assert starts == ["'a=['", "trainer.learnin_rate", "seed", "adapter.r"]  # r is right for one of the adapters only


def test_an_interval_needs_a_sweeper_that_draws():
    assert "an interval has no single values" in problems("trainer.learning_rate=interval(1e-5,1e-3)")[0]
    sweep = plan(["trainer.learning_rate=interval(1e-5,1e-3)", "hydra/sweeper=other"])
    assert [run.config.trainer.learning_rate for run in sweep.runs] == [1e-5, 1e-3]
    assert sweep.lines == ("++trainer.learning_rate=interval(1e-5,1e-3)",)
    assert "is -1.0; it must be positive" in problems("trainer.learning_rate=interval(-1,1)", "hydra/sweeper=other")[0]


def test_hydra_hands_out_the_cells_and_leaves_nothing_behind(tmp_path):
    sweep = plan(["recipe=lora_cola,prefix_cola", "adapter.leave_out=[],[1]", "head.dropout=0.5", "~trainer.patience"])
    found = launch(sweep, lambda number, swept: (number, tuple(swept)), tmp_path / "out")
    assert found == list(enumerate(sweep.swept))
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_launcher_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"hydra \(command line\): .*hydra/launcher/nowhere.*plug-ins"):
        launch(plan(["seed=1", "hydra/launcher=nowhere"]), lambda number, swept: None, tmp_path)
