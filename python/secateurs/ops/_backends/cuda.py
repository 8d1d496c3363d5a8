"""The CUDA module: whether it was built, what it sees, and what the operations' backends share.

It imports without a GPU, and may be absent.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secateurs.ops._core.epilogue import ACTIVATIONS


def _why_missing(failure: ImportError) -> str:
    """Why `_C_cuda` did not import: why it was not built, as the build recorded, or what keeps it
    from loading."""
    try:
        if importlib.util.find_spec("secateurs._C_cuda") is not None:
            return f"the CUDA module does not load ({failure})"
        from secateurs._cuda_build import WHY_MISSING
    except ImportError:  # not installed: run from the sources
        WHY_MISSING = "the build left no reason"
    return f"built without CUDA: {WHY_MISSING or 'the module is gone'}"


try:
    from secateurs import _C_cuda  # type: ignore[attr-defined]

    _missing = ""
except ImportError as error:
    _C_cuda, _missing = None, _why_missing(error)

OLDEST = (8, 0)  # asynchronous copies and bfloat16 start here
DTYPES = (torch.float16, torch.bfloat16)
EMULATOR = "emulator"  # what a module for CPU tensors calls its toolkit

Version = tuple[int, int]  # of CUDA, or a compute capability
Place = tuple[int, int]
Epilogue = tuple[Tensor | None, str, Tensor | None, Tensor | None]

_NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}  # as csrc/cuda/epilogue.h


def build_info() -> dict[str, Any]:
    """Version, commit, toolkit, architectures compiled, driver and devices; or why there is no CUDA
    module."""
    if _C_cuda is None:
        return {"missing": _missing}
    info = {
        **_C_cuda.build_info(),
        "runtime": _dotted(_C_cuda.runtime_version()),
        "driver": _dotted(_C_cuda.driver_version()),
    }
    try:
        devices = [{**d, "capability": list(d["capability"])} for d in _C_cuda.devices()]
        return {**info, "devices": devices}
    except RuntimeError as error:
        return {**info, "devices": [], "unusable": str(error)}


def kernels() -> Any:
    """The CUDA module; only where `refuse` has not refused."""
    return _C_cuda


def refuse(x: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """Why no CUDA kernel of ours takes a call on `x`, whatever the operation."""
    if _C_cuda is None:
        return _missing
    if x.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"it takes {names}, got {str(x.dtype).removeprefix('torch.')}"
    return _refuse_device(_C_cuda, x.device)


@cache
def _refuse_device(module: Any, device: torch.device) -> str | None:
    info = module.build_info()
    if device.type != ("cpu" if info["toolkit"] == EMULATOR else "cuda"):
        return f"it runs on NVIDIA GPUs, the tensors are on {device}"
    if device.type != "cuda":
        return None
    if torch.version.cuda is None:
        return "it is written for NVIDIA GPUs"
    try:
        driver, runtime = module.driver_version(), module.runtime_version()
    except RuntimeError as error:
        return str(error)
    if (reason := _refuse_driver(driver, runtime)) is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return (
            f"it needs compute capability {_dotted(OLDEST)} or newer, "
            f"{torch.cuda.get_device_name(device)} has {_dotted(capability)}"
        )
    if not _compiled_for(info["archs"], capability):
        return (
            f"it was compiled for {info['archs']}, not for compute capability {_dotted(capability)}"
        )
    if driver < runtime and not _compiled_for(info["archs"], capability, translated=False):
        return (
            f"compute capability {_dotted(capability)} needs its PTX translated, and the driver "
            f"takes that of CUDA {_dotted(driver)}, not of {_dotted(runtime)}"
        )
    return None


def _refuse_driver(driver: Version, runtime: Version) -> str | None:
    """A driver runs what was linked with any CUDA of its own major version, or of an older one."""
    if driver == (0, 0):
        return "there is no NVIDIA driver"
    if driver[0] < runtime[0]:
        return (
            f"it was linked with CUDA {_dotted(runtime)}, the driver takes up to {_dotted(driver)}"
        )
    return None


def _compiled_for(archs: str, capability: Version, translated: bool = True) -> bool:
    """Machine code runs on its generation from its own revision on, PTX (where it can be
    `translated`) on everything later; that of "90a" and the like on that very revision."""
    for number, exact, kind in re.findall(r"(\d+)([af]?)(-real|-virtual)?", archs):
        if kind == "-virtual" and not translated:
            continue
        arch = (int(number) // 10, int(number) % 10)
        if arch == capability:
            return True
        anything_later = kind != "-real" and translated
        if not exact and arch <= capability and (anything_later or arch[0] == capability[0]):
            return True
    return False


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def refuse_unaligned(**tensors: Tensor) -> str | None:
    """Kernels read a packed weight 16 bytes at a time, front to back."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.data_ptr() % 16:
            return f"it takes {name} contiguous and on a 16-byte boundary"
    return None


def place(x: Tensor) -> Place:
    """The device of `x` and torch's current stream there."""
    if x.device.type != "cuda":
        return 0, 0
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def rows_of(x: Tensor) -> Tensor:
    """`x` `[..., K]` as `[M, K]`, each row contiguous and on a 16-byte boundary; a view wherever
    one exists."""
    x = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    fits = x.stride(1) == 1 and x.stride(0) * x.element_size() % 16 == 0
    if not fits and not x.is_contiguous():
        x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def epilogue(y: Tensor, finish: Epilogue) -> tuple[tuple[int, ...], list[Tensor | None]]:
    """What the linear kernels take for `act(sum + bias) * gate + residual`, and the tensors behind
    it, to be kept until they are launched."""
    bias, activation, gate, residual = finish
    kept = [None if t is None else t.contiguous() for t in (bias, gate, residual)]
    n = y.shape[-1]
    a, b, c = map(address, kept)
    return (a, _NUMBER[activation], b, c, y.data_ptr(), y.numel() // n, n), kept


def run_stacks(
    kernel: str,
    x: Tensor,
    x_stride: int,
    weight: tuple[int, ...],  # values, indptr, indices, rows, blocks, bn, bk
    y: Tensor,
    finish: Any,  # bias, activation, gate, residual
) -> None:
    """Launch a kernel of csrc/cuda/stacked_linear.h, with working memory where it cuts rows."""
    where, numbers = place(x), weight[3:]
    given, _kept = epilogue(y, finish)
    bm, parts, floats = kernels().cut_linear(where[0], given[5], *numbers)
    partial = x.new_empty(floats, dtype=torch.float32)
    getattr(kernels(), kernel)(
        where,
        dtype(x),
        x.data_ptr(),
        x_stride,
        weight,
        given,
        (bm, parts),
        partial.data_ptr(),
    )
