"""What all tests share. Importing it must stay cheap: the tests of the command line need no torch."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
