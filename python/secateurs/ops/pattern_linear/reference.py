"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.epilogue import finish
from secateurs.ops.pattern_linear.operands import Operands


def pattern_linear(operands: Operands) -> Tensor:
    """Compute the operation with the weight made dense."""
    x, values, index, library, bias, *_ = operands
    if library is not None:
        weight = _blocks(values, index, library)
    else:
        columns = index if index.dim() == 2 else _columns(index)
        weight = _vectors(values, columns, x.shape[-1])
    return finish(operands, F.linear(x, weight, bias))


def _vectors(values: Tensor, columns: Tensor, k: int) -> Tensor:
    if values.dim() == 4:
        values = values.transpose(2, 3).flatten(1, 2)[:, : columns.shape[1]]
    groups, kept, v = values.shape
    index = columns.long()[:, :, None].expand(groups, kept, v)
    inputs = values.new_zeros(groups, k, v).scatter(1, index, values)
    return inputs.transpose(1, 2).reshape(groups * v, k)


def _columns(places: Tensor) -> Tensor:
    """Return the kept inputs `[N, K / 2]` of a 2:4 weight, from
    `secateurs.formats.two_four_places`."""
    tiles, steps = places.shape[:2]
    words = places.permute(0, 2, 1, 3)  # [N / 16, 8, K / 32, 2]: of rows r and r + 8 of a tile
    halves = torch.stack([words & 0xFFFF, words >> 16], 1)[..., None]
    among = halves >> 2 * torch.arange(8, device=places.device) & 3
    fours = torch.arange(steps * 16, device=places.device) // 2
    return among.reshape(tiles * 16, steps * 16) + 4 * fours


def _blocks(values: Tensor, codes: Tensor, library: Tensor) -> Tensor:
    (_, p, q), (rows, columns), codes = library.shape, codes.shape, codes.long()
    ones = library.flatten(1)
    place = (ones.cumsum(1) - 1).clamp(min=0)  # of each entry among those that a block stores
    blocks = values.gather(2, place[codes]).masked_fill(~ones[codes], 0)  # [N/p, K/q, p q]
    blocks = blocks.view(rows, columns, p, q)
    return blocks.transpose(1, 2).reshape(rows * p, columns * q)


BACKEND = Backend("reference", refuse=lambda _: None, run=pattern_linear)
