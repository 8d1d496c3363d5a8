"""LayerNorm and RMSNorm of x + residual, in one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.register import register
from secateurs.ops.add_norm import cpu, cuda, reference


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    rms: bool = False,
) -> Tensor:
    """norm(x + residual) * weight + bias over the last dimension, shape of `x`.

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
    return _call(*arguments(x, residual, weight, bias, eps, rms))


def sum_and_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    rms: bool = False,
) -> tuple[Tensor, Tensor]:
    """x + residual, and `add_norm` of the same arguments: what a layer with its norm in front goes
    on with."""
    both = _call(*arguments(x, residual, weight, bias, eps, rms, keep_sum=True))
    return both[0], both[1]


def arguments(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    rms: bool = False,
    keep_sum: bool = False,
) -> tuple[Any, ...]:
    """The same call in the order of the schema."""
    return (x, residual, weight, bias, eps, rms, keep_sum)


def check(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    rms: bool,
    keep_sum: bool,
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    if x.dim() < 1:
        raise OperandError(f"expected x [..., D], got shape {tuple(x.shape)}")
    row = tuple(x.shape[-1:])
    for name, tensor, shape in (
        ("residual", residual, tuple(x.shape)),
        ("weight", weight, row),
        ("bias", bias, row),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise OperandError(f"expected a {name} of shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise OperandError(f"expected {name} in the dtype of x, {x.dtype}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise OperandError(f"expected {name} on {x.device} like x, got it on {tensor.device}")


def _empty(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((2, *x.shape) if rest[-1] else x.shape)


OP = Op("add_norm", check, cuda.BACKEND, cpu.BACKEND, reference.BACKEND)
_call = register(
    OP,
    "(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool rms, bool keep_sum) "
    "-> Tensor",
    _empty,
    reference.add_norm,
    lambda *_: 0,  # as torch's counter counts norms
)
