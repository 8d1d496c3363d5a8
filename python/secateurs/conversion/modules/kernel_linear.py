"""What linears that are packed for our kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from secateurs import ops
from secateurs.conversion.modules.part import Part


class KernelLinear(Part):
    """A linear whose weight `[N, K]` one of our operations multiplies.

    A subclass names the operation, holds `values`, `bias`, `shape` and `activation`, and gives the
    packed weight as `weight`.
    """

    operation: ClassVar[Callable[..., Tensor]]
    weight: Any

    def dense(self) -> Tensor:
        """The weight `[N, K]`, zeros where none is stored."""
        return self.weight.to_dense()

    def choice(self) -> ops.Choice:
        """Which backend would run this where it is, and why not the others."""
        x = self.values.new_empty(1, self.shape[1], dtype=self.dtype)
        return ops.explain_choice(type(self).operation, x, self.weight, self.bias, self.activation)

    def refusal(self) -> str | None:
        """Why none of our kernels would run this where it is, if so."""
        return self.choice().why_no_kernel()
