"""Prepare tensors for kernels that take addresses: contiguous rows, and where the data begins."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def contiguous(x: Tensor) -> Tensor: ...
@overload
def contiguous(x: None) -> None: ...
@overload
def contiguous(x: Tensor | None) -> Tensor | None: ...
def contiguous(x: Tensor | None) -> Tensor | None:
    """Return `x` contiguous, a copy only where it has to be one; None stays None."""
    return None if x is None else x.contiguous()


def address(x: Tensor | None) -> int:
    """Return where the data of `x` begins; 0 for None."""
    return 0 if x is None else x.data_ptr()


def packed_last(x: Tensor) -> Tensor:
    """Return `x` with a contiguous last dimension, a copy only where it has to be one."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def rows_of(x: Tensor) -> Tensor:
    """Return `x` `[..., K]` as `[M, K]` with contiguous rows, a view wherever one exists."""
    if x.dim() != 2:
        x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def aligned_rows_of(x: Tensor) -> Tensor:
    """Return `x` `[..., K]` as `[M, K]`, each row contiguous and on a 16-byte boundary; a view
    wherever one exists."""
    x = rows_of(x)
    if x.stride(0) * x.element_size() % 16:
        x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
