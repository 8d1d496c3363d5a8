"""The operands of `block_sparse_linear`, and whether they fit together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.epilogue import check_epilogue


class Operands(NamedTuple):
    """One call of `block_sparse_linear`, in the order of its schema."""

    x: Tensor  # [..., K]
    values: Tensor  # [nnz, bk, bn], or in pairs of inputs [nnz, bk / 2, bn, 2]
    indptr: Tensor  # int32 [rows + 1]
    indices: Tensor  # int32 [nnz]
    out_features: int
    bias: Tensor | None  # [N]
    activation: str
    multiplier: Tensor | None  # [..., N]
    residual: Tensor | None  # [..., N]

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[..., N]`."""
        return self.x.new_empty((*self.x.shape[:-1], self.out_features))


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    x, values, indptr, indices, out_features, *_ = operands
    if x.dim() < 1:
        raise OperandError("expected x [..., K], got a single number")
    check_weight(x.shape[-1], values, indptr, indices, out_features)
    check_epilogue(operands, out_features, values, (indptr, indices))


def check_weight(
    k: int, values: Tensor, indptr: Tensor, indices: Tensor, out_features: int
) -> None:
    """Raise OperandError unless the tensors make a weight of `out_features` by `k`."""
    shape = values.shape
    paired = len(shape) == 4 and shape[3] == 2
    if not (paired or len(shape) == 3) or indptr.dim() != 1 or indices.dim() != 1:
        raise OperandError(
            "expected values [nnz, bk, bn] or [nnz, bk / 2, bn, 2], indptr [rows + 1] and indices "
            f"[nnz], got shapes {[tuple(t.shape) for t in (values, indptr, indices)]}"
        )
    rows = indptr.shape[0] - 1
    nnz, bk, bn = shape[0], shape[1] * (2 if paired else 1), shape[2]
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


def flops(operands: Operands) -> int:
    """Count the operations of a call: two for each row of x and each stored entry."""
    x = operands.x
    entries = stored(x.shape[-1], operands.values, operands.out_features)
    return 2 * x.shape[:-1].numel() * entries


def stored(k: int, values: Tensor, out_features: int) -> int:
    """Count the entries of a weight of `out_features` by `k` that its blocks hold."""
    if values.shape[1] * (values.shape[3] if values.dim() == 4 else 1) < k:
        return values.numel()
    # Blocks of all inputs, the last of which may be filled up with zeros.
    return k * min(values.shape[0] * values.shape[2], out_features)
