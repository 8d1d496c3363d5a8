"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._core.dispatch import Backend
from secateurs.ops.block_sparse_linear.reference import row_of_block


def attention(
    q: Tensor,  # [B, Hq, Tq, D]
    k: Tensor,  # [B, Hkv, Tk, D]
    v: Tensor,  # [B, Hkv, Tk, D]
    kv_of: Tensor | None,  # int32 [Hq]
    key_mask: Tensor | None,  # bool [B, Tk]
    mask: Tensor | None,  # bool or float, broadcastable to [B, Hq, Tq, Tk]
    causal: bool,
    scale: float,
    pattern_indptr: Tensor | None = None,  # int32 [Hq or 1, block rows + 1]
    pattern_indices: Tensor | None = None,  # int32 [blocks]
    pattern_partial: Tensor | None = None,  # int32 [blocks]
    pattern_masks: Tensor | None = None,  # bool [P, block, block]
) -> Tensor:
    if key_mask is not None:
        # A weight of zero does not silence a NaN, and padding may hold anything.
        v = v.masked_fill(~key_mask[:, None, :, None], 0)
    if kv_of is not None:
        k, v = (t.index_select(1, kv_of.long()) for t in (k, v))
    elif k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
    if pattern_indptr is not None:
        blocks = (pattern_indptr, pattern_indices, pattern_partial, pattern_masks)
        scores = scores.masked_fill(~_allowed(*blocks, *scores.shape[-2:]), -torch.inf)
    if causal:
        tq, tk = scores.shape[-2:]
        hidden = torch.ones(tq, tk, dtype=torch.bool, device=q.device).triu(tk - tq + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
    # Queries that see nothing: softmax would give NaN, here and in the gradients.
    blind = scores.eq(-torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    return (weights.to(v.dtype) @ v).transpose(1, 2).contiguous()  # [B, Tq, Hq, D]


def _allowed(
    indptr: Tensor, indices: Tensor, partial: Tensor, masks: Tensor, tq: int, tk: int
) -> Tensor:
    """The pattern as a dense mask, bool `[Hq or 1, tq, tk]`."""
    (heads, rows), block = (indptr.shape[0], indptr.shape[1] - 1), masks.shape[-1]
    columns = (tk + block - 1) // block
    # Row -1 of the padded masks is a full block.
    tiles = torch.cat([masks, masks.new_ones(1, block, block)])[partial.long()]
    row = row_of_block(indptr[:, 1:].flatten(), len(indices))
    grid = masks.new_zeros(heads * rows, columns, block, block)
    grid = grid.index_put((row, indices.long()), tiles)
    dense = grid.view(heads, rows, columns, block, block).transpose(2, 3)
    return dense.reshape(heads, rows * block, columns * block)[:, :tq, :tk]


BACKEND = Backend("reference", refuse=lambda *_: None, run=attention)
