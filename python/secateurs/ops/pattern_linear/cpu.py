"""float32 and bfloat16 on the CPU by our own kernel (csrc/cpu/body/pattern_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.ops import cpu
from secateurs.ops._dispatch import Backend
from secateurs.ops._epilogue import ACTIVATIONS

VECTORS = (16, 32, 64, 128)
_NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}  # as csrc/cpu/kernels.h


def inputs_together(dtype: torch.dtype) -> int:
    """How many inputs of an output the kernel wants side by side, on the instruction set in use."""
    return _C_cpu.pattern_together(cpu.isa_number(), cpu.DTYPES.get(dtype, 0))


def _refuse(
    x: Tensor, values: Tensor, index: Tensor, library: Tensor | None, *_: object
) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, got tensors on {x.device}"
    if x.dtype not in cpu.DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}"
    if not (values.is_contiguous() and index.is_contiguous()):
        return "takes contiguous values and indices"
    if library is not None:
        return "has no kernel for libraries of block patterns"
    if values.shape[2] not in VECTORS:
        return (
            f"takes 16, 32, 64 or 128 outputs that keep the same inputs, got {values.shape[2]}"
        )
    together = values.shape[3] if values.dim() == 4 else 1
    if together != inputs_together(x.dtype):
        return (
            f"takes {inputs_together(x.dtype)} inputs of an output side by side on {cpu.isa()}, "
            f"got {together}"
        )
    return None


def _run(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    _library: None,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    (groups, kept), v = columns.shape, values.shape[2]
    y = x.new_empty((*x.shape[:-1], groups * v))
    x = cpu.matrix(x)
    gate = None if gate is None else cpu.matrix(gate)
    residual = None if residual is None else cpu.matrix(residual)
    bias = None if bias is None else bias.contiguous()
    _C_cpu.pattern_linear(
        cpu.isa_number(),
        cpu.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        *x.shape,
        values.data_ptr(),
        columns.data_ptr(),
        0,
        groups,
        kept,
        v,
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
