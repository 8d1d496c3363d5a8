"""What the parts of a converted layer share: in a layer of several dtypes each computes in its
own."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn


class Part(nn.Module):
    """A part whose weight has one dtype. Where it `casts`, it takes any dtype, as stock modules do
    under autocast; everywhere else operands of another dtype are refused."""

    casts = False
    weight: Any

    @overload
    def own(self, x: Tensor) -> Tensor: ...
    @overload
    def own(self, x: Tensor | None) -> Tensor | None: ...
    def own(self, x: Tensor | None) -> Tensor | None:
        """Return `x` in the dtype that this computes in."""
        return None if x is None else x.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that this computes in."""
        held: Any = self.values if hasattr(self, "values") else self.weight
        dtype: torch.dtype = held.dtype
        return dtype


class Linear(Part):
    """A linear of a converted layer: y = act(x W^T + bias) * multiplier + residual."""

    bias: Tensor | None  # [N]
    activation: str

    @property
    def scales(self) -> Tensor | None:
        """Return the scales `[N]` of the weight's codes, None where it has no codes."""
        return None

    def dense(self) -> Tensor:
        """Return the weight `[N, K]`, zeros where none is stored."""
        raise NotImplementedError
