"""The operands of `attention`, and whether they fit together."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.errors import OperandError

PatternTensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Operands(NamedTuple):
    """One call of `attention`, in the order of its schema; all four tensors of a pattern, or
    none."""

    q: Tensor  # [B, Hq, Tq, D]
    k: Tensor  # [B, Hkv, Tk, D]
    v: Tensor  # [B, Hkv, Tk, D]
    kv_of: Tensor | None  # int32 [Hq]
    key_mask: Tensor | None  # bool [B, Tk]
    mask: Tensor | None  # bool or float, broadcastable to [B, Hq, Tq, Tk]
    causal: bool
    scale: float
    pattern_indptr: Tensor | None  # int32 [Hq or 1, block rows + 1]
    pattern_indices: Tensor | None  # int32 [blocks]
    pattern_partial: Tensor | None  # int32 [blocks]
    pattern_masks: Tensor | None  # bool [P, block, block]
    short_products: bool = False
    softcap: float | None = None

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[B, Tq, Hq, D]`."""
        b, hq, tq, d = self.q.shape
        return self.q.new_empty((b, tq, hq, d))

    def pattern(self) -> PatternTensors:
        """Return indptr, indices, partial and masks of the block pattern."""
        return self[8:12]


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    q, k, v, kv_of, key_mask, mask, *_ = operands
    blocks, cap = operands.pattern(), operands.softcap
    if cap is not None and not 0 < cap < math.inf:
        raise OperandError(f"expected a finite softcap above 0, got {cap}")
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise OperandError(
            f"expected q, k and v [B, H, T, D], got {q.dim()}, {k.dim()}, {v.dim()} dims"
        )
    (b, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    if k.shape != v.shape or k.shape[0] != b or k.shape[3] != d:
        raise OperandError(
            f"expected k and v of shape {(b, 'Hkv', 'Tk', d)} to go with q, got {tuple(k.shape)} "
            f"and {tuple(v.shape)}"
        )
    check_kv_of(hq, hkv, kv_of)
    check_key_mask(key_mask, b, tk)
    if mask is not None:
        full = (b, hq, tq, tk)
        fits = mask.dim() <= 4 and all(
            m in (1, f) for m, f in zip(mask.shape[::-1], full[::-1], strict=False)
        )
        if not fits:
            raise OperandError(f"expected a mask broadcastable to {full}, got {tuple(mask.shape)}")
        if mask.dtype not in (torch.bool, q.dtype, torch.float32):
            raise OperandError(f"expected a mask of bool or {q.dtype}, got {mask.dtype}")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise OperandError(
            f"expected k and v in the dtype of q, {q.dtype}, got {k.dtype}, {v.dtype}"
        )
    _check_pattern(hq, tq, *blocks)
    device = q.device
    for tensor in (k, v, kv_of, key_mask, mask, *blocks):
        if tensor is not None and tensor.device != device:
            raise OperandError(
                f"expected all tensors on {device} like q, got one on {tensor.device}"
            )


def refuse_softcap(operands: Operands) -> str | None:
    """Tell why no kernel runs a call whose scores are capped."""
    return None if operands.softcap is None else "it does not cap scores"


def check_key_mask(key_mask: Tensor | None, batch: int, keys: int) -> None:
    """Raise OperandError unless `key_mask` says of each key whether it may be attended."""
    if key_mask is not None and (key_mask.shape != (batch, keys) or key_mask.dtype != torch.bool):
        raise OperandError(
            f"expected key_mask bool of shape {(batch, keys)}, got {key_mask.dtype} "
            f"{tuple(key_mask.shape)}"
        )


def check_kv_of(hq: int, hkv: int, kv_of: Tensor | None) -> None:
    """Raise OperandError unless `kv_of` gives each of `hq` query heads a key/value head."""
    if kv_of is None:
        if hq and (not hkv or hq % hkv):
            raise OperandError(f"expected kv_of, since {hq} query heads do not divide among {hkv}")
    elif kv_of.shape != (hq,) or kv_of.dtype != torch.int32:
        raise OperandError(
            f"expected kv_of int32 of shape {(hq,)}, got {kv_of.dtype} {tuple(kv_of.shape)}"
        )


def _check_pattern(
    hq: int,
    tq: int,
    indptr: Tensor | None,
    indices: Tensor | None,
    partial: Tensor | None,
    masks: Tensor | None,
) -> None:
    if indptr is None and indices is None and partial is None and masks is None:
        return
    if indptr is None or indices is None or partial is None or masks is None:
        raise OperandError("expected all four tensors of a pattern, or none")
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2] or masks.dtype != torch.bool:
        raise OperandError(
            f"expected the masks of a pattern as bool [P, block, block], got {masks.dtype} "
            f"{tuple(masks.shape)}"
        )
    if any(t.dtype != torch.int32 for t in (indptr, indices, partial)):
        raise OperandError("expected the indices of a pattern as int32")
    if indices.dim() != 1 or partial.shape != indices.shape:
        raise OperandError(
            f"expected a mask for each of {tuple(indices.shape)} blocks, got {tuple(partial.shape)}"
        )
    block = max(masks.shape[1], 1)
    rows = (tq + block - 1) // block
    if indptr.dim() != 2 or indptr.shape[0] not in (1, hq) or indptr.shape[1] != rows + 1:
        raise OperandError(
            f"expected a pattern for {hq} heads (or 1 for all) and {rows} rows of blocks of "
            f"{block}, got indptr {tuple(indptr.shape)}"
        )


def flops(operands: Operands) -> int:
    """Count the operations on the blocks of scores that exist. Causality is not counted, as torch
    counts its own attention."""
    (b, heads, tq, d), tk = operands.q.shape, operands.k.shape[2]
    scores = heads * tq * tk
    indptr, indices, _, masks = operands.pattern()
    if indptr is not None and indices is not None and masks is not None:
        alike = heads if indptr.shape[0] == 1 else 1
        scores = min(scores, alike * indices.numel() * masks.shape[-1] ** 2)
    return 4 * b * scores * d
