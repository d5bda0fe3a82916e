"""YAML files read with the place of every value, and every mistake in them at once."""

from __future__ import annotations

import pytest

from adaptrain.config.documents import COMMAND_LINE, Leaf, leaves, merge, parse, plain, read


def values(text: str) -> dict:
    document = parse(text, "x.yaml")
    assert not document.problems
    return plain(document.tree)


def test_every_value_knows_its_line():
    document = parse("# adaptrain train recipe=x\na: 1\nb:\n  c: two\n  d: [1, 2]\n", "x.yaml")
    places = {key: str(leaf.origin) for key, leaf in leaves(document.tree)}
    assert places == {"a": "x.yaml:2", "b.c": "x.yaml:4", "b.d": "x.yaml:5"}
    assert document.header == "adaptrain train recipe=x"


def test_what_one_reader_changes_no_other_sees():
    first = parse("a: {b: [1, [2]]}\nc:\n  - d: 1\n", "x.yaml")
    first.problems.append("x")
    first.tree["a"]["b"].value[1].append(3)
    first.tree["c"]["0"]["d"] = Leaf(2, COMMAND_LINE)
    assert values("a: {b: [1, [2]]}\nc:\n  - d: 1\n") == {"a": {"b": [1, [2]]}, "c": [{"d": 1}]}


def test_defaults_are_no_keys():
    document = parse("seed: 1\ndefaults:\n  - override /adapter: lora\n", "x.yaml")
    assert plain(document.tree) == {"seed": 1}
    (entry,) = document.defaults
    assert (entry.value, str(entry.origin)) == ({"override /adapter": "lora"}, "x.yaml:3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# only a comment\n", {}),
        ("a:\n", {"a": None}),
        ("a: {}\n", {"a": {}}),
        ("day: 2026-01-02\n", {"day": "2026-01-02"}),  # a date would be an object that no key takes
        ("rate: 1e-4\n", {"rate": "1e-4"}),  # YAML 1.1; the config makes it a number where one is due
        ("0: 8\ndefault: 16\n", {"0": 8, "default": 16}),
        ("base: &b {x: 1}\nother:\n  <<: *b\n  y: 2\n", {"base": {"x": 1}, "other": {"x": 1, "y": 2}}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_what_yaml_says(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' is given twice (first in line 1)"),
        ("b:\n  c: 1\n  c: 2\n", "x.yaml:3: the key 'c' is given twice (first in line 2)"),
        ("no: 1\n", "x.yaml:1: YAML reads the key no as false; put it in quotes"),
        ("a: [1\nb: 2\n", "x.yaml:2: is not YAML"),
        ("a: b: c\n", "x.yaml:1: is not YAML"),
        ("\ta: 1\n", "x.yaml:1: is not YAML"),
        ("a: !!python/object:os.system x\n", "x.yaml:1: is not YAML"),
        ("- 1\n- 2\n", "x.yaml:1: is a list; write keys"),
        ("seed\n", "x.yaml:1: is one value; write keys"),
        ("a: &a\n  b: *a\n", "x.yaml"),
        pytest.param(f"a: {'[' * 100_000}", "x.yaml: is nested too deeply", id="deep"),
        ("a: 0x_\n", "x.yaml: is not YAML"),
        ("a: \x07\n", "x.yaml: is not YAML"),
    ],
)
def test_mistakes_name_the_line(text, problem):
    problems = parse(text, "x.yaml").problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert "\n" not in problems[0]


def test_all_mistakes_of_a_file_are_found_and_the_rest_is_kept():
    document = parse("a: 1\na: 2\nno: 3\nb: 4\n", "x.yaml")
    assert len(document.problems) == 2
    assert plain(document.tree)["b"] == 4


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(tmp_path / "latin.yaml", "latin.yaml").problems == [
        "latin.yaml: is not UTF-8 (byte 6); save it as UTF-8"
    ]
    assert read(tmp_path / "gone.yaml", "gone.yaml").problems[0].startswith("gone.yaml: cannot be read (No such file")
    assert plain(read(tmp_path / "bom.yaml", "bom.yaml").tree) == {"a": 1}


def test_laying_one_tree_over_another():
    base = parse("a: 1\ns:\n  x: 1\n  y: 2\nm: 16\n", "base").tree
    over = parse("s:\n  y: 3\n  z: 4\nm:\n  default: 8\n", "over").tree
    merge(base, over)
    assert plain(base) == {"a": 1, "s": {"x": 1, "y": 3, "z": 4}, "m": {"default": 8}}
    assert {key: str(leaf.origin) for key, leaf in leaves(base)}["s.y"] == "over:2"
    assert plain(over) == {"s": {"y": 3, "z": 4}, "m": {"default": 8}}


def test_an_empty_section_changes_nothing_but_a_null_value_does():
    base = parse("s:\n  x: 1\nv: 1\n", "base").tree
    merge(base, parse("s:\nv: null\n", "over").tree)
    assert plain(base) == {"s": {"x": 1}, "v": None}
    assert isinstance(base["v"], Leaf)
