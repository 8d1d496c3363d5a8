"""y = act(x W^T + bias) * multiplier + residual, with W in codes of 8 bits, as the blocks that are
kept, and x rounded to such codes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.epilogue import check_inputs
from secateurs.ops._core.register import register
from secateurs.ops.int8_linear import cpu, reference
from secateurs.ops.int8_linear.operands import Operands, check, flops


class Weight(Protocol):
    """A weight `[N, K]` in codes, as `secateurs.formats.Int8Weight` describes."""

    @property
    def values(self) -> Tensor:
        """uint8 `[nnz, bk / 4, bn, 4]`."""

    @property
    def indptr(self) -> Tensor:
        """int32 `[rows + 1]`."""

    @property
    def indices(self) -> Tensor:
        """int32 `[nnz]`."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def scales(self) -> Tensor:
        """float32 `[N]`."""


def int8_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute act(x' W^T + bias) * multiplier + residual, shape `[..., N]`, of x' near `x`.

    Each 64 neighbouring inputs of a row of `x` are rounded to whole multiples, -127 .. 127, of a
    scale of their own: their largest magnitude over 127. Their products with the codes of the
    weight are summed exactly, on every instruction set alike. These sums, times the scale of their
    group, are added up in float32 from the first group on; the total times the scale of the output
    is x' W^T.

    Every output that multiplies any of 64 inputs with NaN or infinity among them is NaN. Groups
    whose largest magnitude is below 1.5e-36 count as zero, and sums of codes overflow from
    magnitudes of about 1e36 / K on. Gradients are those of the product without rounding of `x`.

    Args:
        x: `[..., K]`.
        weight: `[N, K]`, dense or block-sparse. Its indices are trusted: validate them where they
            are made.
        bias: `[N]`.
        activation: one of `ACTIVATIONS`; "gelu" is the exact one, by erf.
        multiplier: `[..., N]`, multiplies what the activation returns.
        residual: `[..., N]`, added last.

    Raises:
        OperandError: the tensors do not fit together, or the activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(arguments(x, weight, bias, activation, multiplier, residual))


def arguments(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Operands:
    """Return the operands of the same call."""
    check_inputs(x, weight.shape)
    packed = (weight.values, weight.scales, weight.indptr, weight.indices)
    return Operands(x, *packed, bias, activation, multiplier, residual)


OP = Op("int8_linear", check, cpu.BACKEND, reference.BACKEND)
_call = register(OP, Operands, reference.int8_linear, flops)
