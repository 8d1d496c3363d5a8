"""softmax(scale q k^T + mask) v: uneven numbers of query and key heads, padding, block patterns."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.gpu import triton_backend
from secateurs.ops._core.register import register
from secateurs.ops.attention import cpu, cuda, reference


class Pattern(Protocol):
    """Which blocks of the score matrix exist, as `secateurs.attention_patterns.BlockLayout`
    describes."""

    indptr: Tensor  # int32 [Hq or 1, ceil(Tq / block) + 1]
    indices: Tensor  # int32 [blocks]
    partial: Tensor  # int32 [blocks], -1 or an index into masks
    masks: Tensor  # bool [P, block, block]
    shape: tuple[int, int]  # (Tq, Tk)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kv_of: Tensor | None = None,
    key_mask: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    pattern: Pattern | None = None,
) -> Tensor:
    """Attention of every query head over its key/value head: `[B, Tq, Hq, D]`, contiguous.

    A query that may attend to nothing yields zeros. What stands at a key that `key_mask` hides does
    not matter, NaN included. That does not hold for a pattern: in bfloat16 on AMX the 16 keys
    beside a stored block of 16 meet weights of zero, which a NaN or infinity among their values
    outlives.

    Args:
        q: `[B, Hq, Tq, D]`, any strides; so are k and v.
        k: `[B, Hkv, Tk, D]`.
        v: `[B, Hkv, Tk, D]`.
        kv_of: int32 `[Hq]`, the key/value head of each query head; None: groups of Hq / Hkv
            neighbours share one. Kernels of GPUs trust it: no call waits to read it there.
        key_mask: bool `[B, Tk]`, True where a key may be attended.
        mask: bool (True: may be attended) or float (added to the scaled scores), broadcastable to
            `[B, Hq, Tq, Tk]`.
        causal: query i sees keys up to `i + Tk - Tq`.
        scale: of the scores; None: `D ** -0.5`.
        pattern: the blocks of scores that exist, for each head or for all; what else hides a key
            hides it still. Its indices are trusted: make them with
            `secateurs.attention_patterns.layout`, or `validate` them.

    Raises:
        OperandError: the tensors do not fit together.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(*arguments(q, k, v, kv_of, key_mask, mask, causal, scale, pattern))


def arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_of: Tensor | None = None,
    key_mask: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    pattern: Pattern | None = None,
) -> tuple[Any, ...]:
    """The same call in the order of the schema."""
    if scale is None:
        scale = max(q.shape[-1], 1) ** -0.5
    blocks: tuple[Tensor | None, ...] = (None,) * 4
    if pattern is not None:
        if tuple(pattern.shape) != (q.shape[2], k.shape[2]):
            raise OperandError(
                f"expected a pattern over {(q.shape[2], k.shape[2])} queries and keys, got one "
                f"over {tuple(pattern.shape)}"
            )
        blocks = (pattern.indptr, pattern.indices, pattern.partial, pattern.masks)
    return (q, k, v, kv_of, key_mask, mask, causal, scale, *blocks)


def check(
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
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
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
    blocks = (pattern_indptr, pattern_indices, pattern_partial, pattern_masks)
    _check_pattern(hq, tq, *blocks)
    for tensor in (k, v, kv_of, key_mask, mask, *blocks):
        if tensor is not None and tensor.device != q.device:
            raise OperandError(
                f"expected all tensors on {q.device} like q, got one on {tensor.device}"
            )


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


def flops(q: Tensor, k: Tensor, *rest: Any) -> int:
    """Of the blocks of scores that exist. Causality is not counted, as with torch's own."""
    (b, heads, tq, d), tk = q.shape, k.shape[2]
    scores = heads * tq * tk
    indptr, indices, _, masks = rest[-4:]
    if indptr is not None:
        alike = heads if indptr.shape[0] == 1 else 1
        scores = min(scores, alike * indices.numel() * masks.shape[-1] ** 2)
    return 4 * b * scores * d


OP = Op(
    "attention",
    check,
    cuda.BACKEND,
    triton_backend("attention"),
    cpu.BACKEND,
    reference.BACKEND,
)
_call = register(
    OP,
    "(Tensor q, Tensor k, Tensor v, Tensor? kv_of, Tensor? key_mask, Tensor? mask, bool causal, "
    "float scale, Tensor? pattern_indptr, Tensor? pattern_indices, Tensor? pattern_partial, "
    "Tensor? pattern_masks) -> Tensor",
    lambda q, *_: q.new_empty((q.shape[0], q.shape[2], q.shape[1], q.shape[3])),
    reference.attention,
    flops,
)
