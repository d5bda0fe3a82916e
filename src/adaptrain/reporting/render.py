"""The table as people and programs read it: for a terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adaptrain.reporting.table import Cell, Column, Line, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADS = ("method", "base model", "adapter", "head", "% of base")

_CSV_HEADS = (
    *("method", "base_model", "task", "metric", "split", "mean", "std", "n", "best"),
    *("adapter_parameters", "head_parameters", "percent_of_base", "chosen_on", "signature", "notes"),
)


def to_rich(table: Table) -> RenderableType:
    """For a terminal; best scores are bold."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(header_style="bold", pad_edge=False)
    for index, head in enumerate(_heads(table, "\n")):
        grid.add_column(escape(head), justify="left" if index < 2 else "right", overflow="fold")
    names = _model_names(table)
    for number, line in enumerate(table.lines):
        cells = [
            Text(_wrapped(line.cells.get(column), column, "{}", " {})", "±"), style="bold" if best else "")
            for column in table.columns
            for best in [column in line.cells and line.cells[column].best]
        ]
        grid.add_row(*(escape(text) for text in _front(line, names)), *cells, end_section=number == 0)
    return Group(grid, *(Text(text, style="dim") for text in _below(table)))


def to_markdown(table: Table) -> str:
    """A pipe table; best scores are bold."""
    rows, names = [_heads(table, ", ")], _model_names(table)
    for line in table.lines:
        scores = [_wrapped(line.cells.get(column), column, "**{}**", "<sup>{}</sup>", "±") for column in table.columns]
        rows.append([*_front(line, names), *scores])
    head, *body = ["".join(f"| {cell.replace('|', chr(92) + '|')} " for cell in row) + "|" for row in rows]
    rule = "|" + "|".join("---" if index < 2 else "---:" for index in range(len(rows[0]))) + "|"
    below = [f"\n{text}" for text in _below(table)]
    return "\n".join([head, rule, *body, *below]) + "\n"


def to_csv(table: Table) -> str:
    """One line a cell, numbers unrounded and unscaled: for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADS)
    for line in table.lines:
        for column, cell in line.cells.items():
            values: list[Any] = [line.label, line.model, column.task, column.metric, column.split]
            values += [repr(cell.mean), "" if cell.deviation is None else repr(cell.deviation)]
            values += [len(cell.scores) if line.model else "", int(cell.best)]
            values += [_span(line.adapter, str), _span(line.head, str), _span(line.percent, lambda p: f"{p:.4f}")]
            values += ["; ".join(table.chosen_on.get(column, ())), table.signatures.get(column, "")]
            writer.writerow([*values, "; ".join(table.footnotes[mark] for mark in cell.marks)])
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A booktabs tabular; best scores are bold."""
    rows, names = [[_tex(head) for head in _heads(table, ", ")]], _model_names(table)
    for line in table.lines:
        scores = [
            _wrapped(line.cells.get(column), column, r"\textbf{{{}}}", r"\textsuperscript{{{}}}", r"$\pm$")
            for column in table.columns
        ]
        rows.append([*map(_tex, _front(line, names)), *scores])
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{tabular}{" + "ll" + "r" * (len(rows[0]) - 2) + "}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:2],
            *([r"\midrule"] if len(body) > 2 else []),
            *body[2:],
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {text}" for text in _below(table)),
            "",
        ]
    )


RENDERERS = {"md": to_markdown, "markdown": to_markdown, "csv": to_csv, "latex": to_latex, "tex": to_latex}
"""Format name → renderer to text."""


def _heads(table: Table, gap: str) -> list[str]:
    """The metric's name stands in the head; the split only where a task has several."""
    splits = {task: {c.split for c in table.columns if c.task == task} for task in {c.task for c in table.columns}}
    heads = []
    for column in table.columns:
        split = f" ({column.split})" if len(splits[column.task]) > 1 else ""
        arrow = "" if column.details.higher_is_better else " ↓"
        heads.append(f"{column.task}{split}{gap}{column.details.label}{arrow}")
    return [*_HEADS, *heads]


def _model_names(table: Table) -> dict[str, str]:
    """Base model → its name without the owner or the path, unless two would look the same then."""
    models = {line.model for line in table.lines}
    short = {model: model.rstrip("/").rpartition("/")[2] for model in models}
    return {model: name if list(short.values()).count(name) == 1 else model for model, name in short.items()}


def _front(line: Line, models: dict[str, str]) -> list[str]:
    return [
        line.label,
        models[line.model],
        _span(line.adapter, lambda count: f"{count:,}"),
        _span(line.head, lambda count: f"{count:,}"),
        _span(line.percent, lambda percent: f"{percent:.2f}"),
    ]


def _span(values: Sequence[Any], show: Callable[[Any], str]) -> str:
    """One value, or the least and the greatest of several that look different."""
    if not values:
        return ""
    least, greatest = show(values[0]), show(values[-1])
    return least if least == greatest else f"{least}–{greatest}"


def _wrapped(cell: Cell | None, column: Column, bold: str, above: str, sign: str) -> str:
    """Mean, deviation and number of runs, in the dress of a format."""
    if cell is None:
        return ""
    text = column.details.shown(cell.mean)
    if cell.deviation is not None:
        text += f" {sign} {column.details.shown(cell.deviation)} (n={len(cell.scores)})"
    return (bold.format(text) if cell.best else text) + (above.format(",".join(cell.marks)) if cell.marks else "")


def _below(table: Table) -> list[str]:
    marked = (f"{mark}: {text}" for mark, text in table.footnotes.items())
    return [*marked, *table.remarks, *(f"note: {text}" for text in table.notes)]


def _tex(text: str) -> str:
    special = {c: "\\" + c for c in "&%$#_{}"} | {
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "↓": r"$\downarrow$",
        "–": "--",
    }
    return "".join(special.get(char, r"\textbackslash{}" if char == "\\" else char) for char in text)
