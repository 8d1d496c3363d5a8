"""Vector N:M linear on the GPU: y = act(x W^T + bias) * multiplier + residual.

The v outputs of a group keep the same inputs, so what they need is a dense product of a few columns
of x, gathered, with a matrix that is stored whole. A program owns BLOCK_M rows of x and BLOCK_N
outputs of one group, and walks over the group's kept inputs, STEP at a time:

    x[rows, columns[g]]   @   values[g]  [kept, v]   =   y[rows, g*v : (g+1)*v]

Single columns of x lie far apart. Where there are many rows, x is transposed first: then a gathered
input is a contiguous run of BLOCK_M numbers, which is copied asynchronously and in 16-byte pieces.
Few rows (decoding) gather from x as it is, and long groups are split among programs, whose float32
sums a second kernel adds in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateurs.ops._backends.triton import (
    epilogue_of,
    finish,
    launch,
    least_steps,
    store_output,
    store_share,
    tile_of,
)
from secateurs.ops._core import gpu
from secateurs.ops._core.memory import rows_of
from secateurs.ops._core.tuning import Config, Table
from secateurs.ops.pattern_linear.operands import Operands

VECTORS = (16, 32, 64, 128)
GROUP = 8

_HOPPER = {
    ("half", 16): Config(128, 64, 4, 4),
    ("half", 32): Config(128, 64, 4, 4),
    ("half", 64): Config(128, 64, 4, 4),
    ("half", 128): Config(128, 64, 8, 4),
    ("few half", 16): Config(16, 128, 4, 6),
    ("few half", 32): Config(16, 128, 4, 6),
    ("few half", 64): Config(16, 64, 4, 6),
    ("few half", 128): Config(16, 64, 4, 6),
    ("float", 16): Config(64, 32, 4, 4),
    ("float", 32): Config(64, 32, 4, 4),
    ("float", 64): Config(64, 32, 4, 4),
    ("float", 128): Config(64, 32, 8, 3),
    ("few float", 16): Config(16, 64, 4, 6),
    ("few float", 32): Config(16, 64, 4, 6),
    ("few float", 64): Config(16, 32, 4, 6),
    ("few float", 128): Config(16, 32, 4, 6),
}

# By what the rows of x are ("few ...": at most 16) and by v.
TABLE = Table(
    "pattern_linear",
    {
        80: {
            ("half", 16): Config(128, 64, 4, 3),
            ("half", 32): Config(128, 64, 4, 4),
            ("half", 64): Config(128, 64, 4, 4),
            ("half", 128): Config(128, 32, 8, 4),
            ("few half", 16): Config(16, 128, 4, 5),
            ("few half", 32): Config(16, 128, 4, 5),
            ("few half", 64): Config(16, 64, 4, 5),
            ("few half", 128): Config(16, 64, 4, 4),
            ("float", 16): Config(64, 32, 4, 3),
            ("float", 32): Config(64, 32, 4, 3),
            ("float", 64): Config(64, 32, 8, 3),
            ("float", 128): Config(64, 16, 8, 3),
            ("few float", 16): Config(16, 64, 4, 4),
            ("few float", 32): Config(16, 64, 4, 4),
            ("few float", 64): Config(16, 32, 4, 4),
            ("few float", 128): Config(16, 32, 4, 4),
        },
        90: _HOPPER,
        # As good a start as any until one is tuned there, but for what spills on Triton 3.6.
        100: {
            **_HOPPER,
            ("float", 64): Config(64, 32, 8, 4),
            ("float", 128): Config(64, 16, 8, 4),
        },
    },
)


@triton.jit
def _chosen(columns, k, stop, STEP: tl.constexpr):
    """Which inputs the entries `k .. k + STEP` of a group are; looked up one step ahead."""
    each = k + tl.arange(0, STEP)
    return tl.load(columns + each, mask=each < stop, other=0)


@triton.jit
def _product(
    x,  # [M, K], rows `stride_x` apart; or its transpose, whose rows end beyond M
    values,  # [groups, kept, V]
    columns,  # [groups, kept]
    bias, multiplier, residual,
    y,  # [M, N], or float32 [groups * split, M, V]
    M, N, stride_x, groups, kept, split,
    V: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr, SPLIT: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile_m, group = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), groups, GROUP)
    part = tl.program_id(1)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, V)
    step = tl.arange(0, STEP)

    start, stop = 0, kept
    if SPLIT:
        share = tl.cdiv(tl.cdiv(kept, STEP), split) * STEP
        start = part * share
        stop = min(kept, start + share)

    columns += group.to(tl.int64) * kept
    values += group.to(tl.int64) * kept * V
    chosen = _chosen(columns, start, stop, STEP)
    acc = tl.zeros((BLOCK_M, V), tl.float32)
    for k in range(start, stop, STEP):
        stored = k + step < stop
        w = tl.load(values + (k + step)[:, None] * V + n[None, :], mask=stored[:, None], other=0)
        if TRANSPOSED:
            inside = stored[:, None] & (m < stride_x)[None, :]
            at = x + chosen.to(tl.int64)[:, None] * stride_x + m[None, :]
            a = tl.trans(tl.load(at, mask=inside, other=0))
        else:
            inside = (m < M)[:, None] & stored[None, :]
            at = x + m.to(tl.int64)[:, None] * stride_x + chosen[None, :]
            a = tl.load(at, mask=inside, other=0)
        chosen = _chosen(columns, k + STEP, stop, STEP)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)

    if SPLIT:
        store_share(y, acc, group * split + part, m, M, V)
    else:
        n += group * V
        store_output(y, acc, bias, multiplier, residual, m, n, M, N, ACTIVATION)


def refuse(operands: Operands) -> str | None:
    values, library = operands.values, operands.library
    if library is not None:
        return "it has no kernel for libraries of block patterns"
    if values.dim() == 4:
        return f"it takes values input by input, got {values.shape[3]} inputs side by side"
    if values.shape[2] not in VECTORS:
        return (
            f"it takes 16, 32, 64 or 128 outputs that keep the same inputs, got {values.shape[2]}"
        )
    return None


def run(operands: Operands) -> Tensor:
    x, values, columns, _, _, activation, *_ = operands
    groups, kept, v = values.shape
    y = operands.new_output()
    if not y.numel():
        return y
    rows_x = rows_of(x)
    m, transposed = rows_x.shape[0], rows_x.shape[0] > 16
    config = TABLE.choose(x.device, key(operands))
    if transposed:
        rows_x = _transposed(rows_x)
    tiles = triton.cdiv(m, config.block_m) * groups
    wanted = triton.cdiv(gpu.multiprocessors(x.device), tiles)
    split = max(1, min(wanted, kept // (config.step * least_steps(m))))
    out = y if split == 1 else x.new_empty((groups * split, m, v), dtype=torch.float32)
    epilogue = epilogue_of(operands)
    launch(
        _product,
        (tiles, split),
        rows_x, values, columns, *epilogue, out,
        m, groups * v, rows_x.stride(0), groups, kept, split,
        V=v, BLOCK_M=config.block_m, STEP=config.step, GROUP=GROUP, TRANSPOSED=transposed,
        SPLIT=split > 1, ACTIVATION=activation, PRECISION=gpu.fp32_precision(),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if split > 1:
        finish(out, None, split, epilogue, y.view(m, groups * v), activation)
    return y


def key(operands: Operands) -> tuple[str, int]:
    """Return the row of the table for a call."""
    x, values = operands.x, operands.values
    width = "float" if x.dtype == torch.float32 else "half"
    few = x.numel() <= 16 * x.shape[-1]
    return (f"few {width}" if few else width, values.shape[2])


def _transposed(x: Tensor) -> Tensor:
    """`[K, M']` with M' >= M a multiple of 16, so that every row starts on a 16-byte boundary, and
    zeros beyond M."""
    m, k = x.shape
    padded = x.new_empty(k, triton.cdiv(m, 16) * 16)
    padded[:, :m].copy_(x.t())
    padded[:, m:].zero_()
    return padded
