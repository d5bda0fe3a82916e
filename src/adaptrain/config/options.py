"""Options with dashes, as other tools have them, in the words of ours: `--epochs 3` is `trainer.epochs=3` here."""

from __future__ import annotations

import shlex

from adaptrain.config.keys import homes
from adaptrain.config.library import GROUPS

_ELSEWHERE = {
    "dry_run": "`adaptrain show` prints the config of a run without training",
    "cfg": "`adaptrain show` prints the config of a run",
    "info": "`adaptrain show` prints the config of a run, and where each key was set",
    "config": "write recipe=NAME, or recipe=FILE.yaml",
    "config_file": "write recipe=FILE.yaml",
    "config_path": "write recipe=FILE.yaml",
    "config_name": "write recipe=NAME",
    "config_dir": "recipes of yours lie in ./recipes, choices in ./conf/GROUP",
    "resolve": "`adaptrain show` prints every value resolved",
    "multi_run": "write -m",
    "sweep": "write -m",
    "M": "write -m",
}
"""Options that are no keys, of Hydra and others."""


def meant_by(option: str, value: str) -> str:
    """What to write instead of an option that there is not; empty where nothing is known of it.

    Args:
        option: with its dashes.
        value: what follows it; empty for nothing.
    """
    word = option.lstrip("-").replace("-", "_")
    if word in _ELSEWHERE:
        return _ELSEWHERE[word]
    keys = [word] if word in GROUPS else homes(word)
    written = shlex.quote(value) if value else "…"
    return f"write {' or '.join(f'{key}={written}' for key in keys)}" if keys else ""
