"""Whose code may run beside adaptrain's own: the caller says so, and no file can.

The caller speaks on the command line of the call (`model.allow_remote_code=WORD`, the argument of a Python call) or in
his own environment (`ADAPTRAIN_ALLOW_REMOTE_CODE`). A recipe, a saved run and the current folder may be a stranger's,
so what they allow is refused. The word is exact: the id of a repository or the path of a folder, with `@REVISION`
where the run chooses a revision, because anybody can put code under a revision of somebody else's repository.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from adaptrain.config.documents import COMMAND_LINE, Leaf, Tree
from adaptrain.config.report import Report
from adaptrain.config.schema import ModelConfig, code_word
from adaptrain.errors import ModelError

VARIABLE = "ADAPTRAIN_ALLOW_REMOTE_CODE"
"""Of the environment: words separated by commas. The user's own setting, for models that he always trusts."""

KEY = "model.allow_remote_code"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def permits(config: ModelConfig) -> bool:
    """Whether the call or the user's environment names the code of this model."""
    return config.code in (config.allow_remote_code, *_settings())


def may_run(config: ModelConfig, location: str) -> bool:
    """Whether code of the model that was found at a location may run.

    A word of the form of a hub id allows the repository on the hub. A folder of that name in the current folder, or in
    a Python package, is something else.

    Raises:
        ModelError: the call allows code that is not what was found.
    """
    if not permits(config):
        return False
    if _HUB_ID.fullmatch(config.name) is None or not Path(location).is_dir():
        return True
    if config.allow_remote_code is None:
        return False
    folder = shlex.quote(f"./{config.name}")
    raise ModelError(
        f"{KEY}={config.code} names a repository of the hub, and model.name={config.name} was found in the folder "
        f"{Path(location).absolute()}; to run the code of a folder, write model.name={folder} {KEY}={folder}"
    )


def cure(config: ModelConfig) -> str:
    """The words that allow a model's own code to run."""
    return f"if you trust that code, add to the command: {KEY}={shlex.quote(config.code)}"


def refuse_permission_of_file(tree: Tree, report: Report) -> None:
    """Refuse a permission that stands in a file, and one whose words a file would fill in. For values before their
    interpolations are resolved."""
    model = tree.get("model")
    leaf = model.get("allow_remote_code") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(leaf, Leaf) or leaf.value is None:
        return
    name, revision = (node.value if isinstance(node := model.get(key), Leaf) else None for key in ("name", "revision"))
    word = shlex.quote(code_word(str(name), revision))
    if leaf.origin != COMMAND_LINE:
        report.add(
            KEY,
            leaf.origin,
            f"a file cannot allow code to run; take the line out, and if you trust the code of {name}, add to the "
            f"command: {KEY}={word}",
        )
    elif "${" in str(leaf.value):
        report.add(
            KEY, leaf.origin, f"is {leaf.value}, which a file could fill in; write the word itself: {KEY}={word}"
        )


def _settings() -> tuple[str, ...]:
    return tuple(word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip())
