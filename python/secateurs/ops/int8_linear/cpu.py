"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/kernels/linear/int8_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous, rows_of
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
    x, values, scales, indptr, indices, bias, activation, multiplier, residual = operands
    y = operands.new_output()
    x, bias = rows_of(x), contiguous(bias)
    m, k = x.shape
    multiplier, multiplier_start, multiplier_stride = cpu.prepared_rows(multiplier)
    residual, residual_start, residual_stride = cpu.prepared_rows(residual)
    cpu.kernels.int8_linear(
        isa=cpu.isa_number(),
        dtype=cpu.DTYPES[x.dtype],
        x=x.data_ptr(),
        x_stride=x.stride(0),
        m=m,
        n=scales.shape[0],
        k=k,
        values=values.data_ptr(),
        bias=address(bias),
        activation=cpu.ACTIVATIONS[activation],
        multiplier=multiplier_start,
        multiplier_stride=multiplier_stride,
        residual=residual_start,
        residual_stride=residual_stride,
        y=y.data_ptr(),
        threads=torch.get_num_threads(),
        scales=scales.data_ptr(),
        indptr=indptr.data_ptr(),
        indices=indices.data_ptr(),
        rows=indptr.shape[0] - 1,
        bk=4 * values.shape[1],
        bn=values.shape[2],
    )
    return y


BACKEND = Backend("cpu", _refuse, _run)
