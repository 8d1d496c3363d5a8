"""y = act(x W^T + bias) * multiplier + residual, with W regular in its zeros: vector N:M, or a
library of block patterns."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.epilogue import check_inputs
from secateurs.ops._core.gpu import prefer_for_linear, triton_backend
from secateurs.ops._core.register import register
from secateurs.ops.pattern_linear import cpu, cuda, reference
from secateurs.ops.pattern_linear.operands import Operands, check, flops


class Vector(Protocol):
    """A weight as `secateurs.formats.VectorWeight` describes it."""

    @property
    def values(self) -> Tensor: ...  # [N / v, kept, v], or [N / v, ceil(kept / s), v, s]
    @property
    def columns(self) -> Tensor: ...  # int32 [N / v, kept]
    @property
    def places(self) -> Tensor | None: ...  # of 2:4, int32 [N / 16, K / 32, 8, 2]
    @property
    def shape(self) -> tuple[int, int]: ...


class Library(Protocol):
    """A weight as `secateurs.formats.LibraryWeight` describes it."""

    @property
    def values(self) -> Tensor: ...  # [N / p, K / q, ones]
    @property
    def codes(self) -> Tensor: ...  # uint8 [N / p, K / q]
    @property
    def library(self) -> Tensor: ...  # bool [L, p, q]
    @property
    def shape(self) -> tuple[int, int]: ...


def pattern_linear(
    x: Tensor,
    weight: Vector | Library,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute act(x W^T + bias) * multiplier + residual, shape `[..., N]`.

    A kernel for a vector weight multiplies what is stored alone: an infinity or NaN in `x` does not
    pass through a pruned entry. It does pass through a library's blocks, and through the reference,
    which expand the weight.

    Args:
        x: `[..., K]`.
        weight: its indices are trusted: validate them where they are made.
        bias: `[N]`.
        activation: one of `ACTIVATIONS`.
        multiplier: `[..., N]`, multiplies what the activation returns.
        residual: `[..., N]`, added last.

    Raises:
        OperandError: the tensors do not fit together, or the activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(arguments(x, weight, bias, activation, multiplier, residual))


def arguments(
    x: Tensor,
    weight: Any,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Operands:
    """Return the operands of the same call."""
    check_inputs(x, weight.shape)
    library = getattr(weight, "library", None)
    if library is not None:
        index = weight.codes
    elif (index := getattr(weight, "places", None)) is None:
        index = weight.columns
    return Operands(x, weight.values, index, library, bias, activation, multiplier, residual)


def inputs_together(device: torch.device, dtype: torch.dtype) -> int:
    """Return how many inputs of an output a device's kernels want side by side in a
    `VectorWeight`."""
    return cpu.inputs_together(dtype) if torch.device(device).type == "cpu" else 1


def sparse_tensor_cores(device: torch.device, shape: tuple[int, int]) -> bool:
    """Tell whether a device's kernels want a 2:4 weight `[N, K]` as a `VectorWeight` of single
    outputs rather than as a library, which they take for few rows of `x` only."""
    return torch.device(device).type == "cuda" and cuda.takes_two_four(*shape)


OP = Op(
    "pattern_linear",
    check,
    cuda.BACKEND,
    triton_backend("pattern_linear"),
    cpu.BACKEND,
    reference.BACKEND,
    prefer=prefer_for_linear,
)
_call = register(OP, Operands, reference.pattern_linear, flops)
