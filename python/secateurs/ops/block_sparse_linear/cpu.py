"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/body/block_sparse_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.epilogue import ACTIVATIONS

WIDTHS = (16, 32, 64)
# As Activation in csrc/cpu/kernels.h.
ACTIVATION_NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}


def _refuse(x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, *_: object) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, got tensors on {x.device}"
    return refuse_weight(x, values, indptr, indices)


def reads_pairs(dtype: torch.dtype) -> bool:
    """Whether weights are read in pairs of inputs."""
    return dtype == torch.bfloat16


def refuse_weight(x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor) -> str | None:
    """Why the kernels would not multiply `x` by this weight, if so."""
    if x.dtype not in cpu.DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}"
    if (values.dim() == 4) != reads_pairs(x.dtype):
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
    rows, bk, bn = block_rows(values, indptr)
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
        rows,
        bk,
        bn,
        cpu.address(bias),
        ACTIVATION_NUMBER[activation],
        cpu.address(gate),
        0 if gate is None else gate.stride(0),
        cpu.address(residual),
        0 if residual is None else residual.stride(0),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def block_rows(values: Tensor, indptr: Tensor) -> tuple[int, int, int]:
    """How many rows of blocks, and inputs and outputs of a block."""
    _, bk, bn, *pair = values.shape
    return indptr.shape[0] - 1, bk * 2 if pair else bk, bn


BACKEND = Backend("cpu", _refuse, _run)
