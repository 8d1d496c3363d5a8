"""What the parts of a converted layer share: in a layer of several dtypes each computes in its
own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Part(nn.Module):
    """A part whose weight has one dtype. Where it `casts`, it takes any dtype, as stock modules do
    under autocast; everywhere else operands of another dtype are refused."""

    casts = False

    def own(self, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        """What is given, in the dtype of the weight."""
        dtype = self.dtype
        return tuple(None if x is None else x.to(dtype) for x in given)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        held = self.values if hasattr(self, "values") else self.weight
        return held.dtype
