"""LayerNorm and RMSNorm of x + residual, in one pass."""

from __future__ import annotations

from torch import Tensor

from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.register import register
from secateurs.ops.add_norm import cpu, cuda, reference
from secateurs.ops.add_norm.operands import Operands, check


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    rms: bool = False,
) -> Tensor:
    """Compute norm(x + residual) * weight + bias over the last dimension, shape of `x`.

    The sum and the statistics are float32 (float64 for float64), and the result is rounded once.

    Args:
        x: `[..., D]`.
        residual: `[..., D]`, or None for zeros.
        weight: `[D]`.
        bias: `[D]`.
        eps: added to the variance, or to the mean square.
        rms: RMSNorm, which divides by the root of the mean square, instead of LayerNorm.

    Raises:
        OperandError: the tensors do not fit together.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(arguments(x, residual, weight, bias, eps, rms))


def sum_and_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    rms: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return x + residual, and `add_norm` of the same arguments: a layer with its norm in front
    goes on with both."""
    both = _call(arguments(x, residual, weight, bias, eps, rms, keep_sum=True))
    return both[0], both[1]


def arguments(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    rms: bool = False,
    keep_sum: bool = False,
) -> Operands:
    """Return the operands of the same call."""
    return Operands(x, residual, weight, bias, eps, rms, keep_sum)


OP = Op("add_norm", check, cuda.BACKEND, cpu.BACKEND, reference.BACKEND)
_call = register(OP, Operands, reference.add_norm, lambda _: 0)  # as torch's counter counts norms
