"""`adaptrain VERB [PATH] [overrides]`: find the verb, run it, tell what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from adaptrain.cli.environment import quieten
from adaptrain.cli.failures import BROKEN_PIPE, debugging, describe, tell
from adaptrain.cli.verbs import VERBS, Verb, help_of, overview
from adaptrain.errors import UsageError, listed, unknown
from adaptrain.version import __version__

_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        the exit code: 0, 2 (usage, configuration), 3 (data, model, checkpoint, output), 4 (memory), 130 (interrupted),
        1 for anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    quieten()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go; without this, Python complains about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        failure = describe(error)
        if debugging():
            traceback.print_exception(error)
        sys.stdout.flush()
        tell(failure)
        return failure.exit_code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in (*_HELP, "help"):
        print(help_of(_verb(arguments[1])) if len(arguments) > 1 and arguments[0] == "help" else overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"adaptrain {__version__}")
        return 0
    verb, rest = _verb(arguments[0]), arguments[1:]
    if not verb.hidden and any(argument in _HELP for argument in rest):
        print(help_of(verb))
        return 0
    return verb.load()(rest)


def _verb(name: str) -> Verb:
    if name in VERBS:
        return VERBS[name]
    known = [verb.name for verb in VERBS.values() if not verb.hidden]
    if "=" in name:
        raise UsageError(f"'{name}' is no verb; did you mean: adaptrain train {name}? The verbs are: {listed(known)}")
    raise UsageError(unknown("verb", name, known, "The verbs are"))
