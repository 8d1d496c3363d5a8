"""What linears that are packed for our kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from secateurs import ops
from secateurs.conversion.modules.part import Linear


class KernelLinear(Linear):
    """A linear whose weight `[N, K]` one of our operations multiplies.

    A subclass names the operation, holds `values`, `bias`, `shape` and `activation`, gives the
    packed weight as `weight`, and is itself what the operation takes for one, with its tensors.
    """

    operation: ClassVar[Callable[..., Tensor]]
    values: Tensor
    shape: tuple[int, int]

    def forward(
        self, x: Tensor, multiplier: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        if self.casts:
            x, multiplier, residual = self.own(x), self.own(multiplier), self.own(residual)
        y: Tensor = self.operation(x, self, self.bias, self.activation, multiplier, residual)
        return y

    def dense(self) -> Tensor:
        dense: Tensor = self.weight.to_dense()
        return dense

    def choice(self) -> ops.Choice:
        """Return which backend would run this on its device, and why the others would not."""
        x = self.values.new_empty(1, self.shape[1], dtype=self.dtype)
        return ops.explain_choice(type(self).operation, x, self.weight, self.bias, self.activation)

    def refusal(self) -> str | None:
        """Why none of our kernels would run this where it is, if so."""
        return self.choice().why_no_kernel()
