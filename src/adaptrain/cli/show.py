"""`adaptrain show`: the composed config, and where each key was set."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from adaptrain.cli.arguments import split
from adaptrain.cli.screen import styled


def run(arguments: Sequence[str]) -> int:
    """Print YAML with the origins as comments."""
    from adaptrain.config.compose import compose
    from adaptrain.config.render import show_lines
    from adaptrain.reporting.folder import run_folder

    found = split(arguments, config=True)
    composed = compose([*found.paths, *found.overrides])
    lines = list(show_lines(composed))
    width = max(len(text) for text, origin in lines if origin and len(text) < 60)
    for text, origin in lines:
        if not origin:
            print(styled(text, "1", sys.stdout))
            continue
        colour = {"command line": "33", "default": "2"}.get(origin, "36")
        print(f"{text:<{width}}  {styled(f'# {origin}', colour, sys.stdout)}")
    for note in composed.notes:
        print(styled(f"# note: {note}", "33", sys.stdout))
    print(styled(f"# train writes to {run_folder(composed.config)}", "2", sys.stdout))
    return 0
