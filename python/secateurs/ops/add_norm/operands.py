"""The operands of `add_norm`, and whether they fit together."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from secateurs.errors import OperandError


class Operands(NamedTuple):
    """One call of `add_norm`, in the order of its schema."""

    x: Tensor  # [..., D]
    residual: Tensor | None  # [..., D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [D]
    eps: float
    rms: bool
    keep_sum: bool

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[..., D]`; with `keep_sum` `[2, ..., D]`: the sum, and
        its norm."""
        return self.x.new_empty((2, *self.x.shape) if self.keep_sum else self.x.shape)


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    x, residual, weight, bias, *_ = operands
    if x.dim() < 1:
        raise OperandError(f"expected x [..., D], got shape {tuple(x.shape)}")
    row, dtype, device = tuple(x.shape[-1:]), x.dtype, x.device
    for name, tensor, shape in (
        ("residual", residual, tuple(x.shape)),
        ("weight", weight, row),
        ("bias", bias, row),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise OperandError(f"expected a {name} of shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype:
            raise OperandError(f"expected {name} in the dtype of x, {dtype}, got {tensor.dtype}")
        if tensor.device != device:
            raise OperandError(f"expected {name} on {device} like x, got it on {tensor.device}")
