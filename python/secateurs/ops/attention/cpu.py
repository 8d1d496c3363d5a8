"""float32 on the CPU by our own kernels (csrc/cpu/attention.h)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.ops._dispatch import Backend


def _refuse(*args: Any) -> str | None:
    return "not built yet"


def _run(*args: Any) -> Tensor:
    raise NotImplementedError


BACKEND = Backend("cpu", _refuse, _run)
