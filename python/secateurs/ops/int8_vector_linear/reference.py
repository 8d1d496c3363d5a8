"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._core.dispatch import Backend
from secateurs.ops.block_sparse_linear.reference import row_of_block
from secateurs.ops.int8_linear.operands import GROUP
from secateurs.ops.int8_linear.reference import product_of_codes
from secateurs.ops.int8_vector_linear.operands import Operands


def int8_vector_linear(operands: Operands) -> Tensor:
    """Compute the operation with the weight made dense, group by group."""
    indptr, k = operands.indptr, operands.x.shape[-1]
    n, v = len(operands.scales), operands.values.shape[1]
    kept = (indptr.diff() > 0).view(n // v, -1)
    stored = kept.repeat_interleave(v, 0).repeat_interleave(GROUP, 1)[:, :k]
    codes = dense_codes(operands.values, operands.places, indptr, k)
    return product_of_codes(operands, stored, codes)


def dense_codes(values: Tensor, places: Tensor, indptr: Tensor, k: int) -> Tensor:
    """The codes `[N, K]` as int16, zeros where nothing is kept."""
    words, v, _ = values.shape
    groups, pairs = -(-k // GROUP), len(indptr) - 1
    pair = row_of_block(indptr[1:], words)
    place = (pair[:, None] * GROUP + places).flatten()
    rows = values.transpose(1, 2).reshape(4 * words, v).to(torch.int16)
    inputs = values.new_zeros(pairs * GROUP, v, dtype=torch.int16).index_add(0, place, rows)
    inputs = inputs.view(pairs // max(1, groups), groups * GROUP, v)[:, :k]
    return inputs.transpose(1, 2).reshape(-1, k)


BACKEND = Backend("reference", refuse=lambda _: None, run=int8_vector_linear)
