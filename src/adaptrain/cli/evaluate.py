"""`adaptrain eval`: evaluate a saved adapter with nothing else given."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrain.cli.arguments import one_path, read_pairs, split
from adaptrain.cli.screen import print_rows
from adaptrain.config.schema import PRECISIONS
from adaptrain.errors import ConfigError, UsageError, listed, nearest
from adaptrain.evaluation.overrides import MODEL_KEYS, PATH

if TYPE_CHECKING:
    from adaptrain.evaluation.run import EvalResult

KEYS = (
    *("adapter", "composition", "adapters.NAME.path", "skip_layers"),
    *("split", PATH, "data.mirror", *MODEL_KEYS),
    *("trainer.precision", "trainer.eval_batch_size", "trainer.device"),
)
_SWAP = re.compile(r"[+~]*(composition|adapters)[=.]|~(composition|adapters)$")
"""Keys of another composition than the trained one, which are read as those of a run are."""


def run(arguments: Sequence[str]) -> int:
    """Print the metrics, of every branch where there are several, and whether training reported the same."""
    found = split(arguments)
    swapped = [override for override in found.overrides if _SWAP.match(override)]
    pairs = [override for override in found.overrides if override not in swapped]
    given = read_pairs(pairs, KEYS, "adaptrain eval")
    if "adapter" in given and found.paths:
        raise UsageError(f"The adapter is given twice: {found.paths[0]} and adapter={given['adapter']}")
    path = Path(given["adapter"] if "adapter" in given else one_path(found, "eval")).expanduser()
    precision, batch_size, skip_layers = _checked(given)

    from adaptrain.config.swap import read_swap

    swap = read_swap(swapped)

    from adaptrain.evaluation.branches import branches_of
    from adaptrain.evaluation.run import evaluate_folder

    options = {
        "mirror": given.get("data.mirror"),
        "precision": precision,
        "split": given.get("split"),
        "batch_size": batch_size,
        "device": given.get("trainer.device", "auto"),
        "skip_layers": skip_layers,
        "overrides": {key: value for key, value in given.items() if key in (PATH, *MODEL_KEYS)},
    }
    if (branches := branches_of(path)) is None:
        _print_one(evaluate_folder(path, **options, swap=swap))
    elif swap is not None:
        raise UsageError(f"{path} has branches; name one to evaluate it with other adapters: {branches[0]}")
    elif PATH in given:
        raise UsageError(f"{path} has branches, each with rows of its own; name one for {PATH}: {branches[0]}")
    else:
        _print_branches({branch.name: evaluate_folder(branch, **options) for branch in branches})
    return 0


def _print_branches(results: dict[str, EvalResult]) -> None:
    from adaptrain.evaluation.metrics import get_metric

    rows = []
    for name, result in results.items():
        for key, value in result.metrics.items():
            what = [name, result.task, result.split, str(result.rows), key]
            rows.append([*what, get_metric(key).shown(value), f"{value:.8f}"])
    head = ["branch", "task", "split", "rows", "metric", "score", "value"]
    print_rows(head, rows, title=f"{len(results)} branches", right=(3, 5, 6))
    for name, result in results.items():
        _print_comparison(result, f"{name}: ")


def _print_one(result: EvalResult) -> None:
    from adaptrain.evaluation.metrics import get_metric

    print_rows(
        ["metric", "score", "value"],
        [[name, get_metric(name).shown(value), f"{value:.8f}"] for name, value in result.metrics.items()],
        title=f"{result.task}, split '{result.split}', {result.rows} rows",
    )
    _print_comparison(result)


def _print_comparison(result: EvalResult, branch: str = "") -> None:
    """With what training reported; of a branch, under its name."""
    for note in result.notes:
        print(f"note: {branch}{note}", file=sys.stderr)
    if result.reproduced is not None and result.stored is not None:
        same = "the same as" if result.reproduced else f"not the {result.stored:.8f}"
        print(f"{branch}{result.metric} {result.score:.8f} is {same} training reported")


def _checked(given: dict[str, str]) -> tuple[str | None, int | None, tuple[int, ...]]:
    precision, size, problems = read_precision_and_size(given)
    layers = [word.strip() for word in given.get("skip_layers", "[]").removeprefix("[").removesuffix("]").split(",")]
    if layers == [""]:
        layers = []
    if not all(word.isdecimal() for word in layers):
        problems.append(
            f"skip_layers (command line): is '{given['skip_layers']}'; it must be a list of layers, counted from 0: "
            "skip_layers=[0,1,2]"
        )
    if problems:
        raise ConfigError(problems)
    return precision, size, tuple(map(int, layers))


def read_precision_and_size(given: dict[str, str]) -> tuple[str | None, int | None, list[str]]:
    """`trainer.precision`, `trainer.eval_batch_size`, and what is wrong with them."""
    problems = []
    precision, size = given.get("trainer.precision"), given.get("trainer.eval_batch_size")
    if precision is not None and precision not in PRECISIONS:
        problems.append(
            f"trainer.precision (command line): is '{precision}'; it must be one of {listed(PRECISIONS)}"
            f"{nearest(precision, PRECISIONS)}"
        )
    if size is not None and not (size.isdecimal() and int(size) > 0):
        problems.append(f"trainer.eval_batch_size (command line): is '{size}'; it must be a whole number above 0")
    return precision, int(size) if size is not None and size.isdecimal() else None, problems
