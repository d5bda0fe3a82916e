"""A whole run: from a resolved config to a folder with a trained adapter and everything that is known of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from adaptrain.composition import parse
from adaptrain.config.composition import branch_block, complete_members
from adaptrain.config.schema import RunConfig, TaskConfig
from adaptrain.errors import ConfigError, OutputError
from adaptrain.evaluation.metrics import check_metrics, get_metric
from adaptrain.evaluation.predict import Predictions
from adaptrain.evaluation.saved import write_task
from adaptrain.files import read_json, write_json
from adaptrain.methods import MethodConfig, config_from_dict
from adaptrain.reporting.folder import MANIFEST, RESULT, check_free, is_finished, made_whole, run_folder
from adaptrain.reporting.manifest import manifest, versions
from adaptrain.reporting.results import method_name, result_row
from adaptrain.tasks.settle import is_settled, settle_task
from adaptrain.training.display import Display, Displays, JsonLog, make_display
from adaptrain.training.ingredients import NAME as INGREDIENTS
from adaptrain.training.ingredients import note_commits, note_named, take_stock
from adaptrain.training.loop import Plan, fit, total_steps
from adaptrain.training.members import check_members
from adaptrain.training.memory import peak_memory, reset_peak
from adaptrain.training.prepare import Prepared, prepare
from adaptrain.training.recheck import check_same, named_files
from adaptrain.training.state import TrainState, make_optimizer


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: of the run.
        row: its results row.
        finished_before: whether the folder was there already, so that nothing was done.
    """

    folder: Path
    row: dict[str, Any]
    finished_before: bool


@dataclass(frozen=True)
class Spent:
    """What a run took.

    Attributes:
        started: when.
        train, evaluate, total: seconds; the evaluations during training count as training.
        memory: bytes at the peak.
    """

    started: datetime
    train: float
    evaluate: float
    total: float
    memory: int


def train(
    config: RunConfig,
    origins_yaml: str | None = None,
    command: Sequence[str] = (),
    display: Display | None = None,
    notes: Sequence[str] = (),
) -> RunResult:
    """Train, evaluate and save one adapter, or the branches of a composition. A finished run is not repeated unless
    `config.force`; it is the answer only while it would be made of the same rows, weights and saved adapters.

    Args:
        origins_yaml: the resolved config with the origin of each key, saved as `origins.yaml`.
        command: that started the run, for the manifest.
        display: told what happens; chosen by the terminal when None.
        notes: on how the config was composed, to be shown and kept with the run's own.

    Raises:
        ConfigError: keys that do not go together.
        DataError: rows that are missing or wrong.
        ModelError: a base model that is missing or wrong.
        UnsupportedError: a method and a model that do not go together.
        OutputError: results that cannot be written; or a finished run of other rows, weights or adapters.
        OutOfMemoryError: too little memory.
        AdaptrainError: training diverged.
    """
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    config, method, inferred = complete(config)
    notes = (*notes, *inferred)
    folder = run_folder(config)
    if is_finished(folder) and not config.force:
        check_same(folder, config)
        return RunResult(folder, read_json(folder / RESULT), finished_before=True)
    check_free(folder, config.force)
    stock = take_stock(config)
    display = make_display() if display is None else display
    if not config.plain and branch_block(parse(config.expression)) is not None:
        from adaptrain.training.branch_run import train_branches  # late: it writes with what is below

        return train_branches(config, notes, folder, origins_yaml, command, display, started, clock, stock)

    run = prepare(config, method, notes)
    reset_peak(run.hardware.device)
    alone = run.hardware.accelerator.is_main_process  # of several processes one writes and speaks
    with made_whole(folder) if alone else nullcontext() as work:
        log = Displays([] if work is None else [display, JsonLog(work / "log.jsonl")])
        try:
            begun = time.perf_counter()
            state = _train(run, log)
            trained = time.perf_counter()
            run.calibrate()
            for name, value in run.settings.items():
                log.note(f"{name}={value:.4g}, chosen on split '{config.task.splits.validation}'")
            predictions = run.predict(run.reported)
            done = time.perf_counter()
        finally:
            log.stop()
        memory = peak_memory(run.hardware.device)
        spent = Spent(started, trained - begun, done - trained, done - clock, memory)
        row = result_of(run, state, predictions, folder.name, spent)
        if work is not None:
            write_run(work, run, state, predictions, row)
            write_config(work, config, origins_yaml)
            note_named(stock, named_files({role: read.rows for role, read in run.splits.items()}))
            write_ingredients(work, stock)
            write_manifest(work, run, spent, command)
    run.hardware.accelerator.wait_for_everyone()
    return RunResult(folder, row, finished_before=False)


def complete(config: RunConfig) -> tuple[RunConfig, MethodConfig, tuple[str, ...]]:
    """The config with every key of its method and task filled in, so that it says what was run whatever defaults
    become; and notes on what was inferred.

    Raises:
        ConfigError: a method that is unknown, has wrong keys or cannot train on a quantised base; a metric that does
            not fit the task.
        DataError: a task leaves open what its training rows do not say.
    """
    method = config_from_dict(config.adapter)
    task = config.task
    if not config.plain:
        config = complete_members(config)
        check_members(config)
    elif method.trains_base and config.model.quantize is not None:
        raise ConfigError(
            f"adapter={method.method} trains the base model's weights, which model.quantize={config.model.quantize} "
            "keeps in few bits; set model.quantize=null, or choose another adapter"
        )
    names, notes = (task.metric, *task.extra_metrics), []
    check_metrics(task.type, len(task.labels), names)  # what is wrong in any case, before rows are read
    if not is_settled(task):
        task, notes = _settled(task, config)
        check_metrics(task.type, len(task.labels), names)
        config = dataclasses.replace(config, task=task)
    members = {}
    for name, member in config.adapters.items():
        if member.task is not None and not is_settled(member.task):
            own, more = (task, []) if member.task.name == task.name else _settled(member.task, config)
            members[name], notes = dataclasses.replace(member, task=own), notes + more
    config = dataclasses.replace(config, adapters=config.adapters | members, adapter=method.to_dict())
    return config, method, tuple(notes)


def _settled(task: TaskConfig, config: RunConfig) -> tuple[TaskConfig, list[str]]:
    found = settle_task(task, config.data)
    return found.task, [f"task {task.name}: {note}" for note in found.notes]


def planned_folder(config: RunConfig) -> Path:
    """Where `train` would put this run.

    Raises:
        ConfigError: as `complete`.
    """
    return run_folder(complete(config)[0])


def _train(run: Prepared, display: Display) -> TrainState:
    """Train the prepared model; it ends with the weights to keep."""
    config = run.config
    rank = run.hardware.accelerator.process_index
    if rank:  # dropout must differ between processes; everything else has been drawn by now
        torch.manual_seed(config.seed + rank)
    state = TrainState(make_optimizer(run.model.trainable_parameters(), config.trainer, run.model.rate))
    for note in run.notes:
        display.note(note)
    run.keep()
    metric, rows = get_metric(config.task.metric), run.splits["train"].encoded
    plan = Plan(
        rows=rows,
        collate=run.reader.collate,
        evaluate=lambda: run.choose().scores(),
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        steps=total_steps(len(rows), config.trainer),
        seed=config.seed,
        begin=run.begin("train"),
    )
    display.start(f"{method_name(config)} on {config.task.name}", plan.steps, metric)
    fit(run.model, state, plan, config.trainer, run.hardware, display)
    return state


def result_of(run: Prepared, state: TrainState, predictions: Predictions, name: str, spent: Spent) -> dict[str, Any]:
    """The results row of a run whose folder has this name."""
    config, metric = run.config, run.config.task.metric
    scores, split, best = predictions.scores(), run.splits[run.reported].rows, state.best_evaluation
    adapter, head, base = run.parameter_counts()
    chosen = config.trainer.keep == "best" or run.settings
    return result_row(
        config,
        run=name,
        score=scores[metric],
        metrics=scores,
        signatures=predictions.signatures(),
        baseline={
            "name": run.baseline.name,
            "answer": run.baseline.answer,
            "score": run.baseline.metrics[metric],
        },
        split=split.split,
        chosen_on=run.splits["validation"].rows.split if chosen else None,
        carved={name: words for name, words in run.carved().items() if name != config.task.splits.train},
        rows=len(split),
        adapter_parameters=adapter,
        head_parameters=head,
        base_parameters=base,
        epochs=state.evaluations[-1].epoch,
        steps=state.step,
        best_epoch=best.epoch if best is not None and config.trainer.keep == "best" else None,
        seconds=spent.total,
        peak_memory=spent.memory,
        precision=run.hardware.precision.name,
        device=str(run.hardware.device),
        versions=versions(),
        data_fingerprint=split.fingerprint,
    )


def write_run(
    work: Path,
    run: Prepared,
    state: TrainState,
    predictions: Predictions,
    row: dict[str, Any],
) -> None:
    """The adapter and its results; the manifest, which makes the run finished, is written after them."""
    config = run.config
    if config.plain:
        run.model.save_adapter(work, config.task.name)
    else:
        run.model.save_composition(work)
    predictions.write(work / "predictions.jsonl")
    write_task(
        work,
        config,
        run.base,
        head=dataclasses.asdict(config.head),
        precision=run.hardware.precision.name,
        split=row["split"],
        score=row["score"],
        data_fingerprint=run.splits[run.reported].rows.fingerprint,
        settings=run.settings,
    )
    metrics = {
        "split": row["split"],
        "chosen_on": row["chosen_on"],
        "metric": row["metric"],
        "metrics": row["metrics"],
        "signatures": row["signatures"],
        "baseline": dataclasses.asdict(run.baseline),
        "evaluations": [dataclasses.asdict(evaluation) for evaluation in state.evaluations],
    }
    write_json(work / "metrics.json", metrics)
    write_json(work / RESULT, row)


def write_config(work: Path, config: RunConfig, origins_yaml: str | None) -> None:
    """The resolved config, and with it where each key was set.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        (work / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
        if origins_yaml is not None:
            (work / "origins.yaml").write_text(origins_yaml, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {work}: {error}") from None


def write_ingredients(work: Path, stock: dict[str, Any]) -> None:
    """What the run was made of, so that the same command can tell whether that is still there."""
    note_commits(stock)
    write_json(work / INGREDIENTS, stock)


def write_manifest(work: Path, run: Prepared, spent: Spent, command: Sequence[str]) -> None:
    """The manifest, which makes the run finished."""
    values = manifest(
        command=command,
        started=spent.started,
        seed=run.config.seed,
        device=run.hardware.device,
        processes=run.hardware.accelerator.num_processes,
        precision=run.hardware.precision.name,
        base_dtype=run.hardware.precision.base,
        base_model={**run.base.identity, "location": run.base.location, "quantize": run.config.model.quantize},
        data=run.describe_data(),
        seconds={"train": spent.train, "evaluate": spent.evaluate, "total": spent.total},
        peak_memory=spent.memory,
        notes=run.notes,
    )
    if not run.config.plain:
        values["adapters"] = [source.describe() for source in run.sources]
    write_json(work / MANIFEST, values)


def config_yaml(config: RunConfig) -> str:
    """A resolved config as YAML. It is a recipe, which shall find the run and not replace it: `force` is false."""
    values = config.resolved() | {"force": False}
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
