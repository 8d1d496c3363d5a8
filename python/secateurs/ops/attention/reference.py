"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._core.dispatch import Backend
from secateurs.ops.attention.operands import Operands
from secateurs.ops.block_sparse_linear.reference import row_of_block


def attention(operands: Operands) -> Tensor:
    """Compute the operation with all scores at once."""
    q, k, v, kv_of, key_mask, mask, causal, scale, *_ = operands
    indptr, indices, partial, masks = operands.pattern()
    if key_mask is not None:
        # A weight of zero does not silence a NaN, and padding may hold anything.
        v = v.masked_fill(~key_mask[:, None, :, None], 0)
    if kv_of is not None:
        k, v = (t.index_select(1, kv_of.long()) for t in (k, v))
    elif k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if operands.softcap is not None:
        scores = operands.softcap * (scores / operands.softcap).tanh()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
    if indptr is not None and indices is not None and partial is not None and masks is not None:
        allowed = _allowed(indptr, indices, partial, masks, *scores.shape[-2:])
        scores = scores.masked_fill(~allowed, -torch.inf)
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
    """Return the pattern as a dense mask, bool `[Hq or 1, tq, tk]`."""
    (heads, rows), block = (indptr.shape[0], indptr.shape[1] - 1), masks.shape[-1]
    columns = (tk + block - 1) // block
    # Row -1 of the padded masks is a full block.
    tiles = torch.cat([masks, masks.new_ones(1, block, block)])[partial.long()]
    row = row_of_block(indptr[:, 1:].flatten(), len(indices))
    grid = masks.new_zeros(heads * rows, columns, block, block)
    grid = grid.index_put((row, indices.long()), tiles)
    dense = grid.view(heads, rows, columns, block, block).transpose(2, 3)
    return dense.reshape(heads, rows * block, columns * block)[:, :tq, :tk]


BACKEND = Backend("reference", refuse=lambda _: None, run=attention)
