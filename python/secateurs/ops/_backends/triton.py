"""Device code the Triton kernels share: the epilogue, the order of tiles, the launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from secateurs.ops._core.epilogue import Linear
from secateurs.ops._core.memory import contiguous

Epilogue = tuple[Tensor | None, Tensor | None, Tensor | None]  # bias, multiplier, residual

UNFIT = (OutOfResources, PTXASError, CompilationError)  # a configuration this device cannot run

INV_SQRT_2 = tl.constexpr(0.7071067811865476)
GELU_SCALE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Which tile a program owns: GROUP tiles of rows go through all columns together, so that what
    they read of x and of the weight is in the L2 cache for all but the first."""
    in_group = GROUP * tiles_n
    first = program // in_group * GROUP
    height = min(tiles_m - first, GROUP)
    return first + program % in_group % height, program % in_group // height


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """The activation of a tile in float32; NaN stays NaN."""
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * INV_SQRT_2))
    elif ACTIVATION == "gelu_tanh":
        inner = GELU_SCALE * (y + 0.044715 * y * y * y)
        y = y * (1 - 1 / (tl.exp(2 * inner) + 1))
    elif ACTIVATION == "relu":
        y = tl.where(y < 0, 0.0, y)
    elif ACTIVATION == "silu":
        y = y / (1 + tl.exp(-y))
    return y


@triton.jit
def store_output(y, acc, bias, multiplier, residual, m, n, M, N, ACTIVATION: tl.constexpr):
    """Store y = act(acc + bias) * multiplier + residual at rows m, columns n; y, multiplier and
    residual are contiguous [M, N]."""
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if bias is not None:
        acc += tl.load(bias + n, mask=n < N, other=0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    if multiplier is not None:
        acc *= tl.load(multiplier + at, mask=inside, other=0).to(tl.float32)
    if residual is not None:
        acc += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def first_share(indptr, row, split):
    """Where the partial products of a row of tiles begin: `split` of them for each row, or, if the
    rows are of different lengths, one for each `split` stored blocks and one more for each row."""
    if indptr is None:
        return row * split
    else:
        return tl.load(indptr + row) // split + row


@triton.jit
def store_share(partial, acc, share, m, M, BN: tl.constexpr):
    """The partial product number `share` [M, BN], rows m."""
    at = (share.to(tl.int64) * M + m)[:, None] * BN + tl.arange(0, BN)[None, :]
    tl.store(partial + at, acc, mask=(m < M)[:, None])


@triton.jit
def _finish(
    partial, indptr, bias, multiplier, residual, y, M, N, split,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The sum of the partial products [shares, M, BN] of a row of tiles, always in the same order,
    and the epilogue."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(1)
    start, stop = first_share(indptr, row, split), first_share(indptr, row + 1, split)
    sums = partial + (start.to(tl.int64) * M + m)[:, None] * BN + tl.arange(0, BN)[None, :]
    whole = tl.cast(M, tl.int64) * BN
    acc = tl.zeros((BLOCK_M, BN), tl.float32)
    for _ in tl.range(start, stop, num_stages=4):
        acc += tl.load(sums, mask=(m < M)[:, None], other=0)
        sums += whole
    n = row * BN + tl.arange(0, BN)
    store_output(y, acc, bias, multiplier, residual, m, n, M, N, ACTIVATION)


def finish(
    partial: Tensor,  # float32 [shares, M, BN]
    indptr: Tensor | None,
    split: int,  # with indptr, says which shares are whose (`first_share`)
    epilogue: Epilogue,
    y: Tensor,  # [M, N]
    activation: str,
) -> None:
    """Reduce partial products into y."""
    (m, n), bn = y.shape, partial.shape[2]
    grid = (triton.cdiv(m, 16), triton.cdiv(n, bn))
    meta = {"ACTIVATION": activation, "BLOCK_M": 16, "BN": bn}
    launch(_finish, grid, partial, indptr, *epilogue, y, m, n, split, **meta, num_warps=4)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run a kernel on the device of its first tensor and torch's current stream there."""
    meta["enable_fp_fusion"] = True  # Triton 3.10 turns it off where nobody asks
    device = next(a.device for a in args if isinstance(a, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **meta)
    else:
        kernel[grid](*args, **meta)


def epilogue_of(operands: Linear) -> Epilogue:
    """Return bias, multiplier and residual as kernels read them: contiguous."""
    return (
        contiguous(operands.bias),
        contiguous(operands.multiplier),
        contiguous(operands.residual),
    )


def least_steps(m: int) -> int:
    """The shortest share of a tile's steps that is worth a program of its own: with few rows of x
    the partial sums are small beside the weight that they save waiting for."""
    return 2 if m <= 16 else 4
