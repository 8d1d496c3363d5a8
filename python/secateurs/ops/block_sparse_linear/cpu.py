"""float32 and bfloat16 on the CPU by our own kernels
(csrc/cpu/kernels/linear/block_sparse_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops.block_sparse_linear.operands import Operands

WIDTHS = (16, 32, 64)


def _refuse(operands: Operands) -> str | None:
    x, values, indptr, indices, *_ = operands
    return cpu.refuse(x) or refuse_weight(x, values, indptr, indices)


def reads_pairs(dtype: torch.dtype) -> bool:
    """Tell whether weights are read in pairs of inputs."""
    return dtype == torch.bfloat16


def refuse_weight(x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor) -> str | None:
    """Tell why the kernels would not multiply `x`, of a dtype they take, by this weight."""
    if (values.dim() == 4) != reads_pairs(x.dtype):
        return "takes bfloat16 weights in pairs of inputs, float32 ones input by input"
    if values.shape[2] not in WIDTHS:
        return f"takes blocks of 16, 32 or 64 outputs, got {values.shape[2]}"
    if not (values.is_contiguous() and indptr.is_contiguous() and indices.is_contiguous()):
        return "takes contiguous values, indptr and indices"
    return None


def _run(operands: Operands) -> Tensor:
    _, values, indptr, indices, out_features, *_ = operands
    rows, bk, bn = block_rows(values, indptr)
    return cpu.run_linear(
        cpu.kernels.block_sparse_linear,
        operands,
        out_features,
        values=values.data_ptr(),
        indptr=indptr.data_ptr(),
        indices=indices.data_ptr(),
        rows=rows,
        bk=bk,
        bn=bn,
    )


def block_rows(values: Tensor, indptr: Tensor) -> tuple[int, int, int]:
    """Return the number of rows of blocks, and the inputs and the outputs of a block."""
    _, bk, bn, *pair = values.shape
    return indptr.shape[0] - 1, bk * 2 if pair else bk, bn


BACKEND = Backend("cpu", _refuse, _run)
