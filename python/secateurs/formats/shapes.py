"""What the formats of a weight share."""

from __future__ import annotations

from torch import Tensor

from secateurs.errors import FormatError


def sides(weight: Tensor) -> tuple[int, int]:
    """N and K of a `weight` `[N, K]`. Raises FormatError for one of other dimensions."""
    if weight.dim() != 2:
        raise FormatError(f"expected a weight [N, K], got a tensor of shape {tuple(weight.shape)}")
    n, k = weight.shape
    return n, k
