"""How a sparse weight is stored: one class per real packing format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.errors import FormatError

PANEL = (
    32  # outputs per block row of a dense weight packed as one block per row: two AVX-512 registers
)


@dataclass(frozen=True, eq=False)
class BlockSparseWeight:
    """A linear weight `[N, K]` as the tiles that are kept, block row by block row (BSR).

    Each tile is stored input-major (`[bk, bn]`), so that a kernel reads the weights of `bn`
    neighbouring outputs for one input as one contiguous vector. A dense weight is the special case
    of one block per row, `block = (32, K)`; then N need not be a multiple of 32, and the outputs
    beyond N are padding.

    Attributes:
        values: `[nnz, bk, bn]`, contiguous.
        indptr: int32 `[rows + 1]`; blocks `indptr[r] .. indptr[r+1]` belong to outputs `r*bn ..`.
        indices: int32 `[nnz]`, the block column of each block, ascending within a row.
        shape: `(N, K)`.
    """

    values: Tensor
    indptr: Tensor
    indices: Tensor
    shape: tuple[int, int]

    @property
    def block(self) -> tuple[int, int]:
        return (self.values.shape[2], self.values.shape[1])

    @property
    def density(self) -> float:
        """Stored blocks over all blocks."""
        rows, columns = self._grid()
        return self.values.shape[0] / max(1, rows * columns)

    @classmethod
    def pack(
        cls, weight: Tensor, keep: Tensor | None = None, block: tuple[int, int] = (32, 32)
    ) -> BlockSparseWeight:
        """Pack the tiles of `weight` `[N, K]` where `keep` `[N/bn, K/bk]` is True (None: tiles with
        any nonzero).

        Raises FormatError if the block does not divide the weight or the mask does not fit.
        """
        (bn, bk), (n, k) = block, weight.shape
        if bn < 1 or bk < 1 or n % bn or k % bk:
            raise FormatError(f"block {tuple(block)} does not divide a weight of shape {(n, k)}")
        tiles = weight.detach().reshape(n // bn, bn, k // bk, bk).permute(0, 2, 3, 1)
        if keep is None:
            keep = tiles.ne(0).flatten(2).any(2)
        if keep.shape != tiles.shape[:2]:
            raise FormatError(
                f"keep must have shape {tuple(tiles.shape[:2])}, got {tuple(keep.shape)}"
            )
        keep = keep.to(weight.device, torch.bool)
        indptr = torch.zeros(n // bn + 1, dtype=torch.int32, device=weight.device)
        indptr[1:] = keep.sum(1).cumsum(0)
        indices = keep.nonzero()[:, 1].to(torch.int32)
        return cls(tiles[keep].contiguous(), indptr, indices, (n, k))

    @classmethod
    def pack_dense(cls, weight: Tensor) -> BlockSparseWeight:
        """Pack a whole `weight` `[N, K]`, any N and K, in panels of 32 outputs."""
        n, k = weight.shape
        rows = -(-n // PANEL)
        padded = weight.new_zeros(rows * PANEL, k)
        padded[:n] = weight.detach()
        values = padded.view(rows, PANEL, k).transpose(1, 2).contiguous()
        indptr = torch.arange(rows + 1, dtype=torch.int32, device=weight.device)
        return cls(values, indptr, torch.zeros_like(indptr[1:]), (n, k))

    def to_dense(self) -> Tensor:
        """The weight `[N, K]` with zeros where no tile is stored."""
        (n, k), (bn, bk) = self.shape, self.block
        rows, columns = self._grid()
        tiles = self.values.new_zeros(rows, columns, bk, bn)
        tiles[self._row_of_block(), self.indices.long()] = self.values
        return tiles.permute(0, 3, 1, 2).reshape(rows * bn, k)[:n].contiguous()

    def keep(self) -> Tensor:
        """Bool `[rows, K/bk]`, True where a tile is stored."""
        grid = torch.zeros(self._grid(), dtype=torch.bool, device=self.values.device)
        grid[self._row_of_block(), self.indices.long()] = True
        return grid

    def validate(self) -> BlockSparseWeight:
        """Return self, or raise FormatError: a kernel trusts these indices, so nothing unchecked
        may reach one."""
        if self.values.dim() != 3 or not self.values.is_contiguous():
            raise FormatError(
                f"values must be contiguous [nnz, bk, bn], got shape {tuple(self.values.shape)}"
            )
        for name, index in (("indptr", self.indptr), ("indices", self.indices)):
            if index.dtype != torch.int32 or index.dim() != 1:
                raise FormatError(f"{name} must be one-dimensional int32, got {index.dtype}")
        n, k = self.shape
        nnz, bk, bn = self.values.shape
        rows, columns = self._grid()
        if k % max(1, bk) or not (rows - 1) * bn < n <= rows * bn:
            raise FormatError(
                f"{rows} rows of blocks {(bn, bk)} do not cover a weight of shape {(n, k)}"
            )
        steps = self.indptr.diff()
        if int(self.indptr[0]) != 0 or int(self.indptr[-1]) != nnz or bool((steps < 0).any()):
            raise FormatError(f"indptr must rise from 0 to the {nnz} stored blocks")
        if self.indices.numel() != nnz:
            raise FormatError(f"indices must name {nnz} blocks, got {self.indices.numel()}")
        if nnz and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < columns:
            raise FormatError(f"block columns must lie in 0..{columns - 1}")
        rising = self.indices[1:] > self.indices[:-1]
        row = self._row_of_block()
        if bool((~rising & (row[1:] == row[:-1])).any()):
            raise FormatError("block columns must rise within each block row")
        return self

    def _grid(self) -> tuple[int, int]:
        return self.indptr.numel() - 1, self.shape[1] // max(1, self.values.shape[1])

    def _row_of_block(self) -> Tensor:
        rows = torch.arange(self.indptr.numel() - 1, device=self.indptr.device)
        return rows.repeat_interleave(self.indptr.diff().long())
