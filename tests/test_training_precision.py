from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptrain.errors import ConfigError
from adaptrain.training.precision import find_hardware, native_bf16, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_the_frozen_base_is_held_in_the_dtype_and_a_trained_one_in_float32() -> None:
    frozen = resolve_precision("bf16", CPU, trains_base=False)
    assert (frozen.name, frozen.base, frozen.autocast) == ("bf16", torch.bfloat16, False)
    trained = resolve_precision("bf16", CPU, trains_base=True)
    assert (trained.name, trained.base, trained.autocast) == ("bf16", torch.float32, True)
    exact = resolve_precision("fp32", CPU, trains_base=True)
    assert (exact.name, exact.base, exact.autocast) == ("fp32", torch.float32, False)


@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_it_is_native(native: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert native_bf16(CPU) is native
    assert resolve_precision("auto", CPU, False).name == name


def test_probes_may_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert not native_bf16(CPU) and not native_bf16(torch.device("mps"))


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ConfigError, match="trainer.device=gpu: this machine has: auto, .*cpu"):
        resolve_device("gpu")


def test_two_runs_in_one_process_may_differ_in_precision() -> None:
    layer = nn.Linear(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        hardware = find_hardware("cpu", precision, trains_base=True)
        assert hardware.accelerator.num_processes == 1
        with hardware.forward():
            assert layer(torch.ones(1, 4)).dtype == dtype
