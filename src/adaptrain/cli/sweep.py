"""`adaptrain train -m`: all cells are checked before any starts; one that fails does not stop the others."""

from __future__ import annotations

import gc
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptrain.cli.environment import quieten
from adaptrain.cli.failures import debugging, describe, tell
from adaptrain.cli.screen import print_rows, styled
from adaptrain.cli.train import answer, closing, command_line, scored
from adaptrain.config.sweep import Sweep, launch, plan
from adaptrain.errors import ConfigError
from adaptrain.reporting.folder import run_folder


@dataclass(frozen=True)
class Outcome:
    """What became of a cell. Travels between processes.

    Attributes:
        name: its swept overrides.
        status: `done`, `finished before` or `failed`.
        score: as people read it.
        folder: of the run; why there is none where it failed.
        exit_code: 0, or that of the failure.
    """

    name: str
    status: str
    score: str
    folder: str
    exit_code: int = 0


@dataclass(frozen=True)
class RunCell:
    """Trains one cell, in whatever process a launcher puts it.

    Attributes:
        fixed: overrides that all cells share.
        total: number of cells.
    """

    fixed: tuple[str, ...]
    total: int

    def __call__(self, number: int, swept: Sequence[str]) -> Outcome:
        quieten()
        name = " ".join(swept) or "(nothing swept)"
        print(styled(f"[{number + 1}/{self.total}] {name}", "1", sys.stdout), flush=True)
        try:
            return self._train(name, swept)
        except Exception as error:
            failure = describe(error)
            if debugging():
                traceback.print_exception(error)
            tell(failure)
            return Outcome(name, "failed", "", failure.problems[0], failure.exit_code)
        finally:
            _free_memory()

    def _train(self, name: str, swept: Sequence[str]) -> Outcome:
        arguments = [*self.fixed, *swept]
        row, folder, finished_before = answer(arguments, command_line(arguments))
        print(closing(row, folder, finished_before), flush=True)
        return Outcome(name, "finished before" if finished_before else "done", scored(row), folder)


def run_sweep(arguments: Sequence[str]) -> int:
    """Check, run and sum up a sweep.

    Returns:
        0, or the exit code of the worst failure.
    """
    sweep = plan(arguments)
    _refuse_twins(sweep)
    outputs = Path(sweep.runs[0].config.outputs).expanduser()
    outcomes = launch(sweep, RunCell(sweep.fixed, len(sweep.runs)), outputs)
    found = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    failed = [outcome for outcome in found if outcome.exit_code]
    print()
    if found:
        print_rows(
            ["cell", "status", "score", "folder"],
            [[outcome.name, outcome.status, outcome.score, outcome.folder] for outcome in found],
            title=f"{len(found)} run{'' if len(found) == 1 else 's'}, {len(failed)} failed",
        )
    else:  # some sweepers keep what their cells return
        print("the sweeper hands on no results; the folders have them")
    print(f"next:  adaptrain table {shlex.quote(str(outputs))}")
    return max((outcome.exit_code for outcome in failed), default=0)


def _refuse_twins(sweep: Sweep) -> None:
    """Refuse cells that would write to the same folder: side by side they would be in each other's way."""
    first: dict[Path, Sequence[str]] = {}
    problems = []
    for swept, run in zip(sweep.swept, sweep.runs, strict=True):
        folder = run_folder(run.config)
        if folder in first:
            problems.append(
                f"-m (command line): the cells '{' '.join(first[folder])}' and '{' '.join(swept)}' are the same run; "
                "leave one out"
            )
        first.setdefault(folder, swept)
    if problems:
        raise ConfigError(problems)


def _free_memory() -> None:
    """Give back what the last cell held, so that the next one finds the memory it would find alone."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
