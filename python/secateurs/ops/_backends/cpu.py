"""The CPU module: the instruction set in use, and errors as ours.

`SECATEURS_CPU_ISA` forces an instruction set: portable, avx2, avx512, avx512_bf16 or amx.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch  # first: it loads the OpenMP runtime that _C_cpu resolves against
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.errors import BackendError
from secateurs.ops._core.forced import Forced

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # as Dtype in csrc/cpu/kernels.h


def isa() -> str:
    """Name of the instruction set the kernels run on. Raises BackendError if the one forced is
    unknown or not supported by this CPU."""
    return _C_cpu.isa_name(isa_number())


def isas() -> list[str]:
    """The instruction sets this CPU runs, best first."""
    return _C_cpu.isas()


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the CPU kernels inside the block on one instruction set, in this thread and in all that
    force none themselves; see `Forced`. Raises BackendError like `isa`."""
    with _forced.set(_number(name)):
        yield


def isa_number() -> int:
    """The instruction set in use as the kernels take it."""
    forced = _forced.get()
    return _from_environment() if forced is None else forced


def build_info() -> dict[str, Any]:
    """Version, commit, compiler, the instruction sets compiled, those that run here, and the one in
    use."""
    return {**_C_cpu.build_info(), "supported": isas(), "isa": isa()}


def address(x: Tensor | None) -> int:
    """Where `x` begins, as the kernels take it; 0 for none."""
    return 0 if x is None else x.data_ptr()


def matrix(x: Tensor) -> Tensor:
    """`[..., K]` as `[M, K]` with contiguous rows, without a copy wherever the rows are evenly
    spaced."""
    if x.dim() != 2:
        x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


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
        return _C_cpu.choose(name)
    except ValueError as error:
        raise BackendError(str(error)) from None
