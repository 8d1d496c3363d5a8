"""y = act(x W^T + bias) * multiplier + residual, with W stored as the blocks that are kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.epilogue import check_inputs
from secateurs.ops._core.gpu import prefer_for_linear, triton_backend
from secateurs.ops._core.register import register
from secateurs.ops.block_sparse_linear import cpu, cuda, reference
from secateurs.ops.block_sparse_linear.operands import Operands, check, flops


class Weight(Protocol):
    """A weight `[N, K]` as the blocks that are kept, as `secateurs.formats.BlockSparseWeight`
    describes."""

    @property
    def values(self) -> Tensor:
        """`[nnz, bk, bn]`, or in pairs of inputs `[nnz, bk / 2, bn, 2]`."""

    @property
    def indptr(self) -> Tensor:
        """int32 `[rows + 1]`."""

    @property
    def indices(self) -> Tensor:
        """int32 `[nnz]`."""

    @property
    def shape(self) -> tuple[int, int]: ...


def block_sparse_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute act(x W^T + bias) * multiplier + residual, shape `[..., N]`.

    Only stored blocks are multiplied: an infinity or NaN in `x` does not pass through a block that
    was pruned.

    Args:
        x: `[..., K]`.
        weight: block-sparse `[N, K]`, or dense in the same format (one block per block row). Its
            indices are trusted: validate them where they are made.
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
    packed = (weight.values, weight.indptr, weight.indices, weight.shape[0])
    return Operands(x, *packed, bias, activation, multiplier, residual)


def read_in_pairs(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a device's kernels want weights in pairs of inputs."""
    return torch.device(device).type == "cpu" and cpu.reads_pairs(dtype)


OP = Op(
    "block_sparse_linear",
    check,
    cuda.BACKEND,
    triton_backend("block_sparse_linear"),
    cpu.BACKEND,
    reference.BACKEND,
    prefer=prefer_for_linear,
)
_call = register(OP, Operands, reference.block_sparse_linear, flops)
