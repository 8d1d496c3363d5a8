"""Norms of a converted layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.conversion.modules.part import Part


class Norm(Part):
    """A LayerNorm or RMSNorm by our kernel, with the parameters of the stock one.

    Args:
        offset: added to the weight.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, eps: float, rms: bool, offset: float = 0.0
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps, self.rms, self.offset = eps, rms, offset

    def forward(self, x: Tensor) -> Tensor:
        if self.casts:
            x = self.own(x)
        weight = self.weight + self.offset if self.offset else self.weight
        return ops.add_norm(x, None, weight, self.bias, self.eps, self.rms)

    @staticmethod
    def of(stock: nn.Module, rms: bool, offset: float = 0.0) -> nn.Module:
        """`stock` by our kernel where that is faster, else itself: a norm that is neither a
        LayerNorm nor, as `rms` says of the family, an RMSNorm; a device without a kernel; and
        LayerNorm in float32, where torch's own is as fast."""
        eps: Any
        weight: Any
        if isinstance(stock, nn.LayerNorm):
            rms, eps, weight, bias = False, stock.eps, stock.weight, stock.bias
        else:
            eps = getattr(stock, "variance_epsilon", getattr(stock, "eps", None))
            weight, bias = getattr(stock, "weight", None), None
            if not rms or eps is None:
                return stock
        if weight is None or weight.dim() != 1 or (not rms and weight.dtype == torch.float32):
            return stock
        call = (weight.detach()[None], None, weight, bias, eps, rms)
        faster = ops.explain_choice(ops.add_norm, *call).backend not in (None, "reference")
        return Norm(weight, bias, eps, rms, offset) if faster else stock

    def extra_repr(self) -> str:
        kind = "RMSNorm" if self.rms else "LayerNorm"
        return f"{kind}, {tuple(self.weight.shape)}, eps={self.eps}"
