"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.epilogue import finish
from secateurs.ops.block_sparse_linear.operands import Operands


def block_sparse_linear(operands: Operands) -> Tensor:
    """Compute the operation with the weight made dense."""
    x, values, indptr, indices, out_features, bias, *_ = operands
    weight = _dense(values, indptr, indices, out_features, x.shape[-1])
    return finish(operands, F.linear(x, weight, bias))


def _dense(values: Tensor, indptr: Tensor, indices: Tensor, n: int, k: int) -> Tensor:
    if values.dim() == 4:
        values = values.transpose(2, 3).flatten(1, 2)
    nnz, bk, bn = values.shape
    rows, columns = indptr.shape[0] - 1, -(-k // max(bk, 1))
    place = row_of_block(indptr[1:], nnz) * columns + indices
    grid = values.new_zeros(rows * columns, bk * bn)
    grid = grid.scatter(0, place[:, None].expand(nnz, bk * bn), values.flatten(1))
    grid = grid.view(rows, columns, bk, bn).permute(0, 3, 1, 2)
    return grid.reshape(rows * bn, columns * bk)[:n, :k]


def row_of_block(ends: Tensor, blocks: int) -> Tensor:
    """Return int64 `[blocks]`, the row of each where row r ends before block `ends[r]`, in
    operations that every exporter knows."""
    steps = torch.zeros(blocks + 1, dtype=torch.int64, device=ends.device)
    ends = ends.long()
    return steps.scatter_add(0, ends, torch.ones_like(ends)).cumsum(0)[:blocks]


BACKEND = Backend("reference", refuse=lambda _: None, run=block_sparse_linear)
