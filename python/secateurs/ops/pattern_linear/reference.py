"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from secateurs.ops._dispatch import Backend
from secateurs.ops._epilogue import ACTIVATIONS


def pattern_linear(
    x: Tensor,  # [..., K]
    values: Tensor,  # [N / v, kept, v] or [N / v, kept / s, v, s], or [N / p, K / q, ones]
    index: Tensor,  # int32 [N / v, kept], or uint8 [N / p, K / q]
    library: Tensor | None,  # bool [L, p, q]
    bias: Tensor | None,  # [N]
    activation: str,
    gate: Tensor | None,  # [..., N]
    residual: Tensor | None,  # [..., N]
) -> Tensor:
    k = x.shape[-1]
    weight = _vectors(values, index, k) if library is None else _blocks(values, index, library)
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    y = y if gate is None else y * gate
    y = y if residual is None else y + residual
    return y.contiguous()


def _vectors(values: Tensor, columns: Tensor, k: int) -> Tensor:
    if values.dim() == 4:
        values = values.transpose(2, 3).flatten(1, 2)[:, : columns.shape[1]]
    groups, kept, v = values.shape
    index = columns.long()[:, :, None].expand(groups, kept, v)
    inputs = values.new_zeros(groups, k, v).scatter(1, index, values)
    return inputs.transpose(1, 2).reshape(groups * v, k)


def _blocks(values: Tensor, codes: Tensor, library: Tensor) -> Tensor:
    (_, p, q), (rows, columns), codes = library.shape, codes.shape, codes.long()
    ones = library.flatten(1)
    place = (ones.cumsum(1) - 1).clamp(min=0)  # of each entry among those that a block stores
    blocks = values.gather(2, place[codes]).masked_fill(~ones[codes], 0)  # [N/p, K/q, p q]
    blocks = blocks.view(rows, columns, p, q)
    return blocks.transpose(1, 2).reshape(rows * p, columns * q)


BACKEND = Backend("reference", refuse=lambda *_: None, run=pattern_linear)
