"""`adaptrain table`: method × task, from all runs in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adaptrain.cli.arguments import one_path, read_pairs, split
from adaptrain.cli.screen import console
from adaptrain.errors import UsageError, unknown


def run(arguments: Sequence[str]) -> int:
    """Print the table; a terminal gets a drawn one unless a format is named."""
    from adaptrain.reporting.render import RENDERERS, to_rich
    from adaptrain.reporting.table import build_table, collect

    found = split(arguments, valued=("--format",))
    read_pairs(found.overrides, (), "adaptrain table")
    folder = Path(one_path(found, "table", default="outputs"))
    name = found.options.get("--format")
    if name is not None and name not in RENDERERS:
        raise UsageError(unknown("format", name, RENDERERS, "The formats are"))
    table = build_table(collect(folder))
    if name is not None:
        sys.stdout.write(RENDERERS[name](table))
    else:
        console().print(to_rich(table))
    return 0
