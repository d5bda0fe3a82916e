"""A run with branches: trained together, and left in one folder with a folder a branch.

composition.json, adapters/, heads/    the whole (`adaptrain.composed`)
config.yaml, log.jsonl, run.json       of the whole
result.json                            branch → its results row
branches/<name>/                       each like the folder of a run of its own
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from adaptrain.composition import BatchSplit
from adaptrain.config.schema import RunConfig
from adaptrain.errors import OutputError
from adaptrain.evaluation.metrics import get_metric
from adaptrain.evaluation.predict import Predictions
from adaptrain.files import read_json, write_json
from adaptrain.reporting.folder import MANIFEST, RESULT, branch_folder, made_whole
from adaptrain.reporting.results import method_name
from adaptrain.tasks.shapes import SHAPES
from adaptrain.training.branch_prepare import PreparedBranches, batch_sizes, prepare_branches
from adaptrain.training.branches import Branch, fit_branches, fit_mixed
from adaptrain.training.display import BranchDisplay, Display, Displays, JsonLog
from adaptrain.training.loop import Plan, total_steps
from adaptrain.training.memory import peak_memory, reset_peak
from adaptrain.training.mixed import Mixed, averaged, choosing, mixed, split_batches
from adaptrain.training.run import (
    RunResult,
    Spent,
    result_of,
    write_config,
    write_ingredients,
    write_manifest,
    write_run,
)
from adaptrain.training.state import TrainState, make_optimizer

FORMAT = "adaptrain-branches/1"


def train_branches(
    config: RunConfig,
    notes: Sequence[str],
    folder: Path,
    origins_yaml: str | None,
    command: Sequence[str],
    display: Display,
    started: datetime,
    clock: float,
    stock: dict[str, Any],
) -> RunResult:
    """Train, evaluate and save the branches of a composition; the rest of `train`.

    Args:
        notes: that there are already.
        folder: of the run; it is free.
        clock: `perf_counter` when the run began.
        stock: what the run is made of.
    """
    run = prepare_branches(config)
    reset_peak(run.hardware.device)
    with made_whole(folder) as work:
        log = Displays([display, JsonLog(work / "log.jsonl")])
        try:
            begun = time.perf_counter()
            for note in (*notes, *run.notes):
                log.note(note)
            states = _train_apart(run, log) if run.apart else _train_mixed(run, log)
            trained = time.perf_counter()
            predictions = {name: each.predict(each.reported) for name, each in run.runs.items()}
            done = time.perf_counter()
        finally:
            log.stop()
        spent = Spent(started, trained - begun, done - trained, done - clock, peak_memory(run.hardware.device))
        rows = _write(work, run, states, predictions, folder.name, spent, command)
        run.model.save_composition(work)
        write_config(work, config, origins_yaml)
        row = {
            "format": FORMAT,
            "recipe": config.recipe,
            "run": folder.name,
            "composition": method_name(config),
            "model": config.model.name,
            "branches": rows,
        }
        write_json(work / RESULT, row)
        write_ingredients(work, stock)
        _write_manifest(work, run)
    return RunResult(folder, row, finished_before=False)


def _train_apart(run: PreparedBranches, display: Display) -> dict[str, TrainState]:
    """An optimiser a branch."""
    branches = []
    for name, own in run.runs.items():
        config, metric = own.config, get_metric(own.config.task.metric)
        plan = Plan(
            rows=own.splits["train"].encoded,
            collate=own.reader.collate,
            evaluate=lambda own=own: own.choose().scores(),
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            steps=total_steps(len(own.splits["train"].encoded), config.trainer),
            seed=config.seed,
        )
        state = TrainState(make_optimizer(own.model.trainable_parameters(), config.trainer, run.model.rate))
        shown = BranchDisplay(display, name, metric)
        branches.append(Branch(name, own.model, plan, state, config.trainer, shown))
    display.start(method_name(run.config), max(branch.plan.steps for branch in branches), None)
    fit_branches(run.model, run.tree, run.block, branches, run.hardware, display)
    return {branch.name: branch.state for branch in branches}


def _train_mixed(run: PreparedBranches, display: Display) -> dict[str, TrainState]:
    """One optimiser for all branches."""
    config, runs = run.config, run.runs
    metrics = {name: own.config.task.metric for name, own in runs.items()}
    metric = choosing(metrics)
    parts = [own.splits["train"].encoded for own in runs.values()]
    rows, collate = mixed(parts, next(iter(runs.values())).reader.collate)
    steps, batches = total_steps(len(rows), config.trainer), None
    if isinstance(run.block, BatchSplit):
        sizes = batch_sizes(config, run.block)
        batches, count = split_batches(parts, sizes, config.seed, config.trainer.group_by_length)
        steps = config.trainer.max_steps or config.trainer.epochs * count

    def evaluate() -> dict[str, float]:
        return averaged({name: own.choose().scores() for name, own in runs.items()}, metrics)

    plan = Plan(rows, collate, evaluate, metric.name, metric.higher_is_better, steps, config.seed)
    state = TrainState(make_optimizer(run.model.trainable_parameters(), config.trainer, run.model.rate))
    whole = Branch("", run.model, plan, state, config.trainer, display, batches)
    dtypes = [SHAPES[own.config.task.type].label_dtype for own in runs.values()]
    display.start(method_name(config), steps, metric)
    fit_mixed(Mixed(run.model, run.tree, run.block, tuple(runs), dtypes), whole, run.hardware)
    return dict.fromkeys(runs, state)


def _write(
    work: Path,
    run: PreparedBranches,
    states: dict[str, TrainState],
    predictions: dict[str, Predictions],
    name: str,
    spent: Spent,
    command: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """A folder a branch; returns their results rows. Time and memory in them are those of the whole run."""
    rows = {}
    for branch, own in run.runs.items():
        place = work / branch_folder(branch)
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"Cannot write {place}: {error}") from None
        row = result_of(own, states[branch], predictions[branch], f"{name}/{branch}", spent)
        rows[branch] = row | {"branch": branch, "trained_in": method_name(run.config)}
        write_run(place, own, states[branch], predictions[branch], rows[branch])
        if run.apart:
            write_config(place, own.config, None)
        write_manifest(place, own, spent, command)
    return rows


def _write_manifest(work: Path, run: PreparedBranches) -> None:
    """That of any branch, with the data and saved adapters of all."""
    first = next(iter(run.runs))
    values = read_json(work / branch_folder(first) / MANIFEST)
    data = [{"branch": name, **split} for name, own in run.runs.items() for split in own.describe_data()]
    values |= {
        "seed": run.config.seed,
        "data": data,
        "notes": list(run.notes),
        "adapters": [source.describe() for source in run.sources],
    }
    write_json(work / MANIFEST, values)
