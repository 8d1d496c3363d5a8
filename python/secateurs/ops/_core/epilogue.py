"""What every linear operation takes beside its weight: y = act(x W^T + bias) * gate + residual."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


def check_epilogue(
    x: Tensor,  # [..., K]
    n: int,
    values: Tensor,
    indices: tuple[Tensor | None, ...],
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit `n` outputs and share the dtype
    and device of `x`, as must what stores the weight: `values`, and on its device `indices`."""
    if activation not in ACTIVATIONS:
        raise OperandError(
            f"expected an activation among {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    if bias is not None and tuple(bias.shape) != (n,):
        raise OperandError(f"expected a bias of shape {(n,)}, got {tuple(bias.shape)}")
    output = (*x.shape[:-1], n)
    for name, tensor in (("gate", gate), ("residual", residual)):
        if tensor is not None and tuple(tensor.shape) != output:
            raise OperandError(f"expected a {name} of shape {output}, got {tuple(tensor.shape)}")
    for name, tensor in (
        ("values", values),
        ("bias", bias),
        ("gate", gate),
        ("residual", residual),
    ):
        if tensor is not None and tensor.dtype != x.dtype:
            raise OperandError(f"expected {name} in the dtype of x, {x.dtype}, got {tensor.dtype}")
    for tensor in (values, *indices, bias, gate, residual):
        if tensor is not None and tensor.device != x.device:
            raise OperandError(
                f"expected all tensors on {x.device} like x, got one on {tensor.device}"
            )
