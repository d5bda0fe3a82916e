"""Laws of mathematics are tested in float64, where rounding is 1e-16 on any machine.

Many models turn to float32 inside, whatever comes in: norms, softmax, rotary angles. `Float64` keeps them in float64,
so that a bound need not allow for float32 rounding, which differs from processor to processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Within it, a tensor of float64 stays one where a model asks for float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        number = func is torch.tensor and isinstance(args[0], int | float)  # DeBERTa's scale of attention scores
        number = number and args[0] != 0  # the zeros of a mask have the model's dtype, which may be float32
        if number and kwargs.get("dtype") is torch.float32:
            kwargs = kwargs | {"dtype": torch.float64}
        elif args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if torch.float32 in args:
                args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **kwargs)
