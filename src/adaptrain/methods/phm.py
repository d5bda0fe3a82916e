"""PHM layers: a linear map as a sum of Kronecker products, as in Compacter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adaptrain.methods.base import Shared

if TYPE_CHECKING:
    from adaptrain.methods.bottleneck import BnConfig

FROZEN_SEED = 0
"""Of a rule that is not learnt: it is drawn the same everywhere, so that no file has to hold it."""


class PHMLinear(nn.Module):
    """y = x H + b with H = Σᵢ Aᵢ ⊗ Wᵢ, i = 1 … n.

    Aᵢ (n, n), the rule; Wᵢ (in / n, out / n), or Lᵢ Rᵢ with Lᵢ (in / n, k) and Rᵢ (k, out / n).

    Source: Zhang et al. 2021, *Beyond Fully-Connected Layers with Quaternions*, equation 4; Mahabadi et al. 2021,
    *Compacter*, equations 4 and 5.

    Args:
        shared: holds what the layers have in common; None where nothing is.
        role: `down` or `up`.
    """

    bias: nn.Parameter | None

    def __init__(
        self, config: BnConfig, in_features: int, out_features: int, shared: SharedPHM | None, role: str
    ) -> None:
        super().__init__()
        self._shared, self.role = (shared,), role  # in a tuple: its parameters belong to the adapter
        self.config = config
        if not config.shared_phm_rule:
            add_rule(self, config, 0.01)
        if not config.shared_W_phm:
            add_factors(self, config, in_features, out_features, "")
        self.bias = nn.Parameter(torch.zeros(out_features)) if config.phm_bias else None

    def matrix(self) -> Tensor:
        """H transposed, (out, in); it does not depend on the batch."""
        common: dict[str, Tensor] = {} if self._shared[0] is None else self._shared[0].current()
        a = common["rule"] if self.config.shared_phm_rule else rule(self)  # (n, n, n)
        w = common[self.role] if self.config.shared_W_phm else factors(self, "")  # (n, in / n, out / n)
        n, rows, columns = w.shape
        return torch.einsum("iab,icd->bdac", a, w).reshape(n * columns, n * rows)


class SharedPHM(Shared):
    """What the PHM layers of one adapter have in common: the rule, and with `shared_W_phm` their factors."""

    def __init__(self, config: BnConfig, hidden_size: int, size: int) -> None:
        super().__init__()
        self.config = config
        if config.shared_phm_rule:
            add_rule(self, config, config.phm_init_range if config.phm_c_init == "normal" else 1.0)
        if config.shared_W_phm:
            add_factors(self, config, hidden_size, size, "down_")
            add_factors(self, config, size, hidden_size, "up_")
            if config.init_weights == "mam_adapter":
                zero_factors(self, "up_")

    def compute(self) -> dict[str, Tensor]:
        """The rule (n, n, n), and the factors of `down` and `up`."""
        found = {"rule": rule(self)} if self.config.shared_phm_rule else {}
        if self.config.shared_W_phm:
            found |= {"down": factors(self, "down_"), "up": factors(self, "up_")}
        return found


def add_rule(module: nn.Module, config: BnConfig, spread: float) -> None:
    """Give a module the parameters of A, drawn from N(0, spread²) or U(−spread, spread)."""
    n = config.phm_dim
    shapes = {"rule_left": (n, n, 1), "rule_right": (n, 1, n)} if config.factorized_phm_rule else {"rule": (n, n, n)}
    generator = None if config.learn_phm else torch.Generator("cpu").manual_seed(FROZEN_SEED)
    for name, shape in shapes.items():
        drawn = torch.empty(shape, device="cpu")
        if config.phm_c_init == "uniform":
            drawn.uniform_(-spread, spread, generator=generator)
        else:
            drawn.normal_(0, spread, generator=generator)
        if config.learn_phm:
            module.register_parameter(name, nn.Parameter(drawn))
        else:
            module.register_buffer(name, drawn, persistent=False)


def rule(module: nn.Module) -> Tensor:
    """A (n, n, n)."""
    if hasattr(module, "rule"):
        return getattr(module, "rule")  # noqa: B009  (a tensor of either kind)
    left, right = (getattr(module, name) for name in ("rule_left", "rule_right"))
    return left @ right


def add_factors(module: nn.Module, config: BnConfig, in_features: int, out_features: int, prefix: str) -> None:
    """Give a module the parameters of W; each of the n matrices, or of their factors, is drawn on its own."""
    n, k = config.phm_dim, config.phm_rank
    rows, columns = in_features // n, out_features // n
    shapes = {"left": (n, rows, k), "right": (n, k, columns)}
    if not config.factorized_phm_W:
        shapes = {"weight": (n, rows, columns)}
    for name, shape in shapes.items():
        drawn = torch.empty(shape)
        for matrix in drawn:
            _draw(matrix, config)
        module.register_parameter(prefix + name, nn.Parameter(drawn))


def factors(module: nn.Module, prefix: str) -> Tensor:
    """W (n, in / n, out / n)."""
    whole = getattr(module, f"{prefix}weight", None)
    return getattr(module, f"{prefix}left") @ getattr(module, f"{prefix}right") if whole is None else whole


def zero_factors(module: nn.Module, prefix: str) -> None:
    """Make W zero, through its last factor alone."""
    nn.init.zeros_(module.get_parameter(prefix + ("weight" if hasattr(module, f"{prefix}weight") else "right")))


def _draw(matrix: Tensor, config: BnConfig) -> None:
    match config.hypercomplex_nonlinearity:
        case "glorot-uniform":
            nn.init.xavier_uniform_(matrix)
        case "glorot-normal":
            nn.init.xavier_normal_(matrix)
        case "normal":
            nn.init.normal_(matrix, std=0.02)
        case "phm":  # as wide as torch's own linear layers start
            bound = 1 / math.sqrt(matrix.shape[0])
            nn.init.uniform_(matrix, -bound, bound)
