"""`adaptrain train`: one run, or with `-m` one for each combination of values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from adaptrain.cli.arguments import split


def run(arguments: Sequence[str]) -> int:
    """Compose, train, say where the result is and what to do next."""
    found = split(arguments, flags=("-m", "--multirun"))
    overrides = [*found.paths, *found.overrides]  # a word without `=` is refused with the other mistakes
    if found.options:
        from adaptrain.cli.sweep import run_sweep

        return run_sweep(overrides)

    from adaptrain.config.compose import compose
    from adaptrain.config.render import annotated_yaml

    composed = compose(overrides)  # before transformers and datasets are imported: a typo should not have to wait

    from adaptrain.training.run import train

    result = train(composed.config, annotated_yaml(composed), command_line(arguments))
    print(closing(result.row, str(result.folder), result.finished_before))
    return 0


def command_line(arguments: Sequence[str]) -> tuple[str, ...]:
    """The command, as the manifest keeps it."""
    return ("adaptrain", "train", *arguments)


def closing(row: dict[str, object], folder: str, finished_before: bool) -> str:
    """The last lines of a run."""
    from adaptrain.evaluation.metrics import get_metric

    metric, score = get_metric(str(row["metric"])), row["score"]
    baseline = row["baseline"]
    assert isinstance(score, float) and isinstance(baseline, dict)
    against = f"{baseline['name']} {metric.shown(baseline['score'])}"
    lines = [f"{metric.label} {metric.shown(score)} on {row['task']}, split '{row['split']}' ({against})"]
    if finished_before:
        lines.append(f"finished before: {folder} (force=true trains it again)")
    else:
        lines.append(f"saved: {folder}")
    lines.append(f"next:  adaptrain eval {shlex.quote(folder)}")
    return "\n".join(lines)
