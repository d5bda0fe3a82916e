"""The table over many runs: method × task, mean ± standard deviation over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptrain.errors import OutputError
from adaptrain.evaluation.metrics import METRICS, Metric
from adaptrain.reporting.folder import AVERAGE, BRANCHES, MANIFEST, RESULT, canonical

ENVIRONMENT = ("adaptrain", "torch", "transformers", "precision", "data")
"""What must be equal for two scores to stand in one column without a mark."""


@dataclass(frozen=True)
class Row:
    """One run folder that was found.

    Attributes:
        folder: where.
        values: its `result.json`; empty where the folder cannot be used.
        problem: why it cannot, else None.
    """

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Column:
    """A task with the metric and split that its scores are of."""

    task: str
    metric: str
    split: str

    @property
    def details(self) -> Metric:
        return METRICS[self.metric]


@dataclass(frozen=True)
class Cell:
    """The runs of one line in one column.

    Attributes:
        scores: one a run.
        best: whether no line's mean is better in this column.
        marks: footnotes, by letter.
    """

    scores: tuple[float, ...]
    best: bool = False
    marks: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation with n − 1; None for a single run."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Line:
    """A method, as it was configured, on a base model; or the trivial baseline.

    Attributes:
        label: the method, and what tells it from other lines of the same method.
        model: base model; empty for the baseline.
        adapter: numbers that the adapter trains; several where tasks differ.
        head: numbers that the heads train.
        percent: of the base model, all that trains.
        cells: by column.
    """

    label: str
    model: str = ""
    adapter: tuple[int, ...] = ()
    head: tuple[int, ...] = ()
    percent: tuple[float, ...] = ()
    cells: dict[Column, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """What the renderers show.

    Attributes:
        columns, lines: the baseline's line comes first.
        footnotes: letter → sentence.
        notes: folders that were left out, and why.
        signatures: how the metric of a column is computed, where its name does not say it all.
        chosen_on: the splits that chose what a column scores, each with where it was carved from.
        scored_on: its own split, in the same words.
    """

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    footnotes: dict[str, str]
    notes: tuple[str, ...]
    signatures: dict[Column, str] = field(default_factory=dict)
    chosen_on: dict[Column, tuple[str, ...]] = field(default_factory=dict)
    scored_on: dict[Column, str] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """What must be known of whole columns: how a metric is computed, and which split chose what is scored."""
        found = [f"{column.task}, {column.details.label}: {text}" for column, text in self.signatures.items()]
        same = [column for column, names in self.chosen_on.items() if names == (self.scored_on[column],)]
        if same:
            shown = "; ".join(dict.fromkeys(f"{column.task}, {self.scored_on[column]}" for column in same))
            found.append(f"the split that chose is the one that is scored: {shown}")
        for column, names in self.chosen_on.items():
            if column not in same:
                found.append(f"{column.task}: chosen on {' or '.join(names)}, scored on {self.scored_on[column]}")
        return list(dict.fromkeys(found))  # two metrics of one task have the same splits


def collect(folder: Path) -> list[Row]:
    """All runs under a folder, in the order of their paths. Unreadable and unfinished ones come with the reason; of a
    run with branches each branch is one. Averages of adapters are none.

    Raises:
        OutputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}; name one that `adaptrain train` wrote to (outputs/)")
    places = {file.parent for name in (RESULT, MANIFEST, "task.json") for file in folder.rglob(name)}
    visible = (place for place in places if not any(part.startswith(".") for part in place.relative_to(folder).parts))
    no_run = (BRANCHES, AVERAGE)  # a whole of parts that are runs; an adapter that nobody has trained
    return [_read(place) for place in sorted(visible) if not any((place / name).exists() for name in no_run)]


_NEEDED: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "adapter": dict,
    "model": str,
    "task": str,
    "metric": str,
    "score": (int, float),
    "split": str,
    "seed": int,
    "baseline": dict,
    "adapter_parameters": int,
    "head_parameters": int,
    "percent_of_base": (int, float),
    "settings": dict,
    "environment": dict,
}


def _read(folder: Path) -> Row:
    if not (folder / MANIFEST).is_file():
        return Row(folder, problem="not finished")
    try:
        values = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Row(folder, problem=f"there is no {RESULT}")
    except (OSError, ValueError) as error:
        return Row(folder, problem=f"{RESULT} is unreadable ({error})")
    if not isinstance(values, dict):
        return Row(folder, problem=f"{RESULT} is no results row")
    wrong = [key for key, kind in _NEEDED.items() if not isinstance(values.get(key), kind)]
    if wrong or not isinstance(values["baseline"].get("score"), int | float):
        return Row(folder, problem=f"{RESULT} has no usable {', '.join(wrong or ['baseline.score'])}")
    if values["metric"] not in METRICS:
        return Row(folder, problem=f"its metric '{values['metric']}' is unknown to this version")
    if not math.isfinite(values["score"]):
        return Row(folder, problem="its score is not a number")
    return Row(folder, values)


def build_table(rows: Sequence[Row]) -> Table:
    """Put runs into lines and columns.

    Runs share a cell when they differ in nothing but the seed: a line is a method's whole config on a base model, and
    where other settings (a learning rate) differ inside one column, they become part of the line too.
    """
    notes = tuple(f"{row.folder}: {row.problem}; left out" for row in rows if row.problem)
    runs = [row.values for row in rows if not row.problem]
    columns = tuple(
        sorted({_column(run) for run in runs}, key=lambda column: (column.task, column.metric, column.split))
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(_line_key(run), []).append(run)
    of = {column: [run for run in runs if _column(run) == column] for column in columns}
    usual = {column: _usual_environment(of[column]) for column in columns}
    footnotes: dict[str, str] = {}
    lines = []
    for group in groups.values():
        split_by = _differing_settings(group)
        for chosen in _partition(group, lambda run, keys=split_by: canonical([run["settings"].get(k) for k in keys])):
            label = _label(chosen[0], [other for other in groups.values() if other is not group], split_by)
            lines.append(_line(label, chosen, columns, usual, footnotes))
    lines.sort(key=lambda line: (line.model, max(line.adapter, default=0), line.label))
    baseline = _baseline(runs, columns)
    lines = _with_best(([baseline] if baseline is not None else []) + lines, columns)
    signatures = {column: words for column in columns if (words := usual[column]["signature"]) is not None}
    chosen = {column: names for column in columns if (names := _chosen_on(of[column]))}
    scored = {column: _split_words(of[column][0], column.split) for column in columns}
    return Table(columns, tuple(lines), footnotes, notes, signatures, chosen, scored)


def _column(run: dict[str, Any]) -> Column:
    return Column(run["task"], run["metric"], run["split"])


def _line_key(run: dict[str, Any]) -> str:
    return canonical([run["adapter"], run["model"]])


def _partition(runs: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> list[list[dict[str, Any]]]:
    parts: dict[Any, list[dict[str, Any]]] = {}
    for run in runs:
        parts.setdefault(key(run), []).append(run)
    return list(parts.values())


def _differing_settings(group: Sequence[dict[str, Any]]) -> list[str]:
    """Settings that differ between runs of one column; a task's own learning rate is not such a difference."""
    found: dict[str, None] = {}
    for runs in _partition(group, _column):
        for key in dict.fromkeys(key for run in runs for key in run["settings"]):
            if len({canonical(run["settings"].get(key)) for run in runs}) > 1:
                found[key] = None
    return list(found)


def _label(run: dict[str, Any], others: Sequence[Sequence[dict[str, Any]]], split_by: Sequence[str]) -> str:
    """The method's name, with the keys that tell this line from others of the same method."""
    same = [_keys(group[0]["adapter"]) for group in others if group[0]["method"] == run["method"]]
    own = _keys(run["adapter"])
    differing = [key for key, value in own.items() if any(canonical(a.get(key)) != canonical(value) for a in same)]
    words = [f"{key}={_word(own[key])}" for key in differing if key != "method"]
    words += [f"{key.partition('.')[2]}={_word(run['settings'].get(key))}" for key in split_by]
    return f"{run['method']} ({', '.join(words)})" if words else run["method"]


def _keys(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Key → value; those of a union's members as the command line names them, `configs.0.r`."""
    members = [(f"configs.{i}.", member) for i, member in enumerate(adapter.get("configs", ()))]
    own = {key: value for key, value in adapter.items() if key != "configs"}
    return own | {prefix + key: value for prefix, member in members for key, value in member.items()}


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _line(
    label: str,
    runs: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    usual: dict[Column, dict[str, Any]],
    footnotes: dict[str, str],
) -> Line:
    cells = {}
    for column in columns:
        here = [run for run in runs if _column(run) == column]
        if here:
            marks = {mark for run in here if (mark := _mark(run, usual[column], footnotes)) is not None}
            cells[column] = Cell(tuple(run["score"] for run in here), marks=tuple(sorted(marks)))
    return Line(
        label,
        runs[0]["model"],
        tuple(sorted({run["adapter_parameters"] for run in runs})),
        tuple(sorted({run["head_parameters"] for run in runs})),
        tuple(sorted({run["percent_of_base"] for run in runs})),
        cells,
    )


def _usual_environment(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The environment that most runs of a column share, and the signature of the metric."""
    texts = Counter(canonical(_environment(run)) for run in runs)
    return json.loads(texts.most_common(1)[0][0])


def _environment(run: dict[str, Any]) -> dict[str, Any]:
    signatures = run.get("signatures")
    signature = signatures.get(run["metric"]) if isinstance(signatures, dict) else None
    return {key: run["environment"].get(key) for key in ENVIRONMENT} | {"signature": signature}


def _chosen_on(runs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The splits that chose what runs score. Older results do not say it."""
    names = [(run, name) for run in runs if isinstance(name := run.get("chosen_on"), str)]
    return tuple(dict.fromkeys(_split_words(run, name) for run, name in names))


def _split_words(run: dict[str, Any], name: str) -> str:
    """A split, and where its rows come from where it was carved."""
    carved = run.get("carved")
    words = carved.get(name) if isinstance(carved, dict) else None
    return name if words is None else f"{name} (carved {words})"


def _mark(run: dict[str, Any], usual: dict[str, Any], footnotes: dict[str, str]) -> str | None:
    """The letter of the footnote that says how a run's environment differs; None where it does not."""
    differences = []
    for key, mine in _environment(run).items():
        if mine != usual[key]:
            told = f"{key} {mine or 'unknown'}, not {usual[key] or 'unknown'}"
            differences.append("other evaluation data" if key == "data" else told)
    if not differences:
        return None
    text = f"has runs with {', '.join(differences)} as most of its column"
    for letter, known in footnotes.items():
        if known == text:
            return letter
    letter = _letter(len(footnotes))
    footnotes[letter] = text
    return letter


def _letter(index: int) -> str:
    """a … z, aa, ab …"""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _baseline(runs: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Line | None:
    """The trivial answer's line, first in the table: what a score must be compared with."""
    if not runs:
        return None
    names, cells = {}, {}
    for column in columns:
        found = [run["baseline"] for run in runs if _column(run) == column]
        names[str(found[0].get("name"))] = None
        score, _ = Counter(entry["score"] for entry in found).most_common(1)[0]
        cells[column] = Cell((score,))
    return Line(" / ".join(names), cells=cells)


def _with_best(lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """Mark the best mean of each column, as far as the shown digits tell."""
    cells = [dict(line.cells) for line in lines]
    for column in columns:
        here = [line[column] for line in cells if column in line]
        best = (max if column.details.higher_is_better else min)(cell.mean for cell in here)
        shown = column.details.shown(best)
        for line in cells:
            if column in line and column.details.shown(line[column].mean) == shown:
                line[column] = Cell(line[column].scores, True, line[column].marks)
    return [
        Line(line.label, line.model, line.adapter, line.head, line.percent, own)
        for line, own in zip(lines, cells, strict=True)
    ]
