"""Attention on the GPU: softmax(scale q k^T + mask) v, with an online softmax, over the keys that
may be seen.

A program owns BLOCK_M queries of one head and walks over its keys, STEP at a time. Without a block
pattern those are two runs: keys that every query of the tile sees, then those where causality or
the end of the keys cuts through the tile. With one, it walks the stored blocks of its row of
blocks, which may be taller and wider than its own tile:

    keys      0 . . . . . . . . . Tk                indices of a block row
    queries   [seen by all][  edge  ]       or      [c0] . . [c1] [c2] . .

Scores are kept in powers of two (log2 e is folded into the scale). Hidden keys are never read from
v: what stands there, NaN included, does not matter.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateurs.ops._backends.triton import launch
from secateurs.ops._core import gpu
from secateurs.ops._core.memory import contiguous, packed_last
from secateurs.ops._core.tuning import Config, Key, Table
from secateurs.ops.attention.operands import Operands, refuse_softcap

LOG2_E = tl.constexpr(1.4426950408889634)
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)

FEW = 16  # queries that one tile takes

_MANY = {
    80: {
        ("half", 16): Config(128, 64, 4, 3),
        ("half", 32): Config(128, 32, 4, 4),
        ("half", 64): Config(128, 32, 4, 4),
        ("half", 128): Config(128, 32, 8, 3),
        ("half", 256): Config(64, 32, 8, 2),
        ("float", 16): Config(64, 32, 4, 2),
        ("float", 32): Config(64, 32, 8, 2),
        ("float", 64): Config(64, 32, 8, 2),
        ("float", 128): Config(32, 32, 8, 2),
        ("float", 256): Config(16, 16, 4, 2),
    },
    90: {
        ("half", 16): Config(128, 64, 4, 4),
        ("half", 32): Config(128, 64, 4, 4),
        ("half", 64): Config(128, 64, 4, 4),
        ("half", 128): Config(128, 64, 8, 3),
        ("half", 256): Config(128, 32, 8, 3),
        ("float", 16): Config(64, 32, 4, 3),
        ("float", 32): Config(64, 32, 8, 3),
        ("float", 64): Config(64, 32, 8, 3),
        ("float", 128): Config(32, 32, 8, 3),
        ("float", 256): Config(16, 16, 4, 3),
    },
    100: {
        ("half", 16): Config(128, 64, 8, 4),
        ("half", 32): Config(128, 64, 8, 4),
        ("half", 64): Config(128, 64, 4, 4),
        ("half", 128): Config(128, 64, 8, 3),
        ("half", 256): Config(128, 32, 8, 2),
        ("float", 16): Config(64, 32, 4, 3),
        ("float", 32): Config(64, 32, 8, 3),
        ("float", 64): Config(32, 32, 4, 3),
        ("float", 128): Config(32, 32, 8, 3),
        ("float", 256): Config(16, 16, 4, 3),
    },
}


def _with_few(rows: dict[Key, Config]) -> dict[Key, Config]:
    """The rows for many queries, and for few the same in tiles of `FEW`."""
    tiles = {
        (f"few {width}", d): replace(config, block_m=FEW) for (width, d), config in rows.items()
    }
    return {**rows, **tiles}


# By the width of the dtype ("few ...": at most 16 queries) and the head dimension, rounded up to a
# power of two. No row spills with Triton 3.8 or 3.9, which CI compiles: ptxas gives a kernel fewer
# registers than it needs where one more block then fits a multiprocessor, each version elsewhere.
TABLE = Table(
    "attention",
    {
        80: _with_few(_MANY[80]),
        90: {**_with_few(_MANY[90]), ("few half", 128): Config(FEW, 64, 4, 4)},
        100: _with_few(_MANY[100]),
    },
)


@triton.jit
def _place(indices, partial, s, end, BLOCK: tl.constexpr):
    """The first key of step s, and the mask of its block (-1: none); without a pattern, steps are
    keys.

    Like `_visible`, looked up one step ahead: a load whose address or mask comes from a load in the
    same step is hardly pipelined.
    """
    if indices is None:
        return s, -1
    else:
        column = tl.load(indices + s // BLOCK, mask=s < end, other=0) * BLOCK + s % BLOCK
        return column, tl.load(partial + s // BLOCK, mask=s < end, other=-1)


@triton.jit
def _visible(key_mask, column, Tk, STEP: tl.constexpr):
    """Which of the keys `column .. column + STEP` exist and are not padding."""
    t = column + tl.arange(0, STEP)
    seen = t < Tk
    if key_mask is not None:
        seen = tl.load(key_mask + t, mask=seen, other=False)
    return seen


@triton.jit
def _walk(
    acc, total, top, q, k, v, key_mask, mask, indices, partial, masks, row, inside, begin, end,
    Tk, offset, scale, stride_k, stride_v, stride_mask,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the steps from begin to end into the running sums of the queries `row`.

    mask is a column of pointers to the rows of an explicit mask (bool or float), inside the rows'
    places in their block of the pattern. EDGE: some of these keys may lie behind the last one, or
    in a query's future.
    """
    each, d = tl.arange(0, STEP), tl.arange(0, BLOCK_D)
    column, which = _place(indices, partial, begin, end, BLOCK)
    seen = _visible(key_mask, column, Tk, STEP)
    for s in range(begin, end, STEP):
        t = column + each
        at_k = k + t.to(tl.int64)[None, :] * stride_k + d[:, None]
        at_v = v + t.to(tl.int64)[:, None] * stride_v + d[None, :]
        if EDGE or key_mask is not None:
            keys = tl.load(at_k, mask=seen[None, :] & (d < D)[:, None], other=0)  # [D, STEP]
            states = tl.load(at_v, mask=seen[:, None] & (d < D)[None, :], other=0)  # [STEP, D]
        elif BLOCK_D > D:
            keys = tl.load(at_k, mask=(d < D)[:, None], other=0)
            states = tl.load(at_v, mask=(d < D)[None, :], other=0)
        else:
            keys, states = tl.load(at_k), tl.load(at_v)

        scores = tl.dot(q, keys, input_precision=PRECISION) * scale
        if mask is not None:
            at = mask + t.to(tl.int64)[None, :] * stride_mask
            tile = tl.load(at, mask=seen[None, :], other=0)
            if tile.dtype.is_floating():
                # The lowest finite value stays finite: it hides a key only beside others.
                added = tl.maximum(tile.to(tl.float32), -1e38) * LOG2_E
                scores += tl.where(tile == float("-inf"), float("-inf"), added)
            else:
                scores = tl.where(tile, scores, float("-inf"))
        if indices is not None:
            tile = masks + which.to(tl.int64) * (BLOCK * BLOCK) + inside[:, None] * BLOCK
            cut = (tl.zeros_like(inside) + which >= 0)[:, None]
            allowed = tl.load(tile + (s % BLOCK + each)[None, :], mask=cut, other=True)
            scores = tl.where(allowed, scores, float("-inf"))
        if EDGE or key_mask is not None:
            scores = tl.where(seen[None, :], scores, float("-inf"))
        if EDGE and CAUSAL:
            scores = tl.where(t[None, :] <= row[:, None] + offset, scores, float("-inf"))

        column, which = _place(indices, partial, s + STEP, end, BLOCK)
        seen = _visible(key_mask, column, Tk, STEP)
        new = tl.maximum(top, tl.max(scores, 1))
        level = tl.where(new == float("-inf"), 0.0, new)  # no key seen yet
        weights = tl.exp2(scores - level[:, None])
        fade = tl.exp2(top - level)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        acc = tl.dot(weights.to(states.dtype), states, acc, input_precision=PRECISION)
        top = new
    return acc, total, top


@triton.jit
def _attention(
    q, k, v, kv_of, key_mask, mask, indptr, indices, partial, masks,
    out,  # [B, Tq, Hq, D]
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt, stride_mb, stride_mh, stride_mq, stride_mk,
    heads, group, Tq, Tk, block_rows, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK: tl.constexpr, PER_HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if CAUSAL:  # the longest rows first
        tile = tl.num_programs(0) - 1 - tile
    first = tile * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    offset = Tk - Tq
    hk = h // group if kv_of is None else tl.load(kv_of + h)

    q += b * stride_qb + h.to(tl.int64) * stride_qh
    k += b * stride_kb + hk.to(tl.int64) * stride_kh
    v += b * stride_vb + hk.to(tl.int64) * stride_vh
    live = (row < Tq)[:, None] & (d < D)[None, :]
    queries = tl.load(q + row.to(tl.int64)[:, None] * stride_qt + d[None, :], mask=live, other=0)
    if key_mask is not None:
        key_mask += b * Tk
    if mask is not None:
        existing = tl.minimum(row, Tq - 1).to(tl.int64)
        mask += b * stride_mb + h.to(tl.int64) * stride_mh + existing[:, None] * stride_mq

    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if indptr is not None:
        block_row = first // BLOCK
        if PER_HEAD:
            block_row += h * (block_rows + 1)
        acc, total, top = _walk(
            acc, total, top, queries, k, v, key_mask, mask, indices, partial, masks,
            row, first % BLOCK + tl.arange(0, BLOCK_M),
            tl.load(indptr + block_row) * BLOCK, tl.load(indptr + block_row + 1) * BLOCK,
            Tk, offset, scale, stride_kt, stride_vt, stride_mk,
            D, BLOCK_D, STEP, BLOCK, True, CAUSAL, PRECISION,
        )  # fmt: skip
    else:
        clear, end = Tk // STEP * STEP, Tk
        if CAUSAL:
            clear = min(clear, max(first + offset + 1, 0) // STEP * STEP)
            end = min(end, max(first + BLOCK_M + offset, 0))
        acc, total, top = _walk(
            acc, total, top, queries, k, v, key_mask, mask, None, None, None, row, None, 0, clear,
            Tk, offset, scale, stride_kt, stride_vt, stride_mk,
            D, BLOCK_D, STEP, BLOCK, False, CAUSAL, PRECISION,
        )  # fmt: skip
        acc, total, top = _walk(
            acc, total, top, queries, k, v, key_mask, mask, None, None, None, row, None, clear, end,
            Tk, offset, scale, stride_kt, stride_vt, stride_mk,
            D, BLOCK_D, STEP, BLOCK, True, CAUSAL, PRECISION,
        )  # fmt: skip

    acc = acc / tl.where(total == 0, 1.0, total)[:, None]  # a query that saw nothing: zeros
    out += (b * Tq * heads + h) * D
    at_out = out + row.to(tl.int64)[:, None] * (heads * D) + d[None, :]
    tl.store(at_out, acc.to(out.dtype.element_ty), mask=live)


def refuse(operands: Operands) -> str | None:
    q = operands.q
    if q.shape[-1] not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"it takes head dimensions {known}, got {q.shape[-1]}"
    return refuse_softcap(operands)


def run(operands: Operands) -> Tensor:
    q, k, v, kv_of, key_mask, mask, causal, scale, *_ = operands
    (b, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    out = operands.new_output()
    if not out.numel():
        return out
    q, k, v = (packed_last(t) for t in (q, k, v))
    if mask is not None:
        mask = mask.expand(b, hq, tq, tk)
    config = TABLE.choose(q.device, key(operands))
    block_m = min(config.block_m, max(16, triton.next_power_of_2(tq)))
    step, block, block_rows, per_head = config.step, 0, 0, False
    indptr, indices, partial, masks = operands.pattern()
    if indptr is not None and masks is not None:
        block = masks.shape[-1]
        block_m, step = min(block_m, block), min(step, block)
        block_rows, per_head = indptr.shape[1] - 1, indptr.shape[0] > 1
    launch(
        _attention,
        (triton.cdiv(tq, block_m), hq, b),
        q, k, v, contiguous(kv_of), contiguous(key_mask), mask,
        indptr, indices, partial, masks, out,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *((0,) * 4 if mask is None else mask.stride()),
        hq, max(hq // hkv, 1), tq, tk, block_rows, scale * math.log2(math.e),
        D=d, BLOCK_D=triton.next_power_of_2(d), BLOCK_M=block_m, STEP=step, CAUSAL=causal,
        BLOCK=block, PER_HEAD=per_head, PRECISION=gpu.fp32_precision(),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out


def key(operands: Operands) -> tuple[str, int]:
    """Return the row of the table for a call."""
    q = operands.q
    width = "float" if q.dtype == torch.float32 else "half"
    few = q.shape[2] <= FEW
    return (f"few {width}" if few else width, triton.next_power_of_2(q.shape[-1]))
