"""float16 and bfloat16 on NVIDIA GPUs by our own kernel (csrc/cuda/attention)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous
from secateurs.ops.attention.operands import Operands, refuse_softcap

HEAD_DIMS = (32, 64, 80, 96, 128)
BLOCKS = (16, 32, 64, 128)


def _refuse(operands: Operands) -> str | None:
    q, mask, masks = operands.q, operands.mask, operands.pattern_masks
    if mask is not None:
        return "it takes causality, padding and block patterns, but no explicit mask"
    if q.shape[-1] not in HEAD_DIMS:
        return f"it takes heads of 32, 64, 80, 96 or 128, got {q.shape[-1]}"
    if masks is not None and masks.shape[-1] not in BLOCKS:
        return f"it takes patterns of blocks of 16, 32, 64 or 128, got {masks.shape[-1]}"
    if not operands.scale > 0:
        return f"it takes a scale above 0, got {operands.scale}"
    if max(q.shape[0], q.shape[1]) > 65535:
        return f"it takes at most 65535 sequences and heads, got {tuple(q.shape[:2])}"
    return refuse_softcap(operands) or cuda.refuse(q)


def _run(operands: Operands) -> Tensor:
    out = operands.new_output()
    if not out.numel():
        return out
    (b, hq, tq, d), (hkv, tk) = operands.q.shape, operands.k.shape[1:3]
    q, k, v = _aligned(operands.q), _aligned(operands.k), _aligned(operands.v)
    kv_of, key_mask = contiguous(operands.kv_of), contiguous(operands.key_mask)
    indptr, indices, partial, masks = (contiguous(tensor) for tensor in operands.pattern())
    block, rows, per_head, seen = 0, 0, False, tk
    if indptr is not None and indices is not None and masks is not None:
        block, rows, per_head = masks.shape[-1], indptr.shape[1] - 1, indptr.shape[0] > 1
        seen = indices.numel() * block // (indptr.shape[0] * rows)
    sizes = {"batch": b, "heads": hq, "kv_heads": hkv, "queries": tq, "keys": tk, "dim": d}
    where = cuda.launch(q)
    tile_queries, tile_heads, parts, floats = cuda.kernels().cut_attention(
        device=where["device"],
        **sizes,
        pattern_block=block,
        apart=per_head or kv_of is not None,
        seen=seen,
    )
    sums = q.new_empty(floats, dtype=torch.float32)
    cuda.kernels().attention(
        **where,
        q=q.data_ptr(),
        q_stride=q.stride(),
        k=k.data_ptr(),
        k_stride=k.stride(),
        v=v.data_ptr(),
        v_stride=v.stride(),
        **sizes,
        kv_of=address(kv_of),
        key_mask=address(key_mask),
        causal=operands.causal,
        scale=operands.scale,
        pattern_indptr=address(indptr),
        pattern_indices=address(indices),
        pattern_partial=address(partial),
        pattern_masks=address(masks),
        pattern_block=block,
        pattern_rows=rows,
        pattern_per_head=per_head,
        out=out.data_ptr(),
        tile_queries=tile_queries,
        tile_heads=tile_heads,
        parts=parts,
        partial=sums.data_ptr(),
    )
    return out


def _aligned(x: Tensor) -> Tensor:
    """Rows contiguous and on 16-byte boundaries, as projections leave them; else a copy."""
    fits = x.stride(3) == 1 and all(stride % 8 == 0 for stride in x.stride()[:3])
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


BACKEND = Backend("cuda", _refuse, _run)
