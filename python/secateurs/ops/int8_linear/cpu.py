"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/kernels/linear/int8_linear.h)."""

from __future__ import annotations

from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops.block_sparse_linear.cpu import WIDTHS
from secateurs.ops.int8_linear.operands import Operands


def _refuse(operands: Operands) -> str | None:
    return cpu.refuse(operands.x) or refuse_weight(*operands[1:5])


def refuse_weight(values: Tensor, scales: Tensor, indptr: Tensor, indices: Tensor) -> str | None:
    """Tell why the kernels would not multiply by this weight."""
    if values.shape[2] not in WIDTHS:
        return f"takes blocks of 16, 32 or 64 outputs, got {values.shape[2]}"
    if not all(t.is_contiguous() for t in (values, scales, indptr, indices)):
        return "takes contiguous values, scales, indptr and indices"
    return None


def _run(operands: Operands) -> Tensor:
    _, values, scales, indptr, indices, *_ = operands
    return cpu.run_linear(
        cpu.kernels.int8_linear,
        operands,
        scales.shape[0],
        values=values.data_ptr(),
        scales=scales.data_ptr(),
        indptr=indptr.data_ptr(),
        indices=indices.data_ptr(),
        rows=indptr.shape[0] - 1,
        bk=4 * values.shape[1],
        bn=values.shape[2],
    )


BACKEND = Backend("cpu", _refuse, _run)
