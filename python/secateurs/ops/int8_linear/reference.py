"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.epilogue import finish
from secateurs.ops.block_sparse_linear.reference import row_of_block
from secateurs.ops.int8_linear.operands import GROUP, Operands


def int8_linear(operands: Operands) -> Tensor:
    """Compute the operation with the weight made dense, group by group."""
    return product_of_codes(operands, *_dense(operands))


def product_of_codes(operands: Any, stored: Tensor, codes: Tensor) -> Tensor:
    """Compute a linear in codes; sums of a group of inputs are whole numbers below 2^24, which
    float32 holds exactly.

    Args:
        operands: with x, scales and those of the epilogue.
        stored: bool `[N, K]`, which entries are multiplied.
        codes: `[N, K]`.
    """
    x, bias = operands.x, operands.bias
    exact = torch.promote_types(x.dtype, torch.float32)
    scales = operands.scales.to(exact)
    product = x.new_zeros((*x.shape[:-1], len(scales)), dtype=exact)
    for k0 in range(0, x.shape[-1], GROUP):
        group = slice(k0, k0 + GROUP)
        rounded, scale = quantise(x.detach()[..., group].to(exact))
        product = product + F.linear(rounded, codes[:, group].to(exact)) * scale.nan_to_num(0.0)
        # A pruned block ignores what it would have met.
        product = product.masked_fill(scale.isnan() & stored[:, group].any(1), torch.nan)
    product = product * scales
    if torch.is_grad_enabled() and (x.requires_grad or operands.scales.requires_grad):
        # Gradients pass as if nothing were rounded.
        smooth = F.linear(x.to(exact), codes.to(exact) * scales[:, None])
        product = product.detach() + (smooth - smooth.detach())
    product = product if bias is None else product + bias.to(exact)
    wide = [None if t is None else t.to(exact) for t in (operands.multiplier, operands.residual)]
    return finish(operands._replace(multiplier=wide[0], residual=wide[1]), product).to(x.dtype)


def quantise(group: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes -127 .. 127 `[..., G]`, in the dtype of `group`, and their scales `[..., 1]`.

    The scale is the largest magnitude over 127. Where that is no normal number, scale and codes are
    zero; a group that holds NaN or infinity has the scale NaN and codes of zero.
    """
    largest = group.abs().amax(-1, keepdim=True)
    top = torch.full_like(largest, 127)
    scale = largest / top
    finite, used = largest.isfinite(), scale >= torch.finfo(torch.float32).tiny
    codes = torch.where(finite & used, (group * (top / largest)).round(), 0.0)
    scale = torch.where(used, scale, 0.0)
    return codes, torch.where(finite, scale, torch.nan)


def _dense(operands: Operands) -> tuple[Tensor, Tensor]:
    """Which entries `[N, K]` are stored, and all codes."""
    values, indptr, indices = operands.values, operands.indptr, operands.indices
    nnz, quads, bn, _ = values.shape
    n, k, bk = operands.scales.shape[0], operands.x.shape[-1], 4 * quads
    rows, columns = indptr.shape[0] - 1, -(-k // max(bk, 1))
    place = row_of_block(indptr[1:], nnz) * columns + indices
    shifted = values.transpose(2, 3).reshape(nnz, bk * bn)
    grid = values.new_zeros(rows * columns, bk * bn)  # no code: codes are 1 .. 255
    grid = grid.scatter(0, place[:, None].expand(nnz, bk * bn), shifted)
    grid = grid.view(rows, columns, bk, bn).permute(0, 3, 1, 2)
    grid = grid.reshape(rows * bn, columns * bk)[:n, :k]
    stored = grid != 0
    return stored, torch.where(stored, grid.to(torch.int16) - 128, 0)


BACKEND = Backend("reference", refuse=lambda _: None, run=int8_linear)
