"""Block-sparse linear on the GPU: y = act(x W^T + bias) * gate + residual.

The blocks of block row r, stacked, are one matrix of `count * bk` inputs by `bn` outputs,
contiguous in `values`. A program owns BLOCK_M rows of x and one block row; it walks along that
stack in steps of STEP inputs, which may be a part of a block or several blocks, and looks up where
in x each block's inputs stand:

                 inputs of x                       stack of block row r
          . . [c0] . [c1] . . [c2]                   [ b0 ]
    rows  . . [  ] . [  ] . . [  ]          @        [ b1 ]      =   y[rows, r*bn : (r+1)*bn]
          . . [  ] . [  ] . . [  ]                   [ b2 ]

Tiles of y go to programs in groups of rows (L2). Where those are too few to fill the GPU (few rows
of x, long block rows), SPLIT programs share a tile: each writes its float32 sum, and a second
kernel adds them in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateurs.ops import _gpu
from secateurs.ops._tuning import Config, Table
from secateurs.ops.triton import finish, flat, launch, rows_of, splits, store_output, tile_of

BLOCKS = (16, 32, 64, 128)
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

# By what the rows of x are ("half": 16-bit, "float": float32, "few ...": at most 16 of them, so
# that the weight's bytes are all that counts) and by bn. A stage holds (block_m + bn) * step
# elements.
TABLE = Table(
    "block_sparse_linear",
    {
        80: {
            ("half", 16): Config(128, 64, 4, 4),
            ("half", 32): Config(128, 64, 4, 4),
            ("half", 64): Config(128, 64, 4, 4),
            ("half", 128): Config(128, 32, 8, 4),
            ("few half", 16): Config(16, 128, 4, 5),
            ("few half", 32): Config(16, 128, 4, 5),
            ("few half", 64): Config(16, 64, 4, 5),
            ("few half", 128): Config(16, 64, 4, 4),
            ("float", 16): Config(64, 32, 4, 3),
            ("float", 32): Config(64, 32, 4, 3),
            ("float", 64): Config(64, 32, 4, 3),
            ("float", 128): Config(64, 16, 8, 3),
            ("few float", 16): Config(16, 64, 4, 4),
            ("few float", 32): Config(16, 64, 4, 4),
            ("few float", 64): Config(16, 32, 4, 4),
            ("few float", 128): Config(16, 32, 4, 4),
        },
        90: _HOPPER,
        100: _HOPPER,  # as good a start as any until one is tuned there
    },
)


@triton.jit
def _columns(indices, k, stop, BK: tl.constexpr, STEP: tl.constexpr):
    """Where in x the inputs `k .. k + STEP` of a stack stand: where the one block they are in has
    them, or the start of each one's block.

    Looked up one step ahead: a load of x whose address comes from a load in the same step is hardly
    pipelined.
    """
    if STEP <= BK:
        return tl.load(indices + k // BK, mask=k < stop, other=0) * BK + k % BK
    else:
        each = k + tl.arange(0, STEP)
        return tl.load(indices + each // BK, mask=each < stop, other=0) * BK


@triton.jit
def _product(
    x,  # [M, K], rows stride_x apart
    values,  # [nnz * BK, BN]
    indptr, indices, bias, gate, residual,
    y,  # [M, N], or float32 [SPLIT, M, N]
    M, N, stride_x, rows,
    BN: tl.constexpr, BK: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr,
    GROUP: tl.constexpr, SPLIT: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_m, row = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), rows, GROUP)
    part = tl.program_id(1)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BN)
    step = tl.arange(0, STEP)

    start, stop = tl.load(indptr + row) * BK, tl.load(indptr + row + 1) * BK
    if SPLIT > 1:
        share = tl.cdiv(tl.cdiv(stop - start, STEP), SPLIT) * STEP
        start = start + part * share
        stop = min(stop, start + share)

    x_rows = x + m.to(tl.int64)[:, None] * stride_x
    live = (m < M)[:, None]
    stack = values + start.to(tl.int64) * BN + step[:, None] * BN + n[None, :]
    column = _columns(indices, start, stop, BK, STEP)
    acc = tl.zeros((BLOCK_M, BN), tl.float32)
    for k in range(start, stop, STEP):
        w = stack + (k - start) * BN
        if STEP <= BK:  # one block holds the whole step
            a = tl.load(x_rows + (column + step)[None, :], mask=live, other=0)
            b = tl.load(w)
        else:
            stored = k + step < stop
            at = tl.max_contiguous(tl.multiple_of(column, BK) + step % BK, BK)
            a = tl.load(x_rows + at[None, :], mask=live & stored[None, :], other=0)
            b = tl.load(w, mask=stored[:, None], other=0)
        column = _columns(indices, k + STEP, stop, BK, STEP)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    n += row * BN
    if SPLIT > 1:
        at = part.to(tl.int64) * M * N + m.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(y + at, acc, mask=live & (n < N)[None, :])
    else:
        store_output(y, acc, bias, gate, residual, m, n, M, N, ACTIVATION)


def refuse(
    x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, out_features: int, *_: object
) -> str | None:
    if values.dim() != 3:
        return "it takes weights input by input, got pairs of inputs"
    _, bk, bn = values.shape
    if bn not in BLOCKS or bk not in BLOCKS:
        return f"it takes blocks of 16, 32, 64 or 128 by the same, got {(bn, bk)}"
    return None


def run(
    x: Tensor,  # [..., K]
    values: Tensor,  # [nnz, bk, bn]
    indptr: Tensor,
    indices: Tensor,
    out_features: int,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    y = x.new_empty((*x.shape[:-1], out_features))
    if not y.numel():
        return y
    rows_x = rows_of(x)
    (nnz, bk, bn), m, rows = values.shape, rows_x.shape[0], indptr.shape[0] - 1
    config = TABLE.choose(x.device, key(x, values))
    tiles = triton.cdiv(m, config.block_m) * rows
    split = splits(tiles, nnz * bk // (rows * config.step), _gpu.multiprocessors(x.device))
    out = y if split == 1 else x.new_empty((split, m, out_features), dtype=torch.float32)
    epilogue = (bias, flat(gate), flat(residual))
    launch(
        _product,
        (tiles, split),
        rows_x, values, indptr, indices, *epilogue, out,
        m, out_features, rows_x.stride(0), rows,
        BN=bn, BK=bk, BLOCK_M=config.block_m, STEP=config.step, GROUP=GROUP,
        SPLIT=split, ACTIVATION=activation, PRECISION=_gpu.fp32_precision(),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if split > 1:
        finish(out, *epilogue, y.view(m, out_features), activation)
    return y


def key(x: Tensor, values: Tensor, *_: object) -> tuple[str, int]:
    """The row of the table for a call."""
    width = "float" if x.dtype == torch.float32 else "half"
    few = x.numel() <= 16 * x.shape[-1]
    return (f"few {width}" if few else width, values.shape[2])
