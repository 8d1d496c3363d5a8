"""ADMM for one linear: the weight nearest to a wanted one among those of a pattern, or on levels.

Near is what the inputs see: |W - T|^2 = tr((W - T) H (W - T)^T), H the Gram matrix of the inputs.
With D = sqrt(diag H), Hn = D^-1 H D^-1 and V = T D, the scaled iterations of Boyd et al. 2011,
"Distributed Optimization and Statistical Learning via ADMM", section 3.1.1, are

    X <- (V Hn + rho (Z - U)) (Hn + rho I)^-1      Z <- P(X + U)      U <- U + X - Z

and W = Z D^-1. P takes the nearest point of the set in the scaled weights, in which an entry counts
|w| |x|: it begins with the order of Wanda (Sun et al. 2023, arXiv 2306.11695). Boža 2024, arXiv
2401.02938, finds the weights of pruned language models so. As there, the mask first moves with the
iterations and is then held; here it may be any set that P knows: patterns, shared masks, levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateurs.plan.quantization import Levels

ITERATIONS = 15
"""After so many the mask hardly moves any more, and then the weights under it do not."""

Choose = Callable[[Tensor], Tensor]
"""From scaled weights `[N, K]` to bool `[N, K]`: True at what the nearest member of a set keeps."""


class InputNorm:
    """The norm that inputs give to weights, factored once for all linears that read them.

    Args:
        gram: of the inputs, float64 `[K, K]`, without a negative eigenvalue. Inputs that are always
            zero count as of unit size.
        rho: penalty of the iterations; the scaled Gram matrix has ones on its diagonal.
    """

    def __init__(self, gram: Tensor, rho: float = 1.0) -> None:
        diagonal = gram.diagonal()
        self.rho = rho
        self.scale = diagonal.sqrt().where(diagonal > 0, torch.ones_like(diagonal))
        scaled = gram / self.scale[:, None] / self.scale
        damped = scaled + rho * torch.eye(len(gram)).to(gram)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.inverse = inverse.float()
        self.towards_target = (scaled @ inverse).float()


class Admm:
    """The iterations for one linear.

    Args:
        target: the wanted weight `[N, K]`.
        norm: of its inputs.

    Attributes:
        weight: as it stands, float32 `[N, K]`: exactly in the set as soon as an iteration ran.
    """

    def __init__(self, target: Tensor, norm: InputNorm) -> None:
        self.norm, self.scale = norm, norm.scale.float()
        self.weight = target.float()
        self._multiplier = torch.zeros_like(self.weight)
        self._pulled = (self.weight * self.scale) @ norm.towards_target

    def choose(self, choose: Choose, iterations: int = ITERATIONS) -> Tensor:
        """Let the mask move with the weights; returns the last one, bool `[N, K]`."""
        keep = torch.ones_like(self.weight, dtype=torch.bool)
        for _ in range(iterations):
            moved = self._moved()
            keep = choose(moved)
            self._settle(moved, moved * keep / self.scale)
        return keep

    def hold(
        self, keep: Tensor, levels: Levels | None = None, iterations: int = ITERATIONS
    ) -> None:
        """Let the weights settle under `keep`, bool `[N, K]`, and on `levels` if there are any."""
        for _ in range(iterations):
            moved = self._moved()
            weight = moved * keep / self.scale
            self._settle(moved, weight if levels is None else levels.nearest(weight))

    def _moved(self) -> Tensor:
        """X + U, X being the new one."""
        pull = self.weight * self.scale - self._multiplier
        return self._pulled + self.norm.rho * (pull @ self.norm.inverse) + self._multiplier

    def _settle(self, moved: Tensor, weight: Tensor) -> None:
        """Take the nearest point `weight` of the set as the new Z, and the rest as U."""
        self.weight, self._multiplier = weight, moved - weight * self.scale
