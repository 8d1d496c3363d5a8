"""float32 and bfloat16 on the CPU by our own kernel (csrc/cpu/kernels/norm/add_norm.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous, rows_of
from secateurs.ops.add_norm.operands import Operands


def _refuse(operands: Operands) -> str | None:
    return cpu.refuse(operands.x)


def _run(operands: Operands) -> Tensor:
    x, residual, weight, bias, eps, rms, keep_sum = operands
    out = operands.new_output()
    rows = rows_of(x)
    m, d = rows.shape
    residual, residual_start, residual_stride = cpu.prepared_rows(residual)
    weight, bias = weight.contiguous(), contiguous(bias)
    start = out.data_ptr()
    cpu.kernels.add_norm(
        isa=cpu.isa_number(),
        dtype=cpu.DTYPES[x.dtype],
        x=rows.data_ptr(),
        x_stride=rows.stride(0),
        m=m,
        d=d,
        residual=residual_start,
        residual_stride=residual_stride,
        weight=weight.data_ptr(),
        bias=address(bias),
        eps=eps,
        rms=rms,
        sum=start if keep_sum else 0,
        y=start + (m * d * x.element_size() if keep_sum else 0),
        threads=torch.get_num_threads(),
    )
    return out


BACKEND = Backend("cpu", _refuse, _run)
