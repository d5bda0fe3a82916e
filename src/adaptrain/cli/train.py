"""`adaptrain train`: one run, or with `-m` one for each combination of values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from adaptrain.cli.arguments import split


def run(arguments: Sequence[str]) -> int:
    """Compose, train, say where the result is and what to do next."""
    found = split(arguments, flags=("-m", "--multirun"), config=True)
    overrides = [*found.paths, *found.overrides]  # a word without `=` is refused with the other mistakes
    if found.options:
        from adaptrain.cli.sweep import run_sweep

        return run_sweep(overrides)

    row, folder, finished_before = answer(overrides, command_line(arguments))
    print(closing(row, folder, finished_before))
    return 0


def answer(overrides: Sequence[str], command: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
    """The results row and folder of the run that overrides mean, trained now or before; and whether it was before.

    Args:
        command: for the manifest.
    """
    from adaptrain.cli.again import asked_by, finished_run, remember
    from adaptrain.config.compose import draft
    from adaptrain.config.render import annotated_yaml

    drafted = draft(overrides)
    if (found := finished_run(drafted)) is not None:
        _print_notes(drafted.notes)
        return found[0], str(found[1]), True
    asked = asked_by(drafted) if drafted.in_order else ""
    composed = drafted.finish()  # before transformers and datasets are imported: a typo should not have to wait

    from adaptrain.training.run import train

    with composed.explaining():
        result = train(composed.config, annotated_yaml(composed), command, notes=composed.notes)
    remember(result.folder, asked)
    if result.finished_before:
        _print_notes(composed.notes)
    return result.row, str(result.folder), result.finished_before


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def command_line(arguments: Sequence[str]) -> tuple[str, ...]:
    """The command, as the manifest keeps it."""
    return ("adaptrain", "train", *arguments)


def closing(row: dict[str, Any], folder: str, finished_before: bool) -> str:
    """The last lines of a run."""
    lines = [_told(each) for each in row["branches"].values()] if "branches" in row else [_told(row)]
    if finished_before:
        lines.append(f"finished before: {folder} (force=true trains it again)")
    else:
        lines.append(f"saved: {folder}")
    lines.append(f"next:  adaptrain eval {shlex.quote(folder)}")
    return "\n".join(lines)


def scored(row: dict[str, Any]) -> str:
    """The score of a run, or those of its branches, as people read them."""
    from adaptrain.evaluation.metrics import get_metric

    if "branches" in row:
        return ", ".join(f"{name} {scored(each)}" for name, each in row["branches"].items())
    metric = get_metric(row["metric"])
    return f"{metric.name} {metric.shown(row['score'])}"


def _told(row: dict[str, Any]) -> str:
    from adaptrain.evaluation.metrics import get_metric

    metric, baseline = get_metric(row["metric"]), row["baseline"]
    name = f"{row['branch']}: " if "branch" in row else ""
    against = f"{baseline['name']} {metric.shown(baseline['score'])}"
    score = f"{metric.label} {metric.shown(row['score'])}"
    return f"{name}{score} on {row['task']}, split '{row['split']}' ({against})"
