"""float32 and bfloat16 on the CPU by our own kernel (csrc/cpu/body/add_norm.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend


def _refuse(x: Tensor, *_: object) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, got tensors on {x.device}"
    if x.dtype not in cpu.DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}"
    return None


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    rms: bool,
    keep_sum: bool,
) -> Tensor:
    out = x.new_empty((2, *x.shape) if keep_sum else x.shape)
    rows = cpu.matrix(x)
    m, d = rows.shape
    residual = None if residual is None else cpu.matrix(residual)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = out.data_ptr() + (m * d * x.element_size() if keep_sum else 0)
    _C_cpu.add_norm(
        cpu.isa_number(),
        cpu.DTYPES[x.dtype],
        rows.data_ptr(),
        rows.stride(0),
        m,
        d,
        cpu.address(residual),
        0 if residual is None else residual.stride(0),
        weight.data_ptr(),
        cpu.address(bias),
        eps,
        rms,
        out.data_ptr() if keep_sum else 0,
        y,
        torch.get_num_threads(),
    )
    return out


BACKEND = Backend("cpu", _refuse, _run)
