"""float16 and bfloat16 on NVIDIA GPUs by our own kernels (csrc/cuda/stacked_linear.h)."""

from __future__ import annotations

from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend

BLOCKS = (16, 32, 64, 128)


def _refuse(x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, *_: object) -> str | None:
    if values.dim() != 3:
        return "it takes weights input by input, got pairs of inputs"
    _, bk, bn = values.shape
    if bn not in BLOCKS or bk not in BLOCKS:
        return f"it takes blocks of 16, 32, 64 or 128 by the same, got {(bn, bk)}"
    if not (indptr.is_contiguous() and indices.is_contiguous()):
        return "it takes contiguous indptr and indices"
    return cuda.refuse(x) or cuda.refuse_unaligned(values=values)


def _run(
    x: Tensor,  # [..., K]
    values: Tensor,  # [nnz, bk, bn]
    indptr: Tensor,
    indices: Tensor,
    out_features: int,
    *finish: object,
) -> Tensor:
    y = x.new_empty((*x.shape[:-1], out_features))
    if not y.numel():
        return y
    x = cuda.rows_of(x)
    (nnz, bk, bn), rows = values.shape, indptr.shape[0] - 1
    weight = (*map(cuda.address, (values, indptr, indices)), rows, nnz, bn, bk)
    cuda.run_stacks("block_sparse_linear", x, x.stride(0), weight, y, finish)
    return y


BACKEND = Backend("cuda", _refuse, _run)
