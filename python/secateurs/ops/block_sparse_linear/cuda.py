"""float16 and bfloat16 on NVIDIA GPUs by our own kernels (csrc/cuda/stacked_linear)."""

from __future__ import annotations

from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import aligned_rows_of
from secateurs.ops.block_sparse_linear.operands import Operands

BLOCKS = (16, 32, 64, 128)


def _refuse(operands: Operands) -> str | None:
    x, values, indptr, indices, *_ = operands
    if values.dim() != 3:
        return "it takes weights input by input, got pairs of inputs"
    _, bk, bn = values.shape
    if bn not in BLOCKS or bk not in BLOCKS:
        return f"it takes blocks of 16, 32, 64 or 128 by the same, got {(bn, bk)}"
    if not (indptr.is_contiguous() and indices.is_contiguous()):
        return "it takes contiguous indptr and indices"
    return cuda.refuse(x) or cuda.refuse_unaligned(values=values)


def _run(operands: Operands) -> Tensor:
    x, values, indptr, indices, *_ = operands
    y = operands.new_output()
    if not y.numel():
        return y
    blocks, bk, bn = values.shape
    sizes = {"rows": indptr.shape[0] - 1, "blocks": blocks, "bn": bn, "bk": bk, "k": x.shape[-1]}
    x = aligned_rows_of(x)
    cuda.run_stacks("block_sparse_linear", x, values, indptr, indices, sizes, operands, y)
    return y


BACKEND = Backend("cuda", _refuse, _run)
