"""How long the command line takes to answer, beside the libraries that a run cannot do without.

    python benchmarks/start_up.py

Each command is a process of its own. They take turns in every round, so that a busy machine slows all of them; what is
printed is the median over rounds of the ratio to an interpreter that does nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 5
NOTHING = ("-c", "")
COMMANDS = {
    "adaptrain --help": ("-m", "adaptrain", "--help"),
    "adaptrain ls": ("-m", "adaptrain", "ls"),
    "adaptrain ls adapters": ("-m", "adaptrain", "ls", "adapters"),
    "adaptrain show recipe=quickstart": ("-m", "adaptrain", "show", "recipe=quickstart"),
    "what `adaptrain train` imports": ("-c", "import adaptrain.training.run"),
    "torch, transformers and datasets": ("-c", "import torch, datasets; from transformers import AutoModel, BertModel"),
}


def seconds(arguments: tuple[str, ...]) -> float:
    """Of one process, from its start to its end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print a line a command."""
    ratios: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        nothing = seconds(NOTHING)
        for name, arguments in COMMANDS.items():
            ratios[name].append(seconds(arguments) / nothing)
    for name, each in ratios.items():
        print(f"{name:34s} {statistics.median(each):6.1f}")


if __name__ == "__main__":
    main()
