"""float16 and bfloat16 on NVIDIA GPUs by our own kernel (csrc/cuda/attention.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend

HEAD_DIMS = (32, 64, 80, 96, 128)
BLOCKS = (16, 32, 64, 128)


def _refuse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_of: Tensor | None,
    key_mask: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    pattern_indptr: Tensor | None,
    pattern_indices: Tensor | None,
    pattern_partial: Tensor | None,
    pattern_masks: Tensor | None,
) -> str | None:
    if mask is not None:
        return "it takes causality, padding and block patterns, but no explicit mask"
    if q.shape[-1] not in HEAD_DIMS:
        return f"it takes heads of 32, 64, 80, 96 or 128, got {q.shape[-1]}"
    if pattern_masks is not None and pattern_masks.shape[-1] not in BLOCKS:
        return f"it takes patterns of blocks of 16, 32, 64 or 128, got {pattern_masks.shape[-1]}"
    if max(q.shape[0], q.shape[1]) > 65535:
        return f"it takes at most 65535 sequences and heads, got {tuple(q.shape[:2])}"
    return cuda.refuse(q)


def _run(
    q: Tensor,  # [B, Hq, Tq, D]
    k: Tensor,  # [B, Hkv, Tk, D]
    v: Tensor,  # [B, Hkv, Tk, D]
    kv_of: Tensor | None,
    key_mask: Tensor | None,
    _mask: None,
    causal: bool,
    scale: float,
    *pattern: Tensor | None,
) -> Tensor:
    (b, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    out = q.new_empty((b, tq, hq, d))
    if not out.numel():
        return out
    q, k, v = map(_aligned, (q, k, v))
    kv_of = None if kv_of is None else kv_of.contiguous()
    key_mask = None if key_mask is None else key_mask.contiguous()
    kept = [None if t is None else t.contiguous() for t in pattern]
    indptr, indices, _, masks = kept
    block, rows, per_head, seen = 0, 0, False, tk
    if indptr is not None and indices is not None and masks is not None:
        block, rows, per_head = masks.shape[-1], indptr.shape[1] - 1, indptr.shape[0] > 1
        seen = indices.numel() * block // (indptr.shape[0] * rows)
    sizes, place = (b, hq, hkv, tq, tk, d), cuda.place(q)
    apart = per_head or kv_of is not None
    how, floats = cuda.kernels().cut_attention(place[0], sizes, block, apart, seen)
    partial = q.new_empty(floats, dtype=torch.float32)
    cuda.kernels().attention(
        place,
        cuda.dtype(q),
        *((t.data_ptr(), *t.stride()[:3]) for t in (q, k, v)),
        sizes,
        cuda.address(kv_of),
        cuda.address(key_mask),
        causal,
        scale,
        (*map(cuda.address, kept), block, rows, per_head),
        out.data_ptr(),
        how,
        partial.data_ptr(),
    )
    return out


def _aligned(x: Tensor) -> Tensor:
    """Rows contiguous and on 16-byte boundaries, as projections leave them; else a copy."""
    fits = x.stride(3) == 1 and all(stride % 8 == 0 for stride in x.stride()[:3])
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


BACKEND = Backend("cuda", _refuse, _run)
