"""`adaptrain eval`: evaluate a saved adapter with nothing else given."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from adaptrain.cli.arguments import one_path, read_pairs, split
from adaptrain.cli.screen import print_rows
from adaptrain.config.schema import PRECISIONS
from adaptrain.errors import ConfigError, UsageError, listed, nearest

KEYS = (
    *("adapter", "composition", "adapters.NAME.path", "skip_layers"),
    *("split", "data.mirror", "trainer.precision", "trainer.eval_batch_size", "trainer.device"),
)
_SWAP = re.compile(r"[+~]*(composition|adapters)[=.]|~(composition|adapters)$")
"""Keys of another composition than the trained one, which are read as those of a run are."""


def run(arguments: Sequence[str]) -> int:
    """Print the metrics, and whether training reported the same."""
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

    from adaptrain.evaluation.metrics import get_metric
    from adaptrain.evaluation.run import evaluate_folder

    result = evaluate_folder(
        path,
        mirror=given.get("data.mirror"),
        precision=precision,
        split=given.get("split"),
        batch_size=batch_size,
        device=given.get("trainer.device", "auto"),
        swap=swap,
        skip_layers=skip_layers,
    )
    print_rows(
        ["metric", "score", "value"],
        [[name, get_metric(name).shown(value), f"{value:.8f}"] for name, value in result.metrics.items()],
        title=f"{result.task}, split '{result.split}', {result.rows} rows",
    )
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.reproduced is not None and result.stored is not None:
        same = "the same as" if result.reproduced else f"not the {result.stored:.8f}"
        print(f"{result.metric} {result.score:.8f} is {same} training reported")
    return 0


def _checked(given: dict[str, str]) -> tuple[str | None, int | None, tuple[int, ...]]:
    problems = []
    precision, size = given.get("trainer.precision"), given.get("trainer.eval_batch_size")
    if precision is not None and precision not in PRECISIONS:
        problems.append(
            f"trainer.precision (command line): is '{precision}', but one of {listed(PRECISIONS)} is due"
            f"{nearest(precision, PRECISIONS)}"
        )
    if size is not None and not (size.isdecimal() and int(size) > 0):
        problems.append(f"trainer.eval_batch_size (command line): is '{size}', but a whole number above 0 is due")
    layers = [word.strip() for word in given.get("skip_layers", "[]").removeprefix("[").removesuffix("]").split(",")]
    if layers == [""]:
        layers = []
    if not all(word.isdecimal() for word in layers):
        problems.append(
            f"skip_layers (command line): is '{given['skip_layers']}', but a list of layers counted from 0 is due: "
            "skip_layers=[0,1,2]"
        )
    if problems:
        raise ConfigError(problems)
    return precision, None if size is None else int(size), tuple(map(int, layers))
