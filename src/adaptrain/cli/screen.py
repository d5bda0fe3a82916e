"""Printing: tables and colours on a terminal, plain text elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1000
"""Columns where there is no terminal: nothing is cut, so that `grep` finds it."""


def console(stream: IO[str] | None = None) -> Console:
    """A rich console on stdout, or on another stream."""
    from rich.console import Console

    out: IO[str] = sys.stdout if stream is None else stream
    terminal = out.isatty()
    return Console(file=out, width=None if terminal else WIDE, highlight=False, soft_wrap=not terminal)


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a small table. On a terminal long cells are cut at its edge; elsewhere they are whole."""
    if sys.stdout.isatty():
        from rich.markup import escape
        from rich.table import Table

        grid = Table(title=title or None, title_justify="left", title_style="bold", box=None, header_style="dim")
        for index, head in enumerate(heads):
            cut = index == len(heads) - 1
            grid.add_column(head, no_wrap=True, overflow="ellipsis" if cut else "fold", style="" if index else "cyan")
        for row in rows:
            grid.add_row(*map(escape, row))
        console().print(grid)
        return
    if title:
        print(title)
    widths = [max(len(row[index]) for row in (heads, *rows)) for index in range(len(heads))]
    for row in (heads, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def styled(text: str, style: str, stream: IO[str]) -> str:
    """Text in an ANSI style (`1;31` is bold red) where the stream is a terminal that wants colours."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{style}m{text}\x1b[0m"
