"""Ridge regression by its normal equations, gathered from chunks of examples."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.errors import MethodError
from secateurs.processes import summed, total


class NormalEquations:
    """Sums from which a correction of a linear map is solved: find D and c of least
    `sum |e - D f - c|^2 + ridge * mean(diag F^T F) * |D|^2` over features f and errors e.

    The products are computed in the dtype of the features and summed in float64. `gather` adds up
    those of several processes.

    Args:
        features: K, entries of f.
        outputs: N, entries of e.
        with_bias: whether there is a c; it is not drawn to zero.
        device: where the sums are.
    """

    def __init__(self, features: int, outputs: int, with_bias: bool, device: torch.device) -> None:
        like = torch.zeros(0, dtype=torch.float64, device=device)
        self.features, self.with_bias, self.count = features, with_bias, 0
        self.gram = like.new_zeros(features, features)
        self.feature_sum = like.new_zeros(features)
        self.product = like.new_zeros(features, outputs)
        self.error_sum = like.new_zeros(outputs)

    def add(self, features: Tensor, errors: Tensor) -> None:
        """Take in examples: features `[M, K]`, errors `[M, N]`."""
        features, errors = features.float(), errors.float()
        self.count += len(features)
        self.gram += features.T @ features  # without a copy in float64
        self.product += features.T @ errors
        self.feature_sum += features.sum(0, dtype=torch.float64)
        self.error_sum += errors.sum(0, dtype=torch.float64)

    def gather(self) -> None:
        """Add up what all processes took in."""
        for sums in (self.gram, self.feature_sum, self.product, self.error_sum):
            summed(sums)
        self.count = int(total(self.count))

    def damped(self, ridge: float) -> Tensor:
        """F^T F, of centred features where there is a bias, with the ridge: `[K, K]`, float64. In
        its norm the solutions of a constrained problem are those nearest to that of `solve`.

        Raises MethodError for sums that are not finite.
        """
        for sums in (self.gram, self.product):
            if not bool(torch.isfinite(sums).all()):
                raise MethodError(
                    "expected finite activations to re-fit by, got NaN or infinity: the data or "
                    "the weights hold some"
                )
        gram = self.gram.clone()
        if self.with_bias:
            mean = self.feature_sum / max(self.count, 1)
            gram.addr_(mean, mean, alpha=-self.count)
        size = self.gram.diagonal().sum() / max(self.features, 1)
        gram.diagonal().add_(ridge * size)
        return gram

    def solve(self, ridge: float) -> Tensor:
        """The correction D `[N, K]` of the weight, in float64.

        Raises MethodError for sums that are not finite, and for a system that has no one solution,
        as one without a ridge may.
        """
        factor, failed = torch.linalg.cholesky_ex(self.damped(ridge))
        product = self.product
        if self.with_bias:  # solved for by centring: c takes what is left of the means
            mean = self.feature_sum / max(self.count, 1)
            product = product - mean[:, None] * self.error_sum
        if not bool(self.gram.diagonal().any()):  # no features, or nothing but zeros
            return torch.zeros_like(product).T
        if int(failed):
            raise MethodError(
                f"expected features that do not depend on each other, or a ridge above {ridge}"
            )
        return torch.cholesky_solve(product, factor).T

    def bias(self, weight: Tensor) -> Tensor:
        """The best c `[N]` beside the correction `weight` `[N, K]`, float64; zero where there is
        none."""
        if not self.with_bias:
            return torch.zeros_like(self.error_sum)
        count = max(self.count, 1)
        return self.error_sum / count - weight @ (self.feature_sum / count)
