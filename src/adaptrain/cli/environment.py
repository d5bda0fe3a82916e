"""What libraries are told before they are imported: be quiet, and do not fork tokenizer threads."""

from __future__ import annotations

import logging
import os

_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",  # batches are tokenised in one call, which has its own threads
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # they would fall into our own display
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}
# transformers imports torchao wherever it is installed, which tells which of its kernels this machine has not.
_REMARKS = ("torchao", "torch.utils._pytree")


def quieten() -> None:
    """Set what the user has not set; remarks that libraries make on each other's versions are not for them."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    for name in _REMARKS:
        logging.getLogger(name).setLevel(logging.ERROR)
