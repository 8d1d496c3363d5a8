"""y = act(x W^T + bias) * gate + residual, with W stored as the blocks that are kept."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.epilogue import check_epilogue, check_inputs
from secateurs.ops._core.gpu import triton_backend
from secateurs.ops._core.register import register
from secateurs.ops.block_sparse_linear import cpu, cuda, reference


class Weight(Protocol):
    """A weight `[N, K]` as the blocks that are kept, as `secateurs.formats.BlockSparseWeight`
    describes."""

    values: Tensor  # [nnz, bk, bn], or in pairs of inputs [nnz, bk / 2, bn, 2]
    indptr: Tensor  # int32 [rows + 1]
    indices: Tensor  # int32 [nnz]
    shape: tuple[int, int]


def block_sparse_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x W^T + bias) * gate + residual, shape `[..., N]`.

    Only stored blocks are multiplied: an infinity or NaN in `x` does not pass through a block that
    was pruned.

    Args:
        x: `[..., K]`.
        weight: block-sparse `[N, K]`, or dense in the same format (one block per block row). Its
            indices are trusted: validate them where they are made.
        bias: `[N]`.
        activation: one of `ACTIVATIONS`; "gelu" is the exact one, by erf.
        gate: `[..., N]`, multiplies what the activation returns.
        residual: `[..., N]`, added last.

    Raises:
        OperandError: the tensors do not fit together, or the activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(*arguments(x, weight, bias, activation, gate, residual))


def arguments(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Any, ...]:
    """The same call in the order of the schema."""
    check_inputs(x, weight.shape)
    packed = (weight.values, weight.indptr, weight.indices, weight.shape[0])
    return (x, *packed, bias, activation, gate, residual)


def check(
    x: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    out_features: int,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    if x.dim() < 1:
        raise OperandError("expected x [..., K], got a single number")
    check_weight(x.shape[-1], values, indptr, indices, out_features)
    check_epilogue(x, out_features, values, (indptr, indices), bias, activation, gate, residual)


def check_weight(
    k: int, values: Tensor, indptr: Tensor, indices: Tensor, out_features: int
) -> None:
    """Raise OperandError unless the tensors make a weight of `out_features` by `k`."""
    paired = values.dim() == 4 and values.shape[3] == 2
    if not (paired or values.dim() == 3) or indptr.dim() != 1 or indices.dim() != 1:
        raise OperandError(
            "expected values [nnz, bk, bn] or [nnz, bk / 2, bn, 2], indptr [rows + 1] and indices "
            f"[nnz], got shapes {[tuple(t.shape) for t in (values, indptr, indices)]}"
        )
    rows = indptr.shape[0] - 1
    nnz, bk, bn = values.shape[0], values.shape[1] * (2 if paired else 1), values.shape[2]
    if indices.shape[0] != nnz:
        raise OperandError(
            f"expected one block column for each of {nnz} blocks, got {len(indices)}"
        )
    if not max(rows - 1, 0) * bn < max(out_features, 1) <= max(rows * bn, 1):
        raise OperandError(
            f"expected between {max(rows - 1, 0) * bn + 1} and {rows * bn} outputs "
            f"from {rows} block rows of {bn}, got {out_features}"
        )
    grown = paired and bk > k  # a block of all inputs and zeros behind them
    if not grown and (k % bk if bk else k):
        raise OperandError(
            f"expected x [..., K] with K a multiple of the block's {bk}, got K = {k}"
        )
    if indptr.dtype != torch.int32 or indices.dtype != torch.int32:
        raise OperandError(f"expected int32 indices, got {indptr.dtype} and {indices.dtype}")


def flops(
    x: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    out_features: int,
    *_: object,
) -> int:
    return 2 * x.shape[:-1].numel() * stored(x.shape[-1], values, out_features)


def stored(k: int, values: Tensor, out_features: int) -> int:
    """How many entries of a weight of `out_features` by `k` its blocks hold."""
    if values.shape[1] * (values.shape[3] if values.dim() == 4 else 1) < k:
        return values.numel()
    # Blocks of all inputs, the last of which may be filled up with zeros.
    return k * min(values.shape[0] * values.shape[2], out_features)


def read_in_pairs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device's kernels want weights in pairs of inputs."""
    return torch.device(device).type == "cpu" and cpu.reads_pairs(dtype)


OP = Op(
    "block_sparse_linear",
    check,
    cuda.BACKEND,
    triton_backend("block_sparse_linear"),
    cpu.BACKEND,
    reference.BACKEND,
)
_call = register(
    OP,
    "(Tensor x, Tensor values, Tensor indptr, Tensor indices, int out_features, Tensor? bias, "
    "str activation, Tensor? gate, Tensor? residual) -> Tensor",
    lambda x, values, indptr, indices, n, *_: x.new_empty((*x.shape[:-1], n)),
    reference.block_sparse_linear,
    flops,
)
