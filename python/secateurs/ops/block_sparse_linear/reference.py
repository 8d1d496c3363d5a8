"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.epilogue import ACTIVATIONS


def block_sparse_linear(
    x: Tensor,  # [..., K]
    values: Tensor,  # [nnz, bk, bn] or [nnz, bk / 2, bn, 2]
    indptr: Tensor,  # [rows + 1]
    indices: Tensor,  # [nnz]
    out_features: int,
    bias: Tensor | None,  # [N]
    activation: str,
    gate: Tensor | None,  # [..., N]
    residual: Tensor | None,  # [..., N]
) -> Tensor:
    weight = _dense(values, indptr, indices, out_features, x.shape[-1])
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    y = y if gate is None else y * gate
    y = y if residual is None else y + residual
    # Every backend returns a fresh, contiguous output, as the fake kernel promises.
    return y.contiguous()


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
    """int64 `[blocks]`, the row of each where row r ends before block `ends[r]`: in operations that
    every exporter knows."""
    steps = torch.zeros(blocks + 1, dtype=torch.int64, device=ends.device)
    ends = ends.long()
    return steps.scatter_add(0, ends, torch.ones_like(ends)).cumsum(0)[:blocks]


BACKEND = Backend("reference", refuse=lambda *_: None, run=block_sparse_linear)
