from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptrain.errors import OutputError
from adaptrain.reporting.render import RENDERERS, to_csv, to_latex, to_markdown, to_rich
from adaptrain.reporting.results import preset_name
from adaptrain.reporting.table import Column, Table, build_table, collect

ENVIRONMENT = {"adaptrain": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "precision": "bf16", "data": "d1"}


def result(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": "lora",
        "adapter": {"method": "lora", "r": 8},
        "model": "somebody/small_model",
        "task": "cola",
        "metric": "mcc",
        "score": 0.5,
        "split": "validation",
        "seed": 1,
        "baseline": {"name": "majority class", "answer": "good", "score": 0.0},
        "adapter_parameters": 1000,
        "head_parameters": 200,
        "percent_of_base": 1.2,
        "settings": {"trainer.learning_rate": 1e-4, "trainer.epochs": 3},
        "environment": dict(ENVIRONMENT),
    }
    return row | changes


def save(folder: Path, row: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(row))
    (folder / "run.json").write_text("{}")
    return folder


def table(tmp_path: Path, *rows: dict[str, Any]) -> Table:
    for number, row in enumerate(rows):
        save(tmp_path / f"recipe{number}" / "abc", row)
    return build_table(collect(tmp_path))


COLA = Column("cola", "mcc", "validation")
STSB = {"task": "stsb", "metric": "pearson", "baseline": {"name": "mean", "answer": 2.5, "score": 0.0}}
PREFIX = {"method": "prefix_tuning", "adapter": {"method": "prefix_tuning", "prefix_length": 30}}


def shown(made: Table) -> list[tuple[str, ...]]:
    return [
        (line.label, *(column.details.shown(line.cells[column].mean) for column in line.cells)) for line in made.lines
    ]


def test_mean_and_deviation_over_seeds_whatever_the_recipe(tmp_path: Path) -> None:
    made = table(tmp_path, result(score=0.5), result(score=0.6, seed=2), result(score=0.7, seed=3))
    baseline, line = made.lines
    assert baseline.label == "majority class" and baseline.cells[COLA].mean == 0.0
    cell = line.cells[COLA]
    assert cell.mean == pytest.approx(0.6) and cell.deviation == pytest.approx(0.1) and len(cell.scores) == 3
    assert "60.0 ± 10.0 (n=3)" in to_markdown(made)


def test_methods_by_tasks(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        result(),
        result(score=0.8, **STSB),
        result(score=0.4, adapter_parameters=5000, **PREFIX),
        result(score=0.3, model="somebody/other"),
    )
    assert [(line.label, line.model) for line in made.lines] == [
        ("majority class / mean", ""),
        ("lora", "somebody/other"),
        ("lora", "somebody/small_model"),
        ("prefix_tuning", "somebody/small_model"),
    ]
    assert [column.task for column in made.columns] == ["cola", "stsb"]
    assert [line.cells[COLA].best for line in made.lines] == [False, False, True, False]


def test_a_method_with_other_hyperparameters_is_another_line(tmp_path: Path) -> None:
    made = table(tmp_path, result(), result(score=0.6, adapter={"method": "lora", "r": 16}))
    assert sorted(line.label for line in made.lines[1:]) == ["lora (r=16)", "lora (r=8)"]


def test_runs_with_other_settings_are_no_repetitions(tmp_path: Path) -> None:
    other = {"settings": {"trainer.learning_rate": 1e-3, "trainer.epochs": 3}}
    made = table(tmp_path, result(), result(seed=2), result(score=0.6, **other))
    assert {line.label: len(line.cells[COLA].scores) for line in made.lines[1:]} == {
        "lora (learning_rate=0.0001)": 2,
        "lora (learning_rate=0.001)": 1,
    }


def test_each_task_may_have_its_own_settings(tmp_path: Path) -> None:
    other = {"settings": {"trainer.learning_rate": 1e-3, "trainer.epochs": 9}}
    made = table(tmp_path, result(), result(score=0.8, **STSB, **other))
    assert shown(made)[1:] == [("lora", "50.0", "80.0")]


def test_splits_have_columns_of_their_own(tmp_path: Path) -> None:
    made = table(tmp_path, result(), result(split="test", score=0.4))
    assert len(made.columns) == 2
    assert "cola (test), MCC" in to_markdown(made) and "cola (validation), MCC" in to_markdown(made)


def test_the_lowest_error_is_best_and_ties_as_shown_are_equal(tmp_path: Path) -> None:
    error = {"metric": "mse", "baseline": {"name": "mean", "score": 2.0}}
    made = table(tmp_path, result(score=0.51234, **error), result(score=0.51239, **error, **PREFIX))
    assert [line.cells[made.columns[0]].best for line in made.lines] == [False, True, True]
    assert "MSE ↓" in to_markdown(made)


def test_a_baseline_that_wins_is_bold(tmp_path: Path) -> None:
    made = table(tmp_path, result(score=-0.1))
    assert made.lines[0].cells[COLA].best and not made.lines[1].cells[COLA].best
    assert "| majority class |  |  |  |  | **0.0** |" in to_markdown(made)


def test_other_environments_are_marked(tmp_path: Path) -> None:
    old = {"environment": ENVIRONMENT | {"transformers": "5.3.0", "precision": "fp32"}}
    made = table(tmp_path, result(), result(seed=2), result(seed=3), result(score=0.9, **old, **PREFIX))
    marks = {line.label: line.cells[COLA].marks for line in made.lines}
    assert marks == {"majority class": (), "lora": (), "prefix_tuning": ("a",)}
    assert "transformers 5.3.0, not 5.23.0, precision fp32, not bf16" in made.footnotes["a"]
    assert "**90.0**<sup>a</sup>" in to_markdown(made) and "\na: has runs with" in to_markdown(made)
    other = table(
        tmp_path / "data", result(), result(seed=2), result(environment=ENVIRONMENT | {"data": "d2"}, **PREFIX)
    )
    assert "other evaluation data" in other.footnotes["a"]


def test_what_cannot_be_used_is_left_out_with_a_note(tmp_path: Path) -> None:
    save(tmp_path / "good", result())
    (save(tmp_path / "unfinished", result()) / "run.json").unlink()
    (save(tmp_path / "broken", result()) / "result.json").write_text("{")
    (save(tmp_path / "gone", result()) / "result.json").unlink()
    (save(tmp_path / "list", result()) / "result.json").write_text("[]")
    save(tmp_path / "short", {key: value for key, value in result().items() if key != "score"})
    save(tmp_path / "metric", result(metric="meteor"))
    save(tmp_path / "nan", result(score=float("nan")))
    save(tmp_path / ".abc.partial", result(score=0.99))
    made = build_table(collect(tmp_path))
    assert shown(made) == [("majority class", "0.0"), ("lora", "50.0")]
    notes = {Path(note.partition(":")[0]).name: note for note in made.notes}
    assert set(notes) == {"unfinished", "broken", "gone", "list", "short", "metric", "nan"}
    assert "not finished" in notes["unfinished"] and "score" in notes["short"] and "meteor" in notes["metric"]
    assert all(note in to_markdown(made) for note in made.notes)


def test_an_average_is_no_run_and_nothing_to_note(tmp_path: Path) -> None:
    save(tmp_path / "good", result())
    (save(tmp_path / "mean", result(score=0.9)) / "run.json").unlink()
    (tmp_path / "mean" / "task.json").write_text("{}")
    (tmp_path / "mean" / "average.json").write_text("{}")
    made = build_table(collect(tmp_path))
    assert shown(made) == [("majority class", "0.0"), ("lora", "50.0")] and made.notes == ()


SIGNED = {"metric": "bleu", "baseline": {"name": "copy", "score": 0.1}, "task": "translation"}


def test_how_a_metric_is_computed_stands_below(tmp_path: Path) -> None:
    one, other = ({"bleu": f"nrefs:1|tok:13a|version:{version}", "chrf": "no"} for version in ("2.5", "2.4"))
    made = table(
        *(tmp_path, result(signatures=one, **SIGNED), result(signatures=one, seed=2, **SIGNED)),
        *(result(), result(signatures=other, **SIGNED, **PREFIX)),
    )
    (column,) = (column for column in made.columns if column.task == "translation")
    assert made.signatures == {column: one["bleu"]}
    text = to_markdown(made)
    assert f"\ntranslation, {column.details.label}: {one['bleu']}\n" in text
    assert "\na: has runs with signature nrefs:1|tok:13a|version:2.4, not nrefs:1|tok:13a|version:2.5" in text
    marked = {line.label: line.cells[column].marks for line in made.lines if column in line.cells}
    assert {label for label, marks in marked.items() if marks} == {"prefix_tuning"}
    assert marked["prefix_tuning"] == ("a",)
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert {row["signature"] for row in rows if row["task"] == "translation"} == {one["bleu"]}
    assert {row["signature"] for row in rows if row["task"] == "cola"} == {""}


def test_which_split_chose_and_which_is_scored(tmp_path: Path) -> None:
    carved = {"held_out": "from train, 1,000 rows, seed 0"}
    made = table(
        *(tmp_path, result(chosen_on="validation"), result(chosen_on="validation", seed=2)),
        result(chosen_on="held_out", carved=carved, **STSB),
        result(chosen_on="held_out", carved=carved, **STSB | {"metric": "spearman"}),  # two metrics, told once
        result(chosen_on=None, task="last"),
        result(task="old"),
        result(chosen_on="held_out", split="held_out", carved=carved, task="one"),
    )
    told = "held_out (carved from train, 1,000 rows, seed 0)"
    assert made.remarks == [
        f"the split that chose is the one that is scored: cola, validation; one, {told}",
        f"stsb: chosen on {told}, scored on validation",
    ]
    assert all(f"\n{remark}\n" in to_markdown(made) for remark in made.remarks)
    assert all(f"% {remark}\n" in to_latex(made) for remark in made.remarks)
    rows = {row["task"]: row for row in csv.DictReader(io.StringIO(to_csv(made)))}
    assert [rows[task]["chosen_on"] for task in ("cola", "stsb", "last", "old")] == ["validation", told, "", ""]


def test_no_runs_at_all(tmp_path: Path) -> None:
    made = build_table(collect(tmp_path))
    assert made.lines == () and to_markdown(made).startswith("| method |")
    with pytest.raises(OutputError, match="There is no folder"):
        collect(tmp_path / "nowhere")


def test_markdown(tmp_path: Path) -> None:
    made = table(tmp_path, result(score=0.5), result(score=0.6, seed=2, head_parameters=300, percent_of_base=1.3))
    assert to_markdown(made) == (
        "| method | base model | adapter | head | % of base | cola, MCC |\n"
        "|---|---|---:|---:|---:|---:|\n"
        "| majority class |  |  |  |  | 0.0 |\n"
        "| lora | small_model | 1,000 | 200–300 | 1.20–1.30 | **55.0 ± 7.1 (n=2)** |\n"
    )


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    text = to_markdown(table(tmp_path, result(), result(model="other/small_model"), result(model="/home/me/tiny")))
    assert "| somebody/small_model |" in text
    assert "| other/small_model |" in text
    assert "| tiny |" in text


def test_csv_has_every_digit(tmp_path: Path) -> None:
    made = table(tmp_path, result(score=0.512345678901), result(score=0.6, seed=2))
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert [row["method"] for row in rows] == ["majority class", "lora"]
    assert float(rows[1]["mean"]) == pytest.approx((0.512345678901 + 0.6) / 2, abs=1e-15)
    assert rows[1]["n"] == "2" and rows[1]["metric"] == "mcc" and rows[1]["best"] == "1" and rows[0]["n"] == ""


def test_latex_is_escaped_and_booktabs(tmp_path: Path) -> None:
    text = to_latex(table(tmp_path, result(), result(seed=2, score=0.6)))
    assert r"\toprule" in text and r"\bottomrule" in text and text.count(r"\midrule") == 2
    assert r"lora & small\_model & 1,000 & 200 & 1.20 & \textbf{55.0 $\pm$ 7.1 (n=2)} \\" in text
    assert r"\% of base" in text


def test_a_terminal_shows_the_same(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    old = {"environment": ENVIRONMENT | {"torch": "2.6.0"}}
    console.print(to_rich(table(tmp_path, result(), result(seed=2), result(score=0.4, **old, **PREFIX))))
    shown_text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for part in ("majority class", "small_model", "1,000", "50.0 ± 0.0 (n=2)", "40.0 a)", "torch 2.6.0"):
        assert part in shown_text


def test_every_renderer_takes_an_empty_table(tmp_path: Path) -> None:
    for render in RENDERERS.values():
        assert isinstance(render(build_table([])), str)


def test_methods_are_called_by_their_preset() -> None:
    from adaptrain.methods import presets

    for name, make in presets().items():
        assert preset_name(make().to_dict()) == name
    assert preset_name(presets()["seq_bn"]().replace(reduction_factor=8).to_dict()) == "seq_bn"
    assert preset_name({"method": "lora", "r": 64}) == "lora"
    lora, bottleneck = {"method": "lora", "r": 4}, presets()["seq_bn"]().replace(reduction_factor=8).to_dict()
    assert preset_name({"method": "union", "configs": [lora, bottleneck]}) == "lora|seq_bn"
    small = [{"method": "prefix_tuning", "prefix_length": 3}, presets()["par_bn"]().replace(scaling=2.0).to_dict()]
    assert preset_name({"method": "union", "configs": small}) == "mam"
    ungated = [{"method": "prefix_tuning"}, bottleneck, lora]
    assert preset_name({"method": "union", "configs": ungated}) == "prefix_tuning|seq_bn|lora"


def test_members_of_a_union_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    members = [{"method": "lora", "r": 4, "alpha": 8}, {"method": "prefix_tuning", "prefix_length": 3}]
    other = [{"method": "lora", "r": 8, "alpha": 8}, members[1]]
    runs = [
        result(adapter={"method": "union", "configs": configs}, method="lora|prefix_tuning", score=score)
        for configs, score in ((members, 0.5), (other, 0.6))
    ]
    assert [line.label for line in table(tmp_path, *runs).lines][1:] == [
        "lora|prefix_tuning (configs.0.r=4)",
        "lora|prefix_tuning (configs.0.r=8)",
    ]
