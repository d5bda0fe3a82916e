"""`adaptrain average`: one adapter of several saved ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from adaptrain.cli.arguments import read_pairs, split
from adaptrain.cli.screen import print_rows
from adaptrain.errors import ConfigError, UsageError

VALUED = ("--weights", "--out", "--strategy", "--density", "--svd-rank", "--seed", "--name")
FLAGS = ("--no-normalize", "--force")

_OPTIONS = {"combine_strategy": "--strategy", "svd_rank": "--svd-rank", "density": "--density", "seed": "--seed"}
"""Argument of `average_adapter` → option."""


def run(arguments: Sequence[str]) -> int:
    """Average, and print what became of what."""
    found = split(_joined(arguments), FLAGS, VALUED)
    read_pairs(found.overrides, (), "adaptrain average")
    given = found.options
    if not found.paths:
        raise UsageError("adaptrain average needs adapter folders; see adaptrain average --help")
    if "--out" not in given:
        raise UsageError("adaptrain average needs --out FOLDER, where the average goes")
    numbers = {
        "weights": _numbers("--weights", given["--weights"]) if "--weights" in given else None,
        "density": _number("--density", given["--density"]) if "--density" in given else None,
        "svd_rank": _whole("--svd-rank", given["--svd-rank"]) if "--svd-rank" in given else None,
        "seed": _whole("--seed", given["--seed"]) if "--seed" in given else 0,
    }

    from adaptrain.evaluation.average import average_folders
    from adaptrain.mixture import Mixture

    try:
        mixture = Mixture(
            strategy=given.get("--strategy", "linear"), normalize_weights="--no-normalize" not in given, **numbers
        )
        result = average_folders(
            [Path(path).expanduser() for path in found.paths],
            Path(given["--out"]).expanduser(),
            mixture,
            given.get("--name"),
            "--force" in given,
        )
    except ConfigError as error:
        raise ConfigError([_with_options(problem) for problem in error.problems]) from None
    heads = ", heads too" if result.head else ""
    print_rows(
        ["weight", "adapter"],
        [[f"{share:.4g}", str(path)] for path, share in result.shares],
        title=f"{mixture.strategy} of {len(result.shares)} {result.config.method}{heads}",
        right=(0,),
    )
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"saved: {result.folder}")
    if result.task:
        print(f"next:  adaptrain eval {result.folder}")
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """The numbers behind `--weights` as one argument: `0.5 -0.2` becomes `0.5,-0.2`."""
    rest, joined = list(arguments), []
    while rest:
        argument = rest.pop(0)
        joined.append(argument)
        if argument == "--weights" and rest:
            numbers = [rest.pop(0)]
            while rest and _is_number(rest[0]):
                numbers.append(rest.pop(0))
            joined.append(",".join(numbers))
    return joined


def _with_options(problem: str) -> str:
    """A sentence on an argument of Python's, with the name of its option."""
    problem = problem.replace("give normalize_weights=False", "give --no-normalize")
    return re.sub(r"combine_strategy|^(svd_rank|density|seed)\b", lambda match: _OPTIONS[match[0]], problem)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(option: str, text: str) -> list[float]:
    return [_number(option, each) for each in text.split(",") if each.strip()]


def _number(option: str, text: str) -> float:
    if not _is_number(text):
        raise UsageError(f"{option} is '{text}'; it must be a number")
    return float(text)


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} is '{text}'; it must be a whole number") from None
