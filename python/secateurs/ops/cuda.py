"""The CUDA module: whether it was built, and what it sees. It imports without a GPU, and may be
absent."""

from __future__ import annotations

from typing import Any

try:
    from secateurs import _C_cuda  # type: ignore[attr-defined]
except ImportError:
    _C_cuda = None


def build_info() -> dict[str, Any]:
    """Version, commit, toolkit, architectures compiled, driver and devices; or why there is no CUDA
    module."""
    if _C_cuda is None:
        return {"missing": "built without CUDA (no nvcc was found, or SECATEURS_CUDA=off)"}
    info = {
        **_C_cuda.build_info(),
        "runtime": ".".join(map(str, _C_cuda.runtime_version())),
        "driver": ".".join(map(str, _C_cuda.driver_version())),
    }
    try:
        return {**info, "devices": _C_cuda.devices()}
    except RuntimeError as error:
        return {**info, "devices": [], "unusable": str(error)}
