"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/body/attention.h)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.errors import OperandError
from secateurs.lasting import lasting
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend

_DTYPES = (torch.float32, torch.bfloat16)  # in the order of Dtype in csrc/cpu/kernels.h


def _refuse(q: Tensor, *_: object) -> str | None:
    if q.device.type != "cpu":
        return f"runs on the CPU, got tensors on {q.device}"
    if q.dtype not in _DTYPES:
        return f"takes float32 and bfloat16, got {q.dtype}"
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
    *pattern: Tensor | None,
) -> Tensor:
    (b, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    out = q.new_empty((b, tq, hq, d))
    q, k, v = _rows(q), _rows(k), _rows(v)
    kv_of = key_value_heads(hq, hkv) if kv_of is None else kv_of.contiguous()
    key_mask = None if key_mask is None else key_mask.contiguous()
    mask = None if mask is None else _additive(mask, (b, hq, tq, tk))
    blocks = [tensor.contiguous() for tensor in pattern if tensor is not None]
    try:
        _C_cpu.attention(
            cpu.isa_number(),
            _DTYPES.index(q.dtype),
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
            cpu.address(key_mask),
            cpu.address(mask),
            (0, 0, 0) if mask is None else mask.stride()[:3],
            causal,
            scale,
            _pattern(blocks),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    except ValueError as error:
        raise OperandError(str(error)) from None
    return out


def _pattern(blocks: list[Tensor]) -> tuple[int, int, int, int, int, int, bool]:
    """Where the tensors of a pattern lie, its block, block rows, and whether heads differ."""
    if not blocks:
        return (0, 0, 0, 0, 0, 0, False)
    indptr, indices, partial, masks = blocks
    heads, ends = indptr.shape
    return (
        indptr.data_ptr(),
        indices.data_ptr(),
        partial.data_ptr(),
        masks.data_ptr(),
        masks.shape[-1],
        ends - 1,
        heads > 1,
    )


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


@lru_cache(maxsize=64)
@lasting
def key_value_heads(hq: int, hkv: int) -> Tensor:
    """`kv_of` where each key/value head serves as many query heads as the others, neighbours
    together."""
    return torch.arange(hq, dtype=torch.int32, device="cpu") // max(hq // max(hkv, 1), 1)


def _additive(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    mask = mask.float()
    if mask.dim() == 0 or mask.shape[-1] != shape[3]:
        mask = mask.expand(*mask.shape[:-1], shape[3]).contiguous()
    return _rows(mask.expand(shape))


BACKEND = Backend("cpu", _refuse, _run)
