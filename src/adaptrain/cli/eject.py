"""`adaptrain eject-prefix`: make a reparameterised prefix flat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptrain.cli.arguments import one_path, read_pairs, split
from adaptrain.evaluation.overrides import MODEL_KEYS

KEYS = ("out", *MODEL_KEYS)


def run(arguments: Sequence[str]) -> int:
    """Eject, and print both sizes."""
    found = split(arguments)
    given = read_pairs(found.overrides, KEYS, "adaptrain eject-prefix")
    path = Path(one_path(found, "eject-prefix")).expanduser()

    from adaptrain.evaluation.run import eject_prefix

    out = Path(given["out"]).expanduser() if "out" in given else None
    result = eject_prefix(path, out, {key: value for key, value in given.items() if key in MODEL_KEYS})
    print(f"before  {result.bytes_before:>12,} bytes  {result.numbers_before:>12,} numbers")
    print(f"after   {result.bytes_after:>12,} bytes  {result.numbers_after:>12,} numbers")
    print(f"largest difference of an output: {result.difference:.1e} ({result.probe})")
    print(f"saved   {result.folder}")
    return 0
