"""float32 and bfloat16 on the CPU by our own kernels
(csrc/cpu/kernels/linear/int8_vector_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous, rows_of
from secateurs.ops.int8_vector_linear.operands import Operands
from secateurs.ops.pattern_linear.cpu import VECTORS


def _refuse(operands: Operands) -> str | None:
    if (reason := cpu.refuse(operands.x)) is not None:
        return reason
    if operands.values.shape[1] not in VECTORS:
        return (
            "takes 16, 32, 64 or 128 outputs that keep the same inputs, got "
            f"{operands.values.shape[1]}"
        )
    if not all(t.is_contiguous() for t in operands[1:6]):
        return "takes contiguous values, scales, places, indptr and starts"
    return None


def _run(operands: Operands) -> Tensor:
    x, values, scales, places, indptr, starts, bias, activation, multiplier, residual = operands
    y = operands.new_output()
    x, bias = rows_of(x), contiguous(bias)
    m, k = x.shape
    multiplier, multiplier_start, multiplier_stride = cpu.prepared_rows(multiplier)
    residual, residual_start, residual_stride = cpu.prepared_rows(residual)
    n, v = scales.shape[0], values.shape[1]
    cpu.kernels.int8_vector_linear(
        isa=cpu.isa_number(),
        dtype=cpu.DTYPES[x.dtype],
        x=x.data_ptr(),
        x_stride=x.stride(0),
        m=m,
        n=n,
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
        places=places.data_ptr(),
        indptr=indptr.data_ptr(),
        starts=starts.data_ptr(),
        groups=n // v,
        v=v,
    )
    return y


BACKEND = Backend("cpu", _refuse, _run)
