"""A finished run against what its command would read now. A result of other rows or weights is not the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptrain.composition import parse
from adaptrain.config.composition import branch_block, branch_names, members_of
from adaptrain.config.schema import RunConfig
from adaptrain.errors import AdaptrainError, DataError, OutputError
from adaptrain.files import read_json
from adaptrain.reporting.folder import MANIFEST
from adaptrain.tasks.media import Media
from adaptrain.tasks.places import rows_place
from adaptrain.tasks.rows import Rows
from adaptrain.training.base_model import find_base
from adaptrain.training.ingredients import compare, read_stock
from adaptrain.training.local_base import base_folder
from adaptrain.training.prepare import load_splits

_MOST = 5
"""Changes that a message lists."""


def check_same(folder: Path, config: RunConfig) -> None:
    """Refuse to answer with a finished run that was made of something else than what is there now.

    Files that differ may still hold the same rows: those are read then. What is on the hub and cannot be compared
    counts as the same.

    Args:
        folder: of the finished run.
        config: complete.

    Raises:
        OutputError: it names what has changed.
    """
    stock, manifest = read_stock(folder), read_json(folder / MANIFEST)
    if stock is None:  # of an earlier version, which kept the sums of rows and weights alone
        problems = [*_other_base(config, manifest), *_other_rows(config, manifest)]
    else:
        found = compare(stock)
        problems = [*found.certain, *(_other_base(config, manifest) if found.base else [])]
        if found.rows and (rows := _other_rows(config, manifest)):
            problems += dict.fromkeys([*found.rows, *rows])
    if problems:
        told = "; ".join(problem.rstrip(".") for problem in problems[:_MOST])
        more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise OutputError(
            f"{folder} is finished, but was made of something else than what is there now: {told}{more}. Give "
            "force=true to train it again, outputs=FOLDER to train beside it, or put back what has changed"
        )


def named_files(rows: Mapping[str, Rows]) -> Iterator[Path]:
    """The files that rows name: images, recordings."""
    for split in rows.values():
        for values in split.columns.values():
            inner: Any = values
            while not isinstance(inner, Media) and hasattr(inner, "values"):
                inner = inner.values
            if isinstance(inner, Media):
                yield from inner.files()


def _other_base(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    """Whether the base model has other weights; on the hub they are not asked for."""
    try:
        if base_folder(config.model) is None:
            return []
        now, was = find_base(config.model).fingerprint, str(manifest.get("base_model", {}).get("fingerprint"))
    except AdaptrainError as error:
        return [str(error)]
    if len(now) != len(was) or now == was:  # a sum of weights can only be compared with a sum
        return []
    return [f"the weights of {config.model.name} have the sum {now[:12]}…, not {was[:12]}…"]


def _other_rows(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    """The splits whose rows have another sum; on the hub they are not asked for."""
    runs = _by_branch(config)
    problems: list[str] = []
    noted = {(each.get("branch"), each.get("role")): each.get("fingerprint") for each in manifest.get("data", ())}
    for branch, own in runs.items():
        try:
            if rows_place(own.task.name, own.task.path, own.data.mirror) is None:
                continue
            splits = load_splits(own)
        except DataError as error:
            problems.append(str(error))
            continue
        for role, rows in splits.items():
            was = noted.get((branch, role))
            if was not in (None, rows.fingerprint):
                sums = f"have the sum {rows.fingerprint[:12]}…, not {was[:12]}…"
                problems.append(f"the rows of split '{rows.split}' ({rows.place}) {sums}")
    return problems


def _by_branch(config: RunConfig) -> dict[str | None, RunConfig]:
    """Branch → the run with its task; one without a name where there are none."""
    block = None if config.plain else branch_block(parse(config.expression))
    if block is None:
        return {None: config}
    tasks = {name: members_of(config)[name].task for name in branch_names(block)}
    return {name: dataclasses.replace(config, task=task) for name, task in tasks.items() if task is not None}
