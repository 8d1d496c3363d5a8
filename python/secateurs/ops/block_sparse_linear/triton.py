"""Block-sparse linear on the GPU: y = act(x W^T + bias) * multiplier + residual.

The blocks of block row r, stacked, are one matrix of `count * bk` inputs by `bn` outputs,
contiguous in `values`. A program owns BLOCK_M rows of x and one block row; it walks along that
stack in steps of STEP inputs, which may be a part of a block or several blocks, and looks up where
in x each block's inputs stand:

                 inputs of x                       stack of block row r
          . . [c0] . [c1] . . [c2]                   [ b0 ]
    rows  . . [  ] . [  ] . . [  ]          @        [ b1 ]      =   y[rows, r*bn : (r+1)*bn]
          . . [  ] . [  ] . . [  ]                   [ b2 ]

Tiles of y go to programs in groups of rows (L2). Where those are too few to fill the GPU (few rows
of x, long block rows), the stored blocks are shared out instead: a block row gets one program for
each `split` of its blocks and one more, so that no program has more than `split` of them however
uneven the rows are. Each writes its float32 sum, and a second kernel adds them in a fixed order.

Both operands are regular, so where a Config asks for it they come by tensor descriptors, made on
the host at each launch: nothing to allocate, and a CUDA graph keeps them as arguments.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from secateurs.ops._backends.triton import (
    epilogue_of,
    finish,
    first_share,
    launch,
    least_steps,
    store_output,
    store_share,
    tile_of,
)
from secateurs.ops._core import gpu
from secateurs.ops._core.memory import rows_of
from secateurs.ops._core.tuning import Config, Table
from secateurs.ops.block_sparse_linear.operands import Operands

BLOCKS = (16, 32, 64, 128)
GROUP = 8

_MANY = 1024  # rows of x, beyond which tiles of 256 fill a GPU

_HOPPER = {
    ("many half", 64): Config(256, 64, 8, 4, descriptors=True),
    # 256 rows would spill where bias, activation and residual follow (Triton 3.9).
    ("many half", 128): Config(128, 64, 8, 4, descriptors=True),
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
# that the weight's bytes are all that counts, "many ...": of 64 outputs and more, larger tiles,
# which read the weight less often) and by bn. A stage holds (block_m + bn) * step elements.
TABLE = Table(
    "block_sparse_linear",
    {
        80: {
            ("many half", 64): Config(128, 64, 4, 4),
            ("many half", 128): Config(128, 32, 8, 4),
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
        # As good a start as any until one is tuned there, but for what spills on Triton 3.6.
        100: {**_HOPPER, ("half", 128): Config(128, 32, 8, 5)},
    },
    descriptors=True,
)


@triton.jit
def _columns(indices, k, stop, BK: tl.constexpr, STEP: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Where in x the inputs `k .. k + STEP` of a stack stand: the first one, where a descriptor
    takes the whole step from one block, or the start of each one's block.

    Looked up one step ahead: a load of x whose address comes from a load in the same step is hardly
    pipelined. Triton 3.6 wants a tensor for that, even where all of it is the same.
    """
    if DESCRIPTORS:
        return tl.load(indices + k // BK, mask=k < stop, other=0) * BK + k % BK
    else:
        each = k + tl.arange(0, STEP)
        return tl.load(indices + each // BK, mask=each < stop, other=0) * BK


@triton.jit
def _row_of(indptr, share, rows, split):
    """The block row whose partial products include the number `share`."""
    row = -1
    for start in range(0, rows, 1024):
        each = start + tl.arange(0, 1024)
        begun = (first_share(indptr, tl.minimum(each, rows - 1), split) <= share) & (each < rows)
        row += tl.sum(begun.to(tl.int32))
    return row


@triton.jit
def _product(
    x,  # [M, K], rows stride_x apart; or its descriptor, tiles [BLOCK_M, STEP]
    values,  # [nnz * BK, BN]; or its descriptor, tiles [STEP, BN]
    indptr, indices, bias, multiplier, residual,
    y,  # [M, N], or float32 [shares, M, BN]
    M, N, stride_x, rows, split, shares,
    BN: tl.constexpr, BK: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr,
    GROUP: tl.constexpr, SPLIT: tl.constexpr, DESCRIPTORS: tl.constexpr,
    SPECIALISED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_m, share = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), shares, GROUP)
    row = _row_of(indptr, share, rows, split) if SPLIT else share
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BN)
    step = tl.arange(0, STEP)

    start, stop = tl.load(indptr + row) * BK, tl.load(indptr + row + 1) * BK
    if SPLIT:
        first = first_share(indptr, row, split)
        sharers = first_share(indptr, row + 1, split) - first
        length = tl.cdiv(tl.cdiv(stop - start, STEP), sharers) * STEP
        start += (share - first) * length
        stop = min(stop, start + length)

    column = _columns(indices, start, stop, BK, STEP, DESCRIPTORS)
    acc = tl.zeros((BLOCK_M, BN), tl.float32)
    if not DESCRIPTORS:
        x_rows = x + m.to(tl.int64)[:, None] * stride_x
        live = (m < M)[:, None]
        stack = values + start.to(tl.int64) * BN + step[:, None] * BN + n[None, :]
    for k in tl.range(start, stop, STEP, warp_specialize=SPECIALISED):
        if DESCRIPTORS:
            a = x.load([tile_m * BLOCK_M, column])
            b = values.load([k, 0])
        elif STEP <= BK:  # one block holds the whole step
            at = tl.max_contiguous(tl.multiple_of(column + k % BK, STEP) + step, STEP)
            a = tl.load(x_rows + at[None, :], mask=live, other=0)
            b = tl.load(stack + (k - start) * BN)
        else:
            stored = k + step < stop
            at = tl.max_contiguous(tl.multiple_of(column, BK) + step % BK, BK)
            a = tl.load(x_rows + at[None, :], mask=live & stored[None, :], other=0)
            b = tl.load(stack + (k - start) * BN, mask=stored[:, None], other=0)
        column = _columns(indices, k + STEP, stop, BK, STEP, DESCRIPTORS)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    if SPLIT:
        store_share(y, acc, share, m, M, BN)
    else:
        n += row * BN
        store_output(y, acc, bias, multiplier, residual, m, n, M, N, ACTIVATION)


def refuse(operands: Operands) -> str | None:
    values = operands.values
    if values.dim() != 3:
        return "it takes weights input by input, got pairs of inputs"
    _, bk, bn = values.shape
    if bn not in BLOCKS or bk not in BLOCKS:
        return f"it takes blocks of 16, 32, 64 or 128 by the same, got {(bn, bk)}"
    return None


def run(operands: Operands) -> Tensor:
    x, values, indptr, indices, out_features, _, activation, *_ = operands
    y = operands.new_output()
    if not y.numel():
        return y
    rows_x = rows_of(x)
    (nnz, bk, bn), m, rows = values.shape, rows_x.shape[0], indptr.shape[0] - 1
    config = TABLE.choose(x.device, key(operands))
    step = config.step
    described = config.descriptors and nnz > 0 and _aligned(rows_x) and _aligned(values)
    matrices: tuple[Any, Any] = (rows_x, values)
    if described:
        step = min(step, bk)
        matrices = (
            TensorDescriptor.from_tensor(rows_x, [config.block_m, step]),
            TensorDescriptor.from_tensor(values.view(nnz * bk, bn), [step, bn]),
        )
    tiles_m = triton.cdiv(m, config.block_m)
    least = triton.cdiv(least_steps(m) * step, bk)
    split = _split(nnz, rows, tiles_m, least, gpu.multiprocessors(x.device))
    shares = nnz // split + rows if split else rows
    out = x.new_empty((shares, m, bn), dtype=torch.float32) if split else y
    epilogue = epilogue_of(operands)
    launch(
        _product,
        (tiles_m * shares,),
        *matrices, indptr, indices, *epilogue, out,
        m, out_features, rows_x.stride(0), rows, split, shares,
        BN=bn, BK=bk, BLOCK_M=config.block_m, STEP=step, GROUP=GROUP, SPLIT=split > 0,
        DESCRIPTORS=described, SPECIALISED=config.specialised, ACTIVATION=activation,
        PRECISION=gpu.fp32_precision(), num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if split:
        finish(out, indptr, split, epilogue, y.view(m, out_features), activation)
    return y


def key(operands: Operands) -> tuple[str, int]:
    """Return the row of the table for a call."""
    x, values = operands.x, operands.values
    width = "float" if x.dtype == torch.float32 else "half"
    rows, bn = x.numel() // max(1, x.shape[-1]), values.shape[2]
    many = width == "half" and bn >= 64 and rows > _MANY
    kind = "few " if rows <= 16 else "many " if many else ""
    return (kind + width, bn)


def _split(nnz: int, rows: int, tiles_m: int, least: int, multiprocessors: int) -> int:
    """How many stored blocks are worth a program, where the tiles do not fill the GPU; else 0."""
    if tiles_m * rows >= multiprocessors or nnz < 2 * rows * least:
        return 0
    return max(least, triton.cdiv(nnz, 2 * multiprocessors // tiles_m - rows))


def _aligned(x: Tensor) -> bool:
    """Whether the copy engine takes a tensor of contiguous rows: in pieces of 16 bytes."""
    width = x.element_size()
    return x.data_ptr() % 16 == 0 and all(s >= 1 and s * width % 16 == 0 for s in x.stride()[:-1])
