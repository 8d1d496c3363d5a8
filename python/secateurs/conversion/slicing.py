"""Slicing: what a plan leaves of the linears of a layer, smaller and still plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import LinearView, stacked, view


@dataclass(frozen=True)
class CompactLinear:
    """One stock linear after slicing: `weight` `[N', K']`, zero in removed blocks; `keep` is the
    grid of its blocks if the plan has blocks there and slicing left them aligned; `scales`
    float32 `[N']` where the weight was rounded to whole multiples of them."""

    weight: Tensor
    bias: Tensor | None
    keep: Tensor | None = None
    block: tuple[int, int] | None = None
    scales: Tensor | None = None


def slice_layer(layer: nn.Module, keep: LayerKeep, *, shares: bool) -> dict[str, CompactLinear]:
    """What a plan leaves of the linears of a stock layer, by role. With `shares`, what stays as it
    is remains the tensor of the layer, without it is a copy."""
    linears = {}
    for role in keep.shape.linears():
        stock = view(layer, keep.shape.architecture.linear(role))
        compact = _sliced(stock, keep, role)
        linears[role] = compact if shares else _apart(compact, stock)
    return linears


def _apart(compact: CompactLinear, stock: LinearView) -> CompactLinear:
    """`compact` with copies of what it shares with `stock`."""

    def copied(tensor: Tensor | None, held: Tensor | None) -> Tensor | None:
        shares = tensor is not None and held is not None and tensor.data_ptr() == held.data_ptr()
        return tensor.clone() if tensor is not None and shares else tensor

    weight = copied(compact.weight, stock.weight)
    assert weight is not None
    return replace(compact, weight=weight, bias=copied(compact.bias, stock.bias))


def _sliced(linear: LinearView, keep: LayerKeep, role: str) -> CompactLinear:
    """The rows and columns of one linear that a plan keeps, with the zeros of its blocks, on its
    levels."""
    rows, columns = (side.to(linear.weight.device) for side in keep.sides(role))
    weight, bias = linear.weight.detach().contiguous(), linear.bias
    grid, block = compact_blocks(keep, role)
    if role in keep.weights:
        weight = weight * keep.elements(role).to(weight)
    weight = keep.rounded(role, weight)
    weight = _selected(_selected(weight, rows, 0), columns, 1)
    bias = None if bias is None else _selected(bias.detach(), rows, 0)
    return CompactLinear(weight, bias, grid, block)


def _selected(x: Tensor, keep: Tensor, dim: int) -> Tensor:
    """`x` along `dim` where `keep` is True; itself where all of it stays."""
    return x if bool(keep.all()) else x.index_select(dim, keep.nonzero()[:, 0])


def compact_blocks(keep: LayerKeep, role: str) -> tuple[Tensor | None, tuple[int, int] | None]:
    """Return the block grid of a sliced linear. Return nothing if the plan has no blocks, or if
    slicing cut through a block: such a weight is stored dense."""
    mask = keep.blocks.get(role)
    if mask is None:
        return None, None
    grid = mask.keep
    for dim, (side, size) in enumerate(zip(keep.sides(role), mask.block, strict=True)):
        pieces = side.view(-1, size)
        if not bool((pieces.all(1) | ~pieces.any(1)).all()):
            return None, None
        grid = grid[pieces[:, 0]] if dim == 0 else grid[:, pieces[:, 0]]
    return grid, mask.block


def stacked_bias(parts: Sequence[CompactLinear]) -> Tensor | None:
    """One bias for linears stacked by rows, zero for those that have none."""
    if all(part.bias is None for part in parts):
        return None
    return stacked(
        [
            part.weight.new_zeros(part.weight.shape[0]) if part.bias is None else part.bias
            for part in parts
        ]
    )


def common_grid(
    parts: Sequence[CompactLinear],
) -> tuple[Tensor | None, tuple[int, int] | None]:
    """One block grid for linears stacked by rows; those without blocks count as full."""
    blocks = {part.block for part in parts if part.block is not None}
    if len(blocks) != 1:
        return None, None
    (bn, bk) = block = blocks.pop()
    grids = []
    for part in parts:
        n, k = part.weight.shape
        if n % bn or k % bk:
            return None, None
        grids.append(part.keep if part.keep is not None else torch.ones(n // bn, k // bk).bool())
    return torch.cat(grids), block
