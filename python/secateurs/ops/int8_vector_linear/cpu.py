"""float32 and bfloat16 on the CPU by our own kernels
(csrc/cpu/kernels/linear/int8_vector_linear.h)."""

from __future__ import annotations

from torch import Tensor

from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
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
    _, values, scales, places, indptr, starts, *_ = operands
    n, v = scales.shape[0], values.shape[1]
    return cpu.run_linear(
        cpu.kernels.int8_vector_linear,
        operands,
        n,
        values=values.data_ptr(),
        scales=scales.data_ptr(),
        places=places.data_ptr(),
        indptr=indptr.data_ptr(),
        starts=starts.data_ptr(),
        groups=n // v,
        v=v,
    )


BACKEND = Backend("cpu", _refuse, _run)
