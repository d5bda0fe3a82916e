"""Lists that a column holds as text: a CSV file holds them in no other way, and pandas writes them so."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from typing import Any

WRITE = 'Write the list as JSON: ["one", "other"]'
"""The cure where a text stands in the place of a list."""


def parse_list(value: Any) -> Any:
    """The list or mapping that a text holds, in JSON or as Python writes it; any other value unchanged.

    >>> parse_list("['a', 'b']"), parse_list("[1, 2]"), parse_list("a day")
    (['a', 'b'], [1, 2], 'a day')
    """
    if not is_bracketed(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        parsed = ast.literal_eval(value.strip())
        # numpy writes ['a' 'b'], without commas, which Python would read as one text
        glued = _has_two_texts_in_a_row(value.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return value
    return value if glued or not isinstance(parsed, list | dict) else parsed


def is_bracketed(value: Any) -> bool:
    """Whether a value is a text that looks like a list or a mapping."""
    text = value.strip() if isinstance(value, str) else ""
    return (text[:1], text[-1:]) in (("[", "]"), ("{", "}"))


def _has_two_texts_in_a_row(text: str) -> bool:
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if token.type == before == tokenize.STRING:
            return True
        before = token.type
    return False
