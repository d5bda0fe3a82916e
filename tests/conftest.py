"""What all tests share. Importing it must stay cheap: the tests of the command line need no torch."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_JIT", "0")  # DeBERTa of older releases is compiled; tests/float64.py must see inside
os.environ["ADAPTRAIN_CACHE"] = tempfile.mkdtemp(prefix="adaptrain-tokens-")  # not the user's
atexit.register(shutil.rmtree, os.environ["ADAPTRAIN_CACHE"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are float64, and stay so inside a model: see `float64.py`."""
    import torch

    from float64 import Float64

    torch.set_default_dtype(torch.float64)
    try:
        with Float64():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Only this machine can be reached: a test that needs more fails where it tries, instead of passing at home."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse(address[0] if isinstance(address, tuple) else None)
        connect(self, address)

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        _refuse(host)
        return look_up(host, *arguments, **options)

    socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_look_up
    yield
    socket.socket.connect, socket.getaddrinfo = connect, look_up


def _refuse(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and name not in ("localhost", "::1", "0.0.0.0", "") and not str(name).startswith("127."):
        raise RuntimeError(f"the tests have no network, and something asked for {name}")
