"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/body/pattern_linear.h and
library_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.epilogue import ACTIVATIONS

VECTORS = (16, 32, 64, 128)
BLOCKS = ((4, 4), (1, 4))
MOST_ROWS = 16  # with more, products cost more than the weights that a library saves reading
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
        return _refuse_library(x, library)
    if values.shape[2] == 1:
        return (
            "takes one choice of inputs for 16 outputs or more; 2:4 of single outputs runs as a "
            "library (LibraryWeight.pack_two_four)"
        )
    if values.shape[2] not in VECTORS:
        return f"takes 16, 32, 64 or 128 outputs that keep the same inputs, got {values.shape[2]}"
    together = values.shape[3] if values.dim() == 4 else 1
    if together != inputs_together(x.dtype):
        return (
            f"takes {inputs_together(x.dtype)} inputs of an output side by side on {cpu.isa()}, "
            f"got {together}"
        )
    return None


def _refuse_library(x: Tensor, library: Tensor) -> str | None:
    if not library.is_contiguous():
        return "takes a contiguous library"
    if tuple(library.shape[1:]) not in BLOCKS:
        return f"takes blocks of 4 x 4 or 1 x 4, got {library.shape[1]} x {library.shape[2]}"
    rows = x.shape[:-1].numel()
    if rows > MOST_ROWS:
        return f"pays for up to {MOST_ROWS} rows of x, where weights are the traffic, got {rows}"
    return None


def _run(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    library: Tensor | None,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    outputs = values.shape[2] if library is None else library.shape[1]
    y = x.new_empty((*x.shape[:-1], values.shape[0] * outputs))
    x = cpu.matrix(x)
    gate = None if gate is None else cpu.matrix(gate)
    residual = None if residual is None else cpu.matrix(residual)
    bias = None if bias is None else bias.contiguous()
    operands = (
        cpu.isa_number(),
        cpu.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        *x.shape,
        values.data_ptr(),
        index.data_ptr(),
    )
    epilogue = (
        cpu.address(bias),
        _NUMBER[activation],
        cpu.address(gate),
        0 if gate is None else gate.stride(0),
        cpu.address(residual),
        0 if residual is None else residual.stride(0),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if library is None:
        _C_cpu.pattern_linear(*operands, 0, *index.shape, outputs, *epilogue)
    else:
        sizes = (index.shape[0], *library.shape, values.shape[2])
        _C_cpu.library_linear(*operands, library.data_ptr(), *sizes, *epilogue)
    return y


BACKEND = Backend("cpu", _refuse, _run)
