"""What every linear operation takes beside its weight: y = act(x W^T + bias) * multiplier +
residual."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from secateurs.errors import OperandError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def check_inputs(x: Tensor, shape: tuple[int, int]) -> None:
    """Raise OperandError unless `x` `[..., K]` has the inputs of a weight of shape `(N, K)`: its
    indices are trusted to name some of them."""
    if x.dim() < 1 or x.shape[-1] != shape[1]:
        raise OperandError(
            f"expected x [..., K] with the weight's K = {shape[1]}, got shape {tuple(x.shape)}"
        )


class Linear(Protocol):
    """What the operand records of all linear operations share."""

    @property
    def x(self) -> Tensor: ...  # [..., K]
    @property
    def bias(self) -> Tensor | None: ...  # [N]
    @property
    def activation(self) -> str: ...
    @property
    def multiplier(self) -> Tensor | None: ...  # [..., N]
    @property
    def residual(self) -> Tensor | None: ...  # [..., N]
    def new_output(self) -> Tensor: ...


def check_epilogue(
    operands: Linear, n: int, values: Tensor | None, others: tuple[Tensor | None, ...]
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit `n` outputs and share the dtype
    and device of `x`, as must what stores the weight: `values`, and on its device `others`."""
    x = operands.x
    bias, multiplier, residual = operands.bias, operands.multiplier, operands.residual
    if operands.activation not in ACTIVATIONS:
        raise OperandError(
            f"expected an activation among {', '.join(ACTIVATIONS)}, got {operands.activation!r}"
        )
    if bias is not None and bias.shape != (n,):
        raise OperandError(f"expected a bias of shape {(n,)}, got {tuple(bias.shape)}")
    dtype, device = x.dtype, x.device
    for name, tensor in (("multiplier", multiplier), ("residual", residual)):
        if tensor is not None and tensor.shape != (*x.shape[:-1], n):
            raise OperandError(
                f"expected a {name} of shape {(*x.shape[:-1], n)}, got {tuple(tensor.shape)}"
            )
    for name, tensor in (
        ("values", values),
        ("bias", bias),
        ("multiplier", multiplier),
        ("residual", residual),
    ):
        if tensor is not None and tensor.dtype != dtype:
            raise OperandError(f"expected {name} in the dtype of x, {dtype}, got {tensor.dtype}")
    for tensor in (values, *others, bias, multiplier, residual):
        if tensor is not None and tensor.device != device:
            raise OperandError(
                f"expected all tensors on {device} like x, got one on {tensor.device}"
            )


def finish(operands: Linear, product: Tensor) -> Tensor:
    """Return act(product) * multiplier + residual in torch's own operations, contiguous as every
    backend returns it and the fake kernel promises; `product` has the bias in it."""
    y = ACTIVATIONS[operands.activation](product)
    y = y if operands.multiplier is None else y * operands.multiplier
    y = y if operands.residual is None else y + operands.residual
    return y.contiguous()
