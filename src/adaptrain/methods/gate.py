"""The gate of UniPELT: how much of a module's contribution counts, from what the layer reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptrain.context import record_gate


class Gate(nn.Module):
    """g = mean over the tokens of σ(W x + b), one number a row; padding does not count.

    Where the model is causal a mean would let later tokens change earlier ones, and a decoding step with a cache would
    see one token where it saw many without: there the gate of a token is its own, g_t = σ(W x_t + b).

    Source: Mao et al. 2022, *UniPELT*, section 3.2.

    Args:
        features: width of x.
        causal: a gate a token instead of one a row.
        everywhere: AdapterHub's semantics: the mean over all positions, padding and later tokens included.
        outputs: how many gates from the same x.
    """

    def __init__(self, features: int, causal: bool, everywhere: bool = False, outputs: int = 1) -> None:
        super().__init__()
        layer = nn.Linear(features, outputs)
        self.weight, self.bias = layer.weight, layer.bias
        nn.init.normal_(self.weight, std=0.02)
        self.everywhere = everywhere
        self.by_token = causal and not everywhere

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Gates of x.

        Args:
            x: (rows, positions, features).
            mask: which positions are tokens, (rows, positions) of booleans; None: all.

        Returns:
            (rows, 1, outputs), or (rows, positions, outputs) where the model is causal.
        """
        logits = F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
        scores = torch.sigmoid(logits.to(torch.promote_types(x.dtype, torch.float32)))
        weights = torch.ones_like(scores[..., :1])
        if mask is not None and not self.everywhere:
            weights = mask.to(scores.dtype).unsqueeze(-1).expand_as(weights)
        mean = (scores * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
        record_gate(mean[:, 0])
        return (scores if self.by_token else mean).to(x.dtype)
