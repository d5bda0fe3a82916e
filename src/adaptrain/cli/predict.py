"""`adaptrain predict`: what a saved adapter says of rows that nobody has labelled."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptrain.cli.arguments import Split, one_path, read_columns, read_pairs, split
from adaptrain.cli.evaluate import read_precision_and_size
from adaptrain.cli.screen import print_rows
from adaptrain.config.task import ROLES, SAID
from adaptrain.errors import ConfigError, UsageError, listed
from adaptrain.evaluation.overrides import MODEL_KEYS

FLAGS = ("--skip-bad", "--force")
VALUED = ("--input", "--output", "--keep")
REPEATED = ("--text", "--text-pair")
KEYS = ("trainer.precision", "trainer.eval_batch_size", "trainer.device", *MODEL_KEYS)

READ = tuple(
    dict.fromkeys(
        role
        for kind, roles in ROLES.items()
        for role in roles.all
        if role != "id" and (role not in SAID or kind == "causal_lm")
    )
)
"""Roles that a row can be given in."""

_COLUMNS = "task.columns."
_SHOWN, _CELL = 6, 60
"""Probabilities that a table has columns for, and letters of a cell."""


def run(arguments: Sequence[str]) -> int:
    """Predict, and write or print a line for each row."""
    found = split(arguments, FLAGS, VALUED, REPEATED)
    path = Path(one_path(found, "predict")).expanduser()
    row = {key: value for key, _, value in (each.partition("=") for each in found.overrides) if key in READ}
    columns = [each for each in found.overrides if each.startswith(_COLUMNS)]
    pairs = [each for each in found.overrides if each.partition("=")[0] not in READ and each not in columns]
    given = read_pairs(pairs, (*KEYS, "task.columns.ROLE", *READ), "adaptrain predict")
    precision, size, problems = read_precision_and_size(given)
    if problems:
        raise ConfigError(problems)
    source = _one_source(found, row)
    if columns and source is None:
        raise UsageError(f"{columns[0].partition('=')[0]} is for --input: what is typed needs no columns")
    output = Path(found.options["--output"]).expanduser() if "--output" in found.options else None
    if output is None and "--force" in found.options:
        raise UsageError("--force is for --output, which is not given")
    named = read_columns(columns).declared()

    from adaptrain.evaluation import asked

    if output is not None:
        asked.check_output(output, source, "--force" in found.options)
    overrides = {key: value for key, value in given.items() if key in MODEL_KEYS}
    options: dict[str, Any] = {
        "overrides": overrides,
        "skip_bad": "--skip-bad" in found.options,
        "precision": precision,
        "batch_size": size,
        "device": given.get("trainer.device", "auto"),
    }
    if source is not None:
        options |= {"keep": _kept(found.options.get("--keep")), "columns": named}
        answers = asked.predict_file(path, source, **options)
    else:
        rows = _typed(found.repeated, row, asked.roles_read(asked.saved_run(path, overrides).task))
        answers = asked.predict_rows(path, rows, keep=None, **options)
    for note in (*answers.notes, *_bad(answers.bad, len(answers.rows))):
        print(f"note: {note}", file=sys.stderr)
    if output is not None:
        asked.write_answers(output, answers.rows)
        print(f"saved: {output} ({len(answers.rows)} rows)")
    elif sys.stdout.isatty():
        _print_table([asked.flattened(each) for each in answers.rows], answers.task)
    else:
        for line in asked.as_json(answers.rows):
            print(line)
    return 0


def _one_source(found: Split, row: Mapping[str, str]) -> Path | None:
    """The file of the rows; None where they are typed.

    Raises:
        UsageError: rows come from nowhere, or from several places.
    """
    texts = [name for name in REPEATED if found.repeated[name]]
    ways = [*(["--input"] if "--input" in found.options else []), *texts[:1], *([f"{next(iter(row))}="] if row else [])]
    if not ways:
        raise UsageError('adaptrain predict needs rows: --input FILE, or --text "…"; see adaptrain predict --help')
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} both say what to predict: leave one of them out")
    if "--input" in found.options:
        return Path(found.options["--input"]).expanduser()
    if "--keep" in found.options:
        raise UsageError("--keep is for --input: what is typed stands in the output anyway")
    return None


def _typed(texts: Mapping[str, Sequence[str]], row: Mapping[str, str], roles: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that the command line has.

    Args:
        roles: that the task reads.

    Raises:
        UsageError: the task reads something else, or a text lacks the one that it is read with.
    """
    if row:
        return [{role: _value(role, text) for role, text in row.items()}]
    first, second = texts["--text"], texts["--text-pair"]
    if roles not in (("text",), ("source",), ("text", "text_pair")):
        shown = " ".join(f'{role}="…"' for role in roles)
        raise UsageError(f"--text is for tasks that read texts alone, and this one reads {listed(roles)}: give {shown}")
    if len(roles) == 1 and second:
        raise UsageError("--text-pair is for tasks that read two texts together, and this one reads one")
    if len(roles) == 2 and len(first) != len(second):
        raise UsageError(
            f"This task reads two texts together: --text-pair is due once for each --text, and there are {len(first)} "
            f"--text and {len(second)} --text-pair"
        )
    if not first:
        raise UsageError("--text-pair is what a --text is read with, which is not given")
    return [
        dict(zip(roles, values, strict=True)) for values in (zip(first, second, strict=True) if second else zip(first))
    ]


def _value(role: str, text: str) -> Any:
    """A row's value as it is typed: words stand between blanks, choices between |."""
    if role == "tokens":
        return text.split()
    return [each.strip() for each in text.split("|")] if role == "choices" else text


def _kept(given: str | None) -> tuple[str, ...] | None:
    """Columns to keep; None for all."""
    if given == "all":
        return None
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def _bad(bad: int, rows: int) -> list[str]:
    return [f"{bad} of {rows} rows have an error instead of a prediction"] if bad else []


def _print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    shares = [name for name in names if name.startswith("probabilities.")]
    names = [name for name in names if name not in shares or len(shares) <= _SHOWN]
    numbers = [
        index for index, name in enumerate(names) if all(isinstance(row.get(name, 0), int | float) for row in rows)
    ]
    heads = [name.removeprefix("probabilities.") for name in names]
    print_rows(heads, [[_cell(row.get(name, "")) for name in names] for row in rows], title=title, right=numbers)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        value = listed(value)
    text = " ".join(str(value).split())
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
