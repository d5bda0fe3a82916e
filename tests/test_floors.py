"""The architecture as it can be checked: who imports whom, where hooks are, what is exported, how long files are."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import adaptrain

ROOT = Path(adaptrain.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.glob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

FLOORS = [
    ["errors", "version", "hints", "synonyms"],
    ["composition", "branches", "evaluator", "state", "context", "files", "mixture"],
    ["methods", "architectures"],
    ["sites", "points", "quantised", "attention", "adapter", "upstream"],
    [
        "model",
        "programs",
        "face",
        "saving",
        "fusions",
        "prediction",
        "new_heads",
        "writing",
        "weights",
        "embeddings",
        "auto",
        "checkpoint",
        "composed",
        "sources",
        "averaging",
        "heads",
        "interop",
    ],
    ["training", "evaluation", "reporting", "tasks", "config"],
    ["cli", "__main__"],
]
FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}
LAZY = {"__init__"}
"""The package's own face: it imports what is asked for."""

files = pytest.mark.parametrize("path", FILES, ids=NAMES)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(path: Path) -> set[str]:
    """The parts of adaptrain that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("adaptrain.")} & set(FLOOR)


def test_every_file_has_a_floor():
    assert {part_of(path) for path in FILES} - LAZY == set(FLOOR)


@files
def test_imports_only_go_down(path):
    own = part_of(path)
    if own in LAZY:
        return
    above = sorted(part for part in parts(path) if FLOOR[part] > FLOOR[own])
    assert above == [], f"{own} is on floor {FLOOR[own]}"


@pytest.mark.parametrize(("one", "other"), [("methods", "architectures"), ("architectures", "methods")])
def test_methods_and_architectures_are_strangers(one, other):
    for path in (ROOT / one).rglob("*.py"):
        assert other not in parts(path), path


def test_no_file_imports_itself_in_a_circle():
    """On one floor too: what is imported at the top of a file can always be put in an order."""
    dotted = {".".join(("adaptrain", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    dotted = {name.removesuffix(".__init__"): path for name, path in dotted.items()}
    graph = {}
    for name, path in dotted.items():
        top = ast.Module([node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        wanted = {each for node in top.body for each in _names(node)}
        near = {
            other for other in dotted if other in wanted or any(each.rpartition(".")[0] == other for each in wanted)
        }
        graph[name] = {other for other in near if not name.startswith(other)}  # a package runs before its files anyway
    done: set[str] = set()
    while len(done) < len(graph):
        free = {name for name in graph if name not in done and graph[name] <= done}
        assert free, f"a circle among {sorted(set(graph) - done)}"
        done |= free


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    return [f"{node.module}.{alias.name}" for alias in node.names]


@files
def test_transformers_is_known_from_floor_three_up(path):
    if part_of(path) in LAZY or FLOOR[part_of(path)] >= 3:
        return
    foreign = {name.split(".")[0] for name in imports(path)}
    assert not foreign & {"transformers", "accelerate", "datasets"}
    assert FLOOR[part_of(path)] > 0 or not foreign & {"torch", "numpy"}


def mentions(word: str) -> set[str]:
    """Files whose code (not whose comments) has an identifier that contains the word."""
    found = set()
    for path, name in zip(FILES, NAMES, strict=True):
        for node in ast.walk(tree(path)):
            text = {ast.Attribute: "attr", ast.Name: "id", ast.alias: "name"}.get(type(node))
            if text is not None and word in getattr(node, text):
                found.add(name)
    return found


SITES = {f"sites/{name}.py" for name in ("computed", "embedding", "hidden", "key_value", "live", "projection", "words")}


@pytest.mark.parametrize(
    ("word", "home"),
    [
        ("register_forward", SITES),
        ("register_full_backward", set()),
        ("AttentionInterface", {"attention.py"}),
        ("AttentionMaskInterface", {"attention.py"}),
        ("ALL_ATTENTION_FUNCTIONS", {"attention.py"}),
    ],
)
def test_hooks_and_the_registry_have_one_home(word, home):
    assert mentions(word) == home


def test_compositions_have_one_interpreter():
    """`match` on blocks is in composition.py, branches.py and evaluator.py; everybody else calls `evaluate`."""
    for path, name in zip(FILES, NAMES, strict=True):
        if name in ("composition.py", "branches.py", "evaluator.py") or part_of(path) in LAZY:
            continue
        classes = {
            node.cls.id
            for node in ast.walk(tree(path))
            if isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name)
        }
        assert not classes & {"Stack", "Fuse", "Split", "BatchSplit", "Parallel", "Average", "MultiTask"}, name


@files
def test_nothing_is_unpickled(path):
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"pickle.load", "pickle.loads", "joblib.load", "eval", "exec"}, f"{path}:{node.lineno}"
        if called == "torch.load":
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


PRINTERS = ("cli/", "reporting/", "training/display.py", "__main__.py")


@files
def test_only_the_screen_prints(path):
    name = str(path.relative_to(ROOT))
    printed = [
        node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert printed == [] or name.startswith(PRINTERS)


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(path.parents[1])))
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.name not in {"utils.py", "helpers.py", "misc.py", "common.py"}


@files
def test_everything_public_says_what_it_is_for(path):
    module = tree(path)
    assert ast.get_docstring(module) or not module.body, "the module has no docstring"
    public = [
        node
        for node in module.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


# ---- the face


@pytest.mark.parametrize("name", adaptrain.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(adaptrain, name)
    assert value is not None
    assert name == "__version__" or value.__doc__
    assert name in dir(adaptrain)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'LoraConfig'"):
        _ = adaptrain.LoraConfig


@pytest.mark.parametrize("package", ["methods", "architectures", "heads", "interop"])
def test_a_packages_exports_exist_and_are_sorted(package):
    module = importlib.import_module(f"adaptrain.{package}")
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_type_checkers_see_every_name():
    guarded = next(node for node in tree(ROOT / "__init__.py").body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(adaptrain.__all__) - {"__version__"}


def test_importing_the_package_waits_for_nothing():
    code = (
        "import sys, adaptrain, adaptrain.errors; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
