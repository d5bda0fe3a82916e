"""Invertible adapters: their formulas, and that what is undone was done."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from adaptrain.errors import ConfigError
from adaptrain.methods import BnConfig, SeqBnInvConfig
from adaptrain.methods.invertible import Glow, Nice
from adaptrain.state import EmbeddingState
from matrix import gap, randomise


def unit_of(kind: str, size: int = 10, **options) -> Nice:
    torch.manual_seed(0)
    config = SeqBnInvConfig(inv_adapter=kind, **options)
    point = SimpleNamespace(
        kind="embedding",
        name="encoder.embeddings.output",
        stack="encoder",
        layer=-1,
        out_features=size,
        encoder_decoder=False,
    )
    assert config.covers(point)
    (unit,) = config.build([point]).units.values()
    randomise(unit, 0.5, 3)
    assert isinstance(unit, Nice)
    assert isinstance(unit, Glow) == (kind == "glow")
    return unit


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [10, 7, 2])
@pytest.mark.parametrize("kind", ["nice", "glow"])
def test_the_formula_and_its_inverse(kind, size):
    """In float64, on both halves of the features; an odd width gives the second half one more."""
    unit, h = unit_of(kind, size), torch.randn(2, 4, size)
    t = {key: value.double() for key, value in unit.state_dict().items()}

    def net(name: str, z: torch.Tensor) -> torch.Tensor:
        low = torch.relu(z @ t[f"{name}.down.weight"].T + t[f"{name}.down.bias"])
        return low @ t[f"{name}.up.weight"].T + t[f"{name}.up.bias"]

    def e(s: torch.Tensor) -> torch.Tensor:
        return torch.exp(5 * 0.636 * torch.atan(s / 5))

    z1, z2 = h.double().split([size // 2, size - size // 2], -1)
    if kind == "nice":
        y1 = z1 + net("F", z2)
        y2 = z2 + net("G", y1)
    else:
        s2, t2 = net("F", z2).chunk(2, -1)
        y1 = e(s2) * z1 + t2
        s1, t1 = net("G", y1).chunk(2, -1)
        y2 = e(s1) * z2 + t1
    found = unit(EmbeddingState(h))
    assert gap(found.h, torch.cat([y1, y2], -1)) < 1e-10
    assert gap(unit.inverse(found).h, h) < 1e-10
    assert gap(found.h, h) > 0.1


@pytest.mark.parametrize("kind", ["nice", "glow"])
def test_the_round_trip_loses_no_more_than_one_rounding_in_bf16(kind):
    torch.manual_seed(0)
    unit, h = unit_of(kind), torch.randn(2, 50, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = unit(EmbeddingState(h))
        back = unit.inverse(found)
    assert found.h.dtype == back.h.dtype == torch.bfloat16
    assert (back.h.float() - h.float()).abs().mean() < 0.02


def test_without_the_head_there_is_no_inverse():
    unit, state = unit_of("nice", inv_adapter_at_head=False), EmbeddingState(torch.randn(1, 2, 10))
    assert unit.inverse(state) is state
    assert gap(unit(state).h, state.h) > 0.1


@pytest.mark.parametrize(("factor", "size"), [(2, 2), (1, 5), (100, 1)])
def test_the_coupling_networks_follow_their_factor(factor, size):
    unit = unit_of("nice", inv_adapter_reduction_factor=factor)
    assert unit.F.down.weight.shape == (size, 5)
    assert unit.G.up.weight.shape == (5, size)


def test_fresh_weights():
    torch.manual_seed(0)
    config = SeqBnInvConfig()
    point = SimpleNamespace(kind="embedding", name="e", stack="encoder", layer=-1, out_features=256)
    (unit,) = config.build([point]).units.values()
    for name, parameter in unit.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inv_adapter": "nice"}, "inv_adapter_reduction_factor is missing; inv_adapter needs it"),
        ({"inv_adapter": "nice", "inv_adapter_reduction_factor": 0}, "inv_adapter_reduction_factor is 0"),
        ({"inv_adapter_reduction_factor": 2}, "inv_adapter_reduction_factor is for an inv_adapter"),
        ({"inv_adapter_at_head": False}, "inv_adapter_at_head is for an inv_adapter"),
        ({"inv_adapter": "nise"}, "inv_adapter is 'nise'"),
        (
            {"mh_adapter": False, "inv_adapter": "nice", "inv_adapter_reduction_factor": 2, "use_gating": True},
            "use_gating is for a bottleneck, and there is only an inv_adapter",
        ),
    ],
)
def test_impossible_values_are_refused(options, said):
    given = {"mh_adapter": True, "output_adapter": False, "reduction_factor": 2, "non_linearity": "relu"}
    with pytest.raises(ConfigError, match=said):
        BnConfig(**given | options)
