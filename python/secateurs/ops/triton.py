"""Device code the Triton kernels share: the epilogue, the order of tiles, the launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

UNFIT = (OutOfResources, PTXASError, CompilationError)  # a configuration this device cannot run

MAX_SPLIT = 16  # programs that share a tile of the output
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
def store_output(y, acc, bias, gate, residual, m, n, M, N, ACTIVATION: tl.constexpr):
    """y = act(acc + bias) * gate + residual at rows m, columns n; y, gate and residual are
    contiguous [M, N]."""
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if bias is not None:
        acc += tl.load(bias + n, mask=n < N, other=0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    if gate is not None:
        acc *= tl.load(gate + at, mask=inside, other=0).to(tl.float32)
    if residual is not None:
        acc += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _finish(
    partial, bias, gate, residual, y, M, N,
    SPLIT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The sum of the SPLIT partial products [SPLIT, M, N], always in the same order, and the
    epilogue."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    whole = tl.cast(M, tl.int64) * N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sums = partial + at
    for _ in range(SPLIT):
        acc += tl.load(sums, mask=inside, other=0)
        sums += whole
    store_output(y, acc, bias, gate, residual, m, n, M, N, ACTIVATION)


def finish(
    partial: Tensor,  # float32 [SPLIT, M, N]
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    y: Tensor,  # [M, N]
    activation: str,
) -> None:
    """Reduce partial products into y."""
    split, m, n = partial.shape
    grid = (triton.cdiv(m, 16), triton.cdiv(n, 64))
    meta = {"SPLIT": split, "ACTIVATION": activation, "BLOCK_M": 16, "BLOCK_N": 64}
    launch(_finish, grid, partial, bias, gate, residual, y, m, n, **meta, num_warps=4)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run a kernel on the device of its first argument and torch's current stream there."""
    meta["enable_fp_fusion"] = True  # Triton 3.10 turns it off where nobody asks
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **meta)
    else:
        kernel[grid](*args, **meta)


def rows_of(x: Tensor) -> Tensor:
    """`x` `[..., K]` as `[M, K]` with contiguous rows; a view wherever one exists."""
    x = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def flat(x: Tensor | None) -> Tensor | None:
    """A gate or residual as the epilogue reads it: contiguous."""
    return None if x is None else x.contiguous()


def splits(tiles: int, steps: int, multiprocessors: int) -> int:
    """How many programs share a tile of `steps` steps: a power of two, so that the GPU is full if
    the tiles allow it and nobody's share is shorter than four steps."""
    split = 1
    while split < MAX_SPLIT and tiles * split < multiprocessors and steps >= 8 * split:
        split *= 2
    return split
