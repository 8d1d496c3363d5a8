"""float32 on the CPU by our own kernel (csrc/cpu/body/attention.h)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.errors import OperandError
from secateurs.ops import cpu
from secateurs.ops._dispatch import Backend


def _refuse(q: Tensor, *rest: object) -> str | None:
    if any(tensor is not None for tensor in rest[7:]):
        return "has no kernel for block patterns"
    if q.device.type != "cpu":
        return f"runs on the CPU, got tensors on {q.device}"
    if q.dtype != torch.float32:
        return f"takes float32, got {q.dtype}"
    return None


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_of: Tensor | None,
    key_mask: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    *_no_pattern: None,
) -> Tensor:
    (b, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    out = q.new_empty((b, tq, hq, d))
    q, k, v = _rows(q), _rows(k), _rows(v)
    kv_of = _groups(hq, hkv) if kv_of is None else kv_of.contiguous()
    key_mask = None if key_mask is None else key_mask.contiguous()
    mask = None if mask is None else _additive(mask, (b, hq, tq, tk))
    try:
        _C_cpu.attention(
            cpu.isa_number(),
            q.data_ptr(),
            q.stride()[:3],
            k.data_ptr(),
            k.stride()[:3],
            v.data_ptr(),
            v.stride()[:3],
            b,
            hq,
            hkv,
            tq,
            tk,
            d,
            kv_of.data_ptr(),
            0 if key_mask is None else key_mask.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            (0, 0, 0) if mask is None else mask.stride()[:3],
            causal,
            scale,
            out.data_ptr(),
            torch.get_num_threads(),
        )
    except ValueError as error:
        raise OperandError(str(error)) from None
    return out


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


@lru_cache(maxsize=64)
def _groups(hq: int, hkv: int) -> Tensor:
    """Each key/value head serves as many query heads as the others, neighbours together."""
    return torch.arange(hq, dtype=torch.int32) // max(hq // max(hkv, 1), 1)


def _additive(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    if mask.dim() == 0 or mask.shape[-1] != shape[3]:
        mask = mask.expand(*mask.shape[:-1], shape[3]).contiguous()
    return _rows(mask.expand(shape))


BACKEND = Backend("cpu", _refuse, _run)
