"""The CPU module: the instruction set in use, and errors as ours.

`SECATEURS_CPU_ISA` forces an instruction set: portable, avx2, avx_vnni, avx512,
avx512_vnni, avx512_bf16 or amx.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import BackendError
from secateurs.ops._backends import openmp
from secateurs.ops._core.epilogue import Linear
from secateurs.ops._core.forced import Forced
from secateurs.ops._core.memory import address, contiguous, rows_of

kernels: Any = openmp.load("secateurs._C_cpu")
# The numbers of csrc/common, by dtype and by the name of an activation.
DTYPES: dict[torch.dtype, int] = {
    getattr(torch, name): number for name, number in kernels.dtypes.items()
}
ACTIVATIONS: dict[str, int] = kernels.activations


def isa() -> str:
    """Return the name of the instruction set the kernels run on. Raises BackendError if the one
    forced is unknown or not supported by this CPU."""
    return str(kernels.isa_name(isa_number()))


def isas() -> list[str]:
    """Return the instruction sets this CPU runs, best first."""
    return list(kernels.isas())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the CPU kernels inside the block on one instruction set, in this thread and in all that
    force none themselves; see `Forced`. Raises BackendError like `isa`."""
    with _forced.set(_number(name)):
        yield


def isa_number() -> int:
    """Return the number of the instruction set in use, as the kernels take it."""
    forced = _forced.get()
    return _from_environment() if forced is None else forced


def build_info() -> dict[str, Any]:
    """Return version, commit, compiler, the instruction sets compiled, those that run here, and the
    one in use."""
    return {**kernels.build_info(), "supported": isas(), "isa": isa()}


def refuse(x: Tensor) -> str | None:
    """Tell why no CPU kernel of ours takes a call on `x`, whatever the operation."""
    if not x.is_cpu:
        return f"runs on the CPU, got tensors on {x.device}"
    if x.dtype not in DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}"
    return None


def prepared_rows(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    """Return an operand with contiguous rows, where it begins, and how many elements its rows are
    apart; zeros for None. The tensor must live until the kernel has run."""
    if x is None:
        return None, 0, 0
    x = rows_of(x)
    return x, x.data_ptr(), x.stride(0)


def run_linear(kernel: Callable[..., Any], operands: Linear, n: int, **weight: Any) -> Tensor:
    """Run a kernel of a linear of `n` outputs; `weight` is what it takes for the weight that
    `operands` hold."""
    y = operands.new_output()
    x, bias = rows_of(operands.x), contiguous(operands.bias)
    m, k = x.shape
    # Both tensors live, copies among them, until the kernel has run.
    _multiplier, multiplier_start, multiplier_stride = prepared_rows(operands.multiplier)
    _residual, residual_start, residual_stride = prepared_rows(operands.residual)
    kernel(
        isa=isa_number(),
        dtype=DTYPES[x.dtype],
        x=x.data_ptr(),
        x_stride=x.stride(0),
        m=m,
        n=n,
        k=k,
        bias=address(bias),
        activation=ACTIVATIONS[operands.activation],
        multiplier=multiplier_start,
        multiplier_stride=multiplier_stride,
        residual=residual_start,
        residual_stride=residual_stride,
        y=y.data_ptr(),
        threads=torch.get_num_threads(),
        **weight,
    )
    return y


_forced: Forced[int] = Forced("secateurs_isa")


@cache
def _from_environment() -> int:
    name = os.environ.get("SECATEURS_CPU_ISA", "")
    try:
        return _number(name)
    except BackendError as error:
        raise BackendError(f"SECATEURS_CPU_ISA: {error}") from None


def _number(name: str) -> int:
    try:
        return int(kernels.choose(name))
    except ValueError as error:
        raise BackendError(str(error)) from None
