"""What the Triton backend needs to know before Triton is imported: may it run here, on which kind
of GPU.

Importing Triton takes a second, and it may be absent: a backend's kernels are imported at the first
call that needs them.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from secateurs.checks import dtype_name
from secateurs.ops._core.dispatch import Backend

OLDEST = (8, 0)  # bfloat16 and asynchronous copies start here
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FEW = 16  # rows of one tile: so few that the bytes of the weight, or of the keys, are the cost


def triton_backend(op: str) -> Backend[Any]:
    """Return the Triton backend of the operation `op`: `refuse` and `run` of
    `secateurs/ops/<op>/triton.py`, imported late."""

    def kernels() -> ModuleType:
        return importlib.import_module(f"secateurs.ops.{op}.triton")

    def refuse(operands: Any) -> str | None:
        x: Tensor = operands[0]
        reason = _refuse_place(x) or _refuse_dtype(x) or kernels().refuse(operands)
        return None if reason is None else str(reason)

    def run(operands: Any) -> Tensor:
        output: Tensor = kernels().run(operands)
        return output

    return Backend("triton", refuse, run)


def prefer_for_linear(operands: Any) -> str | None:
    """Name the backend that goes first for a linear of `x` `[..., K]`, if not the usual one."""
    x: Tensor = operands[0]
    return _prefer(x.device, x.numel() // x.shape[-1]) if x.is_cuda and x.numel() else None


def prefer_for_attention(operands: Any) -> str | None:
    """Name the backend that goes first for attention of `q` `[B, H, T, D]`, if not the usual
    one."""
    q: Tensor = operands[0]
    return _prefer(q.device, q.shape[-2]) if q.is_cuda else None


def _prefer(device: torch.device, rows: int) -> str | None:
    """Name Triton for more than a few rows on Hopper and on Blackwell's data centre parts: it
    compiles to their wgmma and tcgen05, while our CUDA kernels multiply by the mma.sync of Ampere.
    """
    newer = rows > FEW and refuse_vendor() is None and architecture(device) >= 90
    return "triton" if newer else None


@cache
def interpreting() -> bool:
    """Tell whether Triton kernels run in Triton's interpreter, on CPU tensors
    (`TRITON_INTERPRET=1`, set before import)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@cache
def architecture(device: torch.device) -> int:
    """Return the row of a table of launch configurations that fits a device: 80, 90 or 100.

    Consumer parts (8.6, 8.9, 12.x) have the instructions and the 99 KiB of shared memory that the
    row of 80 assumes.
    """
    if device.type != "cuda":
        return 80
    return {9: 90, 10: 100}.get(torch.cuda.get_device_capability(device)[0], 80)


@cache
def multiprocessors(device: torch.device) -> int:
    """Count the multiprocessors that share the work; the interpreter counts as a small GPU."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def fp32_precision() -> str:
    """Return how tl.dot multiplies float32: as `torch.set_float32_matmul_precision` says."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def refuse_vendor() -> str | None:
    """Tell why this torch runs no kernel for NVIDIA GPUs, if so."""
    return "it is written for NVIDIA GPUs" if torch.version.cuda is None else None


def refuse_capability(device: torch.device) -> str | None:
    """Tell why a GPU is too old for the kernels, if so."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= OLDEST:
        return None
    return (
        f"it needs compute capability {dotted(OLDEST)} or newer, "
        f"{torch.cuda.get_device_name(device)} has {dotted(capability)}"
    )


def dotted(version: tuple[int, int]) -> str:
    """Return a version or a compute capability as people write it: "8.0"."""
    return ".".join(map(str, version))


def _refuse_place(x: Tensor) -> str | None:
    if x.is_cpu and not interpreting():
        return "it runs on a GPU, the tensors are on the CPU"
    device = x.device
    if device.type == "cuda":
        if (reason := refuse_vendor() or refuse_capability(device)) is not None:
            return reason
    elif device.type != "cpu":
        return f"it runs on NVIDIA GPUs, the tensors are on {device.type}"
    return _missing()


def _refuse_dtype(x: Tensor) -> str | None:
    if x.dtype not in DTYPES:
        return f"it takes float16, bfloat16 and float32, got {dtype_name(x.dtype)}"
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies the bits of bfloat16 as integers"
    return None


@cache
def _missing() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return None
