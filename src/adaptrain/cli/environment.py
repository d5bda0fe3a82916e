"""What libraries are told before they are imported: be quiet, and do not fork tokenizer threads."""

from __future__ import annotations

import os

_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",  # batches are tokenised in one call, which has its own threads
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # they would fall into our own display
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}


def quieten() -> None:
    """Set what the user has not set."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
