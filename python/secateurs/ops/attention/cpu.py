"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/kernels/attention/attention.h)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.lasting import lasting
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous, packed_last
from secateurs.ops.attention.operands import Operands, refuse_softcap


def _refuse(operands: Operands) -> str | None:
    return cpu.refuse(operands.q) or refuse_softcap(operands)


def _run(operands: Operands) -> Tensor:
    q, k, v, kv_of, key_mask, mask, causal, scale, *_ = operands
    indptr, indices, partial, masks = operands.pattern()
    (b, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    out = operands.new_output()
    q, k, v = packed_last(q), packed_last(k), packed_last(v)
    kv_of = key_value_heads(hq, hkv) if kv_of is None else kv_of.contiguous()
    key_mask = contiguous(key_mask)
    mask = None if mask is None else _additive(mask, (b, hq, tq, tk))
    if indptr is not None:
        indptr, indices = contiguous(indptr), contiguous(indices)
        partial, masks = contiguous(partial), contiguous(masks)
    try:
        cpu.kernels.attention(
            isa=cpu.isa_number(),
            dtype=cpu.DTYPES[q.dtype],
            q=q.data_ptr(),
            q_stride=q.stride(),
            k=k.data_ptr(),
            k_stride=k.stride(),
            v=v.data_ptr(),
            v_stride=v.stride(),
            batch=b,
            heads=hq,
            kv_heads=hkv,
            queries=tq,
            keys=tk,
            dim=d,
            kv_of=kv_of.data_ptr(),
            key_mask=address(key_mask),
            mask=address(mask),
            mask_stride=(0, 0, 0, 0) if mask is None else mask.stride(),
            causal=causal,
            scale=scale,
            pattern_indptr=address(indptr),
            pattern_indices=address(indices),
            pattern_partial=address(partial),
            pattern_masks=address(masks),
            pattern_block=0 if masks is None else masks.shape[-1],
            pattern_rows=0 if indptr is None else indptr.shape[1] - 1,
            pattern_per_head=indptr is not None and indptr.shape[0] > 1,
            short_products=operands.short_products,
            out=out.data_ptr(),
            threads=torch.get_num_threads(),
        )
    except ValueError as error:
        raise OperandError(str(error)) from None
    return out


@lru_cache(maxsize=64)
@lasting
def key_value_heads(hq: int, hkv: int) -> Tensor:
    """Return `kv_of` where each key/value head serves as many query heads as the others, neighbours
    together."""
    return torch.arange(hq, dtype=torch.int32, device="cpu") // max(hq // max(hkv, 1), 1)


def _additive(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    mask = mask.float()
    if mask.dim() == 0 or mask.shape[-1] != shape[3]:
        mask = mask.expand(*mask.shape[:-1], shape[3]).contiguous()
    return packed_last(mask.expand(shape))


BACKEND = Backend("cpu", _refuse, _run)
