"""The operands of `int8_linear`, and whether they fit together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.epilogue import check_epilogue

GROUP = 64  # inputs of a row of x that share a scale


class Operands(NamedTuple):
    """One call of `int8_linear`, in the order of its schema."""

    x: Tensor  # [..., K]
    values: Tensor  # uint8 [nnz, bk / 4, bn, 4]
    scales: Tensor  # float32 [N]
    indptr: Tensor  # int32 [rows + 1]
    indices: Tensor  # int32 [nnz]
    bias: Tensor | None  # [N]
    activation: str
    multiplier: Tensor | None  # [..., N]
    residual: Tensor | None  # [..., N]

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[..., N]`."""
        return self.x.new_empty((*self.x.shape[:-1], self.scales.shape[0]))


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    x, values, scales, indptr, indices, *_ = operands
    if x.dim() < 1:
        raise OperandError("expected x [..., K], got a single number")
    check_weight(x.shape[-1], values, scales, indptr, indices)
    check_epilogue(operands, scales.shape[0], None, (values, scales, indptr, indices))


def check_weight(k: int, values: Tensor, scales: Tensor, indptr: Tensor, indices: Tensor) -> None:
    """Raise OperandError unless the tensors make a weight of codes of `k` inputs."""
    shapes = [tuple(t.shape) for t in (values, scales, indptr, indices)]
    if [len(shape) for shape in shapes] != [4, 1, 1, 1] or shapes[0][3] != 4:
        raise OperandError(
            "expected values [nnz, bk / 4, bn, 4], scales [N], indptr [rows + 1] and indices [nnz],"
            f" got shapes {shapes}"
        )
    if values.dtype != torch.uint8 or scales.dtype != torch.float32:
        raise OperandError(
            f"expected values of uint8 and scales of float32, got {values.dtype} and {scales.dtype}"
        )
    if indptr.dtype != torch.int32 or indices.dtype != torch.int32:
        raise OperandError(f"expected int32 indices, got {indptr.dtype} and {indices.dtype}")
    (n,), rows = scales.shape, indptr.shape[0] - 1
    nnz, bk, bn = values.shape[0], 4 * values.shape[1], values.shape[2]
    if indices.shape[0] != nnz:
        raise OperandError(
            f"expected one block column for each of {nnz} blocks, got {len(indices)}"
        )
    if not max(rows - 1, 0) * bn < max(n, 1) <= max(rows * bn, 1):
        raise OperandError(
            f"expected between {max(rows - 1, 0) * bn + 1} and {rows * bn} scales "
            f"from {rows} block rows of {bn}, got {n}"
        )
    whole = bk >= k  # a block of all inputs, and zeros behind them
    if bk % 32 or (not whole and (k % bk or (bk != 32 and bk % GROUP))):
        raise OperandError(
            f"expected blocks of 32 inputs, a multiple of {GROUP} or all {k} filled up to a "
            f"multiple of 32, that divide K = {k}, got {bk}"
        )


def flops(operands: Operands) -> int:
    """Count the operations of a call: two for each row of x and each stored entry."""
    x, entries = operands.x, stored(operands.x.shape[-1], operands.values, len(operands.scales))
    return 2 * x.shape[:-1].numel() * entries


def stored(k: int, values: Tensor, out_features: int) -> int:
    """Count the entries of a weight of `out_features` by `k` that its blocks hold."""
    nnz, quads, bn, _ = values.shape
    return values.numel() if 4 * quads < k else k * min(nnz * bn, out_features)
