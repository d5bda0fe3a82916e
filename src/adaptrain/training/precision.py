"""What a run computes on, and in which numbers.

The frozen base is *held* in the base dtype: it is loaded so, and its activations are of that dtype. Trainable
parameters are float32 always. `auto` takes bf16 where the hardware multiplies it natively:

    cuda  compute capability 8.0 and up
    cpu   x86 with AVX512-BF16 or AMX-BF16
    mps   never: bf16 is native only from the second generation on, and nothing tells them apart

Full fine-tuning trains the base, so there the base stays float32 and bf16 means autocast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from adaptrain.errors import ConfigError, OutOfMemoryError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Numbers of a run.

    Attributes:
        name: `fp32` or `bf16`, resolved; what a manifest says.
        base: dtype that the base is loaded in.
        autocast: whether forwards run under bf16 autocast.
    """

    name: str
    base: torch.dtype
    autocast: bool


@dataclass(frozen=True)
class Hardware:
    """What a run computes on.

    Attributes:
        device: of this process.
        precision: of the run.
        accelerator: the engine for several processes; with one it does next to nothing.
    """

    device: torch.device
    precision: Precision
    accelerator: Accelerator

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around every forward, in training and evaluation alike, so that both compute the same."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision.autocast):
            yield


def find_hardware(device: str, precision: str, trains_base: bool, drops: bool = False) -> Hardware:
    """Resolve `trainer.device` and `trainer.precision` on this machine.

    Args:
        drops: whether parameters that train go without a gradient in some steps (`trainer.adapter_drop`), in all
            processes alike.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    chosen = resolve_device(device)
    # Our own autocast and device placement instead of accelerate's: its state is one a process, so a sweep could not
    # change either between two runs. Pooler weights that no head reads get no gradient when the base trains.
    # Nor is one process on the CPU told to accelerate: a later run on cuda would fail.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=several and chosen.type == "cpu",
        mixed_precision="no",
        device_placement=False,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=trains_base or drops)],
    )
    if accelerator.num_processes > 1:
        chosen = accelerator.device
    return Hardware(chosen, resolve_precision(precision, chosen, trains_base), accelerator)


def resolve_device(device: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *available]
    if device == "auto":
        return torch.device(available[0])
    if device not in available:
        raise ConfigError(f"trainer.device={device}: this machine has: auto, {', '.join(available)}")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device, trains_base: bool) -> Precision:
    """`auto` takes bf16 where it is native."""
    if precision == "auto":
        precision = "bf16" if native_bf16(device) else "fp32"
    if trains_base:
        return Precision(precision, torch.float32, autocast=precision == "bf16")
    return Precision(precision, DTYPES[precision], autocast=False)


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 without emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, so they may be gone one day
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


@contextmanager
def memory_errors(cures: str) -> Iterator[None]:
    """Tell a lack of memory as one, with what to change.

    Raises:
        OutOfMemoryError: in place of what torch or Python raised.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(f"The device is out of memory. {cures}") from error
    except RuntimeError as error:  # the CPU's and mps' allocators have no exception of their own
        text = str(error).lower()
        if any(sign in text for sign in ("can't allocate memory", "not enough memory", "out of memory")):
            raise OutOfMemoryError(f"The device is out of memory. {cures}") from error
        raise
