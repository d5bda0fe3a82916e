"""Several adapters made into one: averages, task arithmetic, TIES, DARE, and LoRA's update cut back to a rank.

With the weights λᵢ of the adapters i, and Φᵢ what an adapter holds, tensor by tensor:

    linear                       Φ = Σ λᵢ Φᵢ
    lora_linear_only_negate_b    A = Σ |λᵢ| Aᵢ,  B = Σ λᵢ Bᵢ
    lora_delta_w_svd             ΔW = Σ λᵢ sᵢ Bᵢ Aᵢ = U S Vᵀ;  A = V_kᵀ, B = U_k S_k / s
    dare                         Φ = Σ λᵢ mᵢ ⊙ Φᵢ / d,  mᵢ ~ Bernoulli(d)
    ties                         τᵢ: the largest d of Φᵢ, the rest zero;  γ = sgn Σ λᵢ τᵢ
                                 Φ = Σ λᵢ τᵢ / Σ |λᵢ|, both over those i where sgn λᵢ τᵢ = γ

Task arithmetic is `linear` with weights of either sign that are not normalised. `linear` of LoRA is no average of the
updates: (Σ λᵢ Bᵢ)(Σ λᵢ Aᵢ) has cross terms Bᵢ Aⱼ. `lora_delta_w_svd` averages the updates themselves, s = α / r.

Source: Chronopoulou et al. 2023, *AdapterSoup*; Zhang et al. 2023, *Composing Parameter-Efficient Modules with
Arithmetic Operations* (the sign of B alone); Yadav et al. 2023, *TIES-Merging*, section 4; Yu et al. 2024, *Language
Models are Super Mario* (DARE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptrain.errors import ConfigError, listed, unknown

STRATEGIES = ("linear", "lora_linear_only_negate_b", "lora_delta_w_svd", "ties", "dare")
UPDATE, NEGATE_B = "lora_delta_w_svd", "lora_linear_only_negate_b"
SPARSE = ("ties", "dare")

Mix = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How adapters become one; see the module for the formulas.

    Attributes:
        strategy: one of `STRATEGIES`.
        weights: λ, one an adapter; equal ones when None.
        normalize_weights: divide λ by its sum. Without, TIES leaves its division out too: the result is then the sum
            of what agrees.
        svd_rank: k. With `ties` and `dare`, they act on LoRA's updates instead of its tensors, and the result is cut
            back to this rank.
        density: d, the share of an adapter's numbers that TIES and DARE keep.
        seed: of DARE's mask; a generator of its own.

    Raises:
        ConfigError: impossible values, and options that the strategy does not read; every mistake at once.
    """

    strategy: str = "linear"
    weights: Sequence[float] | None = None
    normalize_weights: bool = True
    svd_rank: int | None = None
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ConfigError(problems)

    def _problems(self) -> Iterator[str]:
        if self.strategy not in STRATEGIES:
            yield unknown("combine_strategy", self.strategy, STRATEGIES, "The strategies are")
            return
        if self.svd_rank is None:
            if self.strategy == UPDATE:
                yield f"svd_rank is missing; {UPDATE} needs the rank of its result"
        elif self.strategy not in (UPDATE, *SPARSE):
            yield f"svd_rank is for {listed((UPDATE, *SPARSE))}; leave it out with {self.strategy}"
        elif not _whole(self.svd_rank) or self.svd_rank < 1:
            yield f"svd_rank is {self.svd_rank!r}; it must be a whole number from 1 up"
        if self.strategy not in SPARSE:
            if self.density is not None:
                yield f"density is for {listed(SPARSE)}; leave it out with {self.strategy}"
        elif self.density is None:
            yield f"density is missing; {self.strategy} needs the share of the numbers that it keeps, 0.2 for a fifth"
        elif not _number(self.density) or not 0 < self.density <= 1:
            yield f"density is {self.density!r}; it must lie in (0, 1]"
        if not _whole(self.seed):
            yield f"seed is {self.seed!r}; it must be a whole number"
        elif self.seed and self.strategy != "dare":
            yield f"seed is for dare; leave it out with {self.strategy}, which draws nothing"

    def shares(self, names: Sequence[str]) -> list[float]:
        """λ for adapters of these names.

        Raises:
            ConfigError: no adapter, another number of weights, one that is no finite number, or a sum of zero.
        """
        if not names:
            raise ConfigError("There is nothing to average; name at least one")
        given = [1 / len(names)] * len(names) if self.weights is None else list(self.weights)
        if len(given) != len(names):
            raise ConfigError(f"There are {len(given)} weights for {len(names)}: {listed(names)}; give one for each")
        if wrong := [each for each in given if not _number(each) or not math.isfinite(each)]:
            raise ConfigError(f"A weight is {wrong[0]!r}; weights are finite numbers")
        if not self.normalize_weights:
            return [float(each) for each in given]
        total = math.fsum(given)
        if abs(total) <= 1e-9 * math.fsum(map(abs, given)):
            raise ConfigError(
                f"The weights {listed(f'{each:g}' for each in given)} sum to 0, so they cannot be divided by their "
                "sum; give normalize_weights=False to take them as they are"
            )
        return [each / total for each in given]


def mixer(mixture: Mixture, shares: Sequence[float]) -> Mix:
    """What makes one tensor of several of one shape; DARE draws on with every call."""
    density, generator = mixture.density or 0.0, torch.Generator("cpu").manual_seed(mixture.seed)
    if mixture.strategy == "ties":
        return lambda tensors: ties(tensors, shares, density, mean=mixture.normalize_weights)
    if mixture.strategy == "dare":
        return lambda tensors: dare(tensors, shares, density, generator)
    return lambda tensors: weighted_sum(tensors, shares)


def ties(tensors: Sequence[Tensor], shares: Sequence[float], density: float, mean: bool = True) -> Tensor:
    """TIES of tensors of one shape: trim, elect a sign for each number, average what has it.

    Args:
        mean: divide by the weights of those that agree; else their sum.
    """
    weighted = [share * trimmed(tensor, density) for tensor, share in zip(tensors, shares, strict=True)]
    elected = torch.stack(weighted).sum(0).sign()
    agreeing = [(each.sign() == elected) & (elected != 0) for each in weighted]
    total = weighted_sum(
        [each * agrees for each, agrees in zip(weighted, agreeing, strict=True)], [1.0] * len(weighted)
    )
    if not mean:
        return total
    mass = weighted_sum([agrees.to(total.dtype) for agrees in agreeing], [abs(share) for share in shares])
    return total / mass.where(mass > 0, torch.ones_like(mass))


def trimmed(tensor: Tensor, density: float) -> Tensor:
    """The largest `density` of a tensor's numbers by magnitude, at least one; the rest zero."""
    flat = tensor.flatten()
    kept = flat.abs().topk(min(flat.numel(), max(1, round(density * flat.numel())))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def dare(tensors: Sequence[Tensor], shares: Sequence[float], density: float, generator: torch.Generator) -> Tensor:
    """DARE of tensors of one shape: drop numbers at random, scale what is left up to the same mean, add."""
    kept = [
        tensor * (torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) < density) / density
        for tensor in tensors
    ]
    return weighted_sum(kept, shares)


def cut(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B' (out, k) and A' (k, in) with B' A' the best approximation of B A of rank k; the rows of A' are orthonormal.

    The product itself is never made: its singular values are those of a matrix of B's and A's inner size.
    """
    if (short := rank - len(a)) > 0:
        a, b = torch.cat([a, a.new_zeros(short, a.shape[1])]), torch.cat([b, b.new_zeros(len(b), short)], 1)
    left, inner_left = torch.linalg.qr(b)
    right, inner_right = torch.linalg.qr(a.t())
    u, sigma, v = torch.linalg.svd(inner_left @ inner_right.t(), full_matrices=False)
    return left @ (u * sigma)[:, :rank], v[:rank] @ right.t()


def weighted_sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Σ λᵢ tᵢ of tensors of one shape."""
    total = torch.zeros_like(tensors[0])
    for tensor, share in zip(tensors, shares, strict=True):
        total = total + share * tensor
    return total


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
