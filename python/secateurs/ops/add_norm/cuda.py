"""float16, bfloat16 and float32 on NVIDIA GPUs by our own kernel (csrc/cuda/add_norm.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous
from secateurs.ops.add_norm.operands import Operands

DTYPES = (*cuda.DTYPES, torch.float32)


def _refuse(operands: Operands) -> str | None:
    x = operands.x
    if reason := cuda.refuse(x, DTYPES):
        return reason
    widest = cuda.kernels().widest_norm
    if x.shape[-1] > widest:
        return f"it takes rows of at most {widest}, got {x.shape[-1]}"
    return None


def _run(operands: Operands) -> Tensor:
    out = operands.new_output()
    if not out.numel():
        return out
    total, y = out if operands.keep_sum else (None, out)
    x, weight = operands.x.contiguous(), operands.weight.contiguous()
    residual, bias = contiguous(operands.residual), contiguous(operands.bias)
    width = x.shape[-1]
    cuda.kernels().add_norm(
        **cuda.launch(x),
        x=x.data_ptr(),
        residual=address(residual),
        weight=weight.data_ptr(),
        bias=address(bias),
        eps=operands.eps,
        rms=operands.rms,
        sum=address(total),
        y=address(y),
        rows=x.numel() // width,
        width=width,
    )
    return out


BACKEND = Backend("cuda", _refuse, _run)
