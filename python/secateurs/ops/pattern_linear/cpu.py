"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/kernels/linear/pattern_linear.h and
library_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops.pattern_linear.operands import Operands

VECTORS = (16, 32, 64, 128)
BLOCKS = ((4, 4), (1, 4))
MOST_ROWS = 16  # with more, products cost more than the weights that a library saves reading


def inputs_together(dtype: torch.dtype) -> int:
    """Return how many inputs of an output the kernel wants side by side, on the instruction set in
    use."""
    return int(cpu.kernels.pattern_together(cpu.isa_number(), cpu.DTYPES.get(dtype, 0)))


def _refuse(operands: Operands) -> str | None:
    x, values, index, library, *_ = operands
    if (reason := cpu.refuse(x)) is not None:
        return reason
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


def _run(operands: Operands) -> Tensor:
    _, values, index, library, *_ = operands
    n = operands.out_features()
    if library is None:
        groups, kept = index.shape
        return cpu.run_linear(
            cpu.kernels.pattern_linear,
            operands,
            n,
            values=values.data_ptr(),
            columns=index.data_ptr(),
            indptr=0,
            groups=groups,
            kept=kept,
            v=values.shape[2],
        )
    patterns, block_outputs, block_inputs = library.shape
    return cpu.run_linear(
        cpu.kernels.library_linear,
        operands,
        n,
        values=values.data_ptr(),
        codes=index.data_ptr(),
        library=library.data_ptr(),
        patterns=patterns,
        block_outputs=block_outputs,
        block_inputs=block_inputs,
        ones=values.shape[2],
    )


BACKEND = Backend("cpu", _refuse, _run)
