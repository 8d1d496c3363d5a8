"""float16, bfloat16 and float32 on NVIDIA GPUs by our own kernel (csrc/cuda/add_norm.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend

DTYPES = (*cuda.DTYPES, torch.float32)


def _refuse(x: Tensor, *_: object) -> str | None:
    if reason := cuda.refuse(x, DTYPES):
        return reason
    widest = cuda.kernels().widest_norm
    if x.shape[-1] > widest:
        return f"it takes rows of at most {widest}, got {x.shape[-1]}"
    return None


def _run(
    x: Tensor,  # [..., D]
    residual: Tensor | None,  # [..., D]
    weight: Tensor,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    rms: bool,
    keep_sum: bool,
) -> Tensor:
    out = x.new_empty((2, *x.shape) if keep_sum else x.shape)
    if not out.numel():
        return out
    total, y = out if keep_sum else (None, out)
    kept = [None if t is None else t.contiguous() for t in (x, residual, weight, bias)]
    width = x.shape[-1]
    arrays = tuple(map(cuda.address, (*kept, total, y)))
    cuda.kernels().add_norm(
        cuda.place(x), cuda.dtype(x), arrays, eps, rms, x.numel() // width, width
    )
    return out


BACKEND = Backend("cuda", _refuse, _run)
