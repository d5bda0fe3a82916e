"""The page of tasks says what is there."""

from __future__ import annotations

import re
from pathlib import Path

from adaptrain.config.compose import compose
from adaptrain.config.library import library
from adaptrain.config.task import ROLES
from adaptrain.tasks.shapes import SHAPES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
TASKS = library().choices("task")


def test_every_type_has_a_shape_and_a_row_with_its_roles_and_a_page() -> None:
    rows = {cells[0].strip("`"): cells for cells in _tables(PAGE) if cells[0].strip("`") in ROLES}
    assert rows.keys() == SHAPES.keys() == ROLES.keys()
    for kind, cells in rows.items():
        said = set(re.findall(r"[a-z_]+", cells[1].replace("(s)", "")))
        assert said == {*ROLES[kind].needed, *ROLES[kind].optional} - {"or"} or said - {"or"} == {
            *ROLES[kind].needed,
            *ROLES[kind].optional,
        }
        assert (ROOT / "docs" / re.findall(r"\((.*?)\)", cells[-1])[0]).is_file()


def test_every_task_is_on_the_page_and_counted() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert set(TASKS) <= named
    for file in ("README.md", "CHANGELOG.md"):
        assert f"{len(TASKS)} tasks" in (ROOT / file).read_text(encoding="utf-8"), file


def test_the_tasks_of_itrain_are_covered_or_absent() -> None:
    covered, absent = PAGE.split("Absent:")
    first = _tables(covered.split("The tasks of itrain")[1])[1:]
    here = [re.findall(r"`(\w+)`", cells[0]) for cells in first]
    theirs = [re.findall(r"`(\w+)`", cells[1]) or own for cells, own in zip(first, here, strict=True)]
    gone = [name for cells in _tables(absent)[1:] for name in re.findall(r"`(\w+)`", cells[0])]
    known = [name for names in theirs for name in names]
    assert (len(known), len(gone), len({*known, *gone})) == (45, 12, 57)
    assert {name for names in here for name in names} <= set(TASKS) and not set(gone) & set(TASKS)


def test_tasks_that_carve_are_named() -> None:
    told = PAGE.split("`task.splits.carve` makes")[1].split("carve as shipped")[0]
    carved = [name for name in TASKS if compose([f"task={name}"]).config.task.splits.carve is not None]
    assert set(re.findall(r"`(\w+)`", told)) == set(carved)


def _tables(text: str) -> list[list[str]]:
    """The cells of all lines of tables, rules left out."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines if not set("".join(cells)) <= set("-: ")]
