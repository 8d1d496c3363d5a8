"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/body/block_sparse_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.ops import cpu
from secateurs.ops._dispatch import Backend
from secateurs.ops._epilogue import ACTIVATIONS

WIDTHS = (16, 32, 64)
_NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}  # as csrc/cpu/kernels.h


def _refuse(x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, *_: object) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, got tensors on {x.device}"
    if x.dtype not in cpu.DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}"
    if (values.dim() == 4) != (x.dtype == torch.bfloat16):
        return "takes bfloat16 weights in pairs of inputs, float32 ones input by input"
    if values.shape[2] not in WIDTHS:
        return f"takes blocks of 16, 32 or 64 outputs, got {values.shape[2]}"
    if not (values.is_contiguous() and indptr.is_contiguous() and indices.is_contiguous()):
        return "takes contiguous values, indptr and indices"
    return None


def _run(
    x: Tensor,
    values: Tensor,
    indptr: Tensor,
    indices: Tensor,
    out_features: int,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    y = x.new_empty((*x.shape[:-1], out_features))
    x = cpu.matrix(x)
    m, k = x.shape
    gate = None if gate is None else cpu.matrix(gate)
    residual = None if residual is None else cpu.matrix(residual)
    bias = None if bias is None else bias.contiguous()
    bk, bn = values.shape[1] * (2 if values.dim() == 4 else 1), values.shape[2]
    _C_cpu.block_sparse_linear(
        cpu.isa_number(),
        cpu.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        m,
        out_features,
        k,
        values.data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        indptr.shape[0] - 1,
        bk,
        bn,
        0 if bias is None else bias.data_ptr(),
        _NUMBER[activation],
        0 if gate is None else gate.data_ptr(),
        0 if gate is None else gate.stride(0),
        0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


BACKEND = Backend("cpu", _refuse, _run)
