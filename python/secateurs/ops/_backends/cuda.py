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

from secateurs.checks import dtype_name
from secateurs.ops._core.epilogue import Linear
from secateurs.ops._core.gpu import dotted, refuse_capability, refuse_vendor
from secateurs.ops._core.memory import address, contiguous


def _why_missing(failure: ImportError) -> str:
    """Tell why `_C_cuda` did not import: why it was not built, as the build recorded, or what keeps
    it from loading."""
    try:
        if importlib.util.find_spec("secateurs._C_cuda") is not None:
            return f"the CUDA module does not load ({failure})"
        from secateurs._cuda_build import WHY_MISSING
    except ImportError:  # not installed: run from the sources
        WHY_MISSING = "the build left no reason"
    return f"built without CUDA: {WHY_MISSING or 'the module is gone'}"


try:
    from secateurs import _C_cuda

    _missing = ""
except ImportError as error:
    _C_cuda, _missing = None, _why_missing(error)

DTYPES = (torch.float16, torch.bfloat16)
EMULATOR = "emulator"  # what a module for CPU tensors calls its toolkit

Version = tuple[int, int]  # of CUDA, or a compute capability


def build_info() -> dict[str, Any]:
    """Return version, commit, toolkit, architectures compiled, driver and devices; or why there is
    no CUDA module."""
    if _C_cuda is None:
        return {"missing": _missing}
    info = {
        **_C_cuda.build_info(),
        "runtime": dotted(_C_cuda.runtime_version()),
        "driver": dotted(_C_cuda.driver_version()),
    }
    try:
        devices = [{**d, "capability": list(d["capability"])} for d in _C_cuda.devices()]
        return {**info, "devices": devices}
    except RuntimeError as error:
        return {**info, "devices": [], "unusable": str(error)}


def kernels() -> Any:
    """Return the CUDA module; only where `refuse` has not refused."""
    return _C_cuda


def refuse(x: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """Tell why no CUDA kernel of ours takes a call on `x`, whatever the operation."""
    if _C_cuda is None:
        return _missing
    return _refuse_dtype(x.dtype, dtypes) or _refuse_device(_C_cuda, x.device)


@cache
def _refuse_dtype(dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if dtype in dtypes:
        return None
    return f"it takes {', '.join(map(dtype_name, dtypes))}, got {dtype_name(dtype)}"


@cache
def _refuse_device(module: Any, device: torch.device) -> str | None:
    info = module.build_info()
    if device.type != ("cpu" if info["toolkit"] == EMULATOR else "cuda"):
        return f"it runs on NVIDIA GPUs, the tensors are on {device}"
    if device.type != "cuda":
        return None
    if (reason := refuse_vendor()) is not None:
        return reason
    try:
        driver, runtime = module.driver_version(), module.runtime_version()
    except RuntimeError as error:
        return str(error)
    if (reason := _refuse_driver(driver, runtime)) is not None:
        return reason
    if (reason := refuse_capability(device)) is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if not _compiled_for(info["archs"], capability):
        return (
            f"it was compiled for {info['archs']}, not for compute capability {dotted(capability)}"
        )
    if driver < runtime and not _compiled_for(info["archs"], capability, translated=False):
        return (
            f"compute capability {dotted(capability)} needs its PTX translated, and the driver "
            f"takes that of CUDA {dotted(driver)}, not of {dotted(runtime)}"
        )
    return None


def _refuse_driver(driver: Version, runtime: Version) -> str | None:
    """Tell why a driver is too old, if so: it runs what was linked with any CUDA of its own major
    version, or of an older one."""
    if driver == (0, 0):
        return "there is no NVIDIA driver"
    if driver[0] < runtime[0]:
        return f"it was linked with CUDA {dotted(runtime)}, the driver takes up to {dotted(driver)}"
    return None


def _compiled_for(archs: str, capability: Version, translated: bool = True) -> bool:
    """Tell whether the module runs on a GPU: machine code runs on its generation from its own
    revision on, PTX (where it can be `translated`) on everything later; that of "90a" and the like
    on that very revision."""
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


def refuse_unaligned(**tensors: Tensor) -> str | None:
    """Tell which tensor kernels cannot read 16 bytes at a time, front to back, if any."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.data_ptr() % 16:
            return f"it takes {name} contiguous and on a 16-byte boundary"
    return None


def launch(x: Tensor) -> dict[str, int]:
    """Return where a kernel on `x` is launched, and the number of its dtype: the device of `x` and
    torch's current stream there."""
    device, stream = 0, 0
    if x.device.type == "cuda":
        device, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    return {"device": device, "stream": stream, "dtype": kernels().dtypes[dtype_name(x.dtype)]}


def epilogue(operands: Linear, y: Tensor) -> tuple[dict[str, int], list[Tensor | None]]:
    """Return what the linear kernels take for `act(sum + bias) * multiplier + residual`, and the
    tensors behind it, which must live until the kernel is launched."""
    bias = contiguous(operands.bias)
    multiplier, residual = contiguous(operands.multiplier), contiguous(operands.residual)
    n = y.shape[-1]
    arguments = {
        "bias": address(bias),
        "activation": kernels().activations[operands.activation],
        "multiplier": address(multiplier),
        "residual": address(residual),
        "y": y.data_ptr(),
        "m": y.numel() // n,
        "n": n,
    }
    return arguments, [bias, multiplier, residual]


def run_stacks(
    kernel: str,
    x: Tensor,
    values: Tensor,
    indptr: Tensor | None,
    indices: Tensor,
    sizes: dict[str, int],  # rows, blocks, bn, bk, k
    operands: Linear,
    y: Tensor,
) -> None:
    """Launch a kernel of csrc/cuda/stacked_linear, with the working memory it asks for."""
    where = launch(x)
    finish, _kept = epilogue(operands, y)
    bm, parts, floats = kernels().cut_linear(
        device=where["device"], dtype=where["dtype"], m=finish["m"], **sizes
    )
    partial = x.new_empty(floats, dtype=torch.float32)
    getattr(kernels(), kernel)(
        **where,
        x=x.data_ptr(),
        x_stride=x.stride(0),
        values=values.data_ptr(),
        indptr=address(indptr),
        indices=indices.data_ptr(),
        **sizes,
        **finish,
        bm=bm,
        parts=parts,
        partial=partial.data_ptr(),
    )
