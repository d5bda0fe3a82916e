"""One exception tree, exit codes, and messages that name the nearest thing."""

from __future__ import annotations

import inspect

import pytest

from adaptrain import errors

CODES = {
    "AdaptrainError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "CompositionError": 2,
    "UnsupportedError": 2,
    "AdapterNameError": 2,
    "DataError": 3,
    "ModelError": 3,
    "CheckpointError": 3,
    "OutputError": 3,
    "OutOfMemoryError": 4,
}


def test_the_tree_is_complete():
    found = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert found == CODES
    assert all(name in errors.__doc__ for name in CODES)


@pytest.mark.parametrize("name", CODES)
def test_every_error_is_one_tree_and_prints_its_message(name):
    error = getattr(errors, name)("the thing, the place, the cure")
    assert isinstance(error, errors.AdaptrainError)
    assert str(error) == "the thing, the place, the cure"


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("CompositionError", ValueError),
        ("DataError", ValueError),
        ("AdapterNameError", KeyError),
    ],
)
def test_errors_are_also_what_python_code_expects(name, builtin):
    assert issubclass(getattr(errors, name), builtin)


def test_a_config_error_holds_every_mistake():
    error = errors.ConfigError(["one.", "two."])
    assert error.problems == ["one.", "two."]
    assert str(error) == "one.\ntwo."
    assert errors.ConfigError("one.").problems == ["one."]


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("learnin_rate", ["learning_rate", "epochs"], ", did you mean 'learning_rate'?"),
        ("xyz", ["learning_rate"], ""),
        ("a", [], ""),
        (1, ["1", "2"], ", did you mean '1'?"),
    ],
)
def test_the_nearest_name(word, known, said):
    assert errors.nearest(word, known) == said


def test_lists_for_messages():
    assert errors.listed(["a", 2]) == "a, 2"
    assert errors.listed(iter([])) == "(none)"


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["sst2", "mrpc"], "There is no task 'sst', did you mean 'sst2'? The tasks are: sst2, mrpc"),
        (["xyz"], "There is no task 'sst'. The tasks are: xyz"),
        ([], "There is no task 'sst'. The tasks are: (none)"),
    ],
)
def test_an_unknown_name_is_two_sentences(known, said):
    assert errors.unknown("task", "sst", iter(known), "The tasks are") == said
