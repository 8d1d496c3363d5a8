"""Block-sparse weights: the tiles of a weight that are kept, block row by block row (BSR)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.checks import door, fit
from secateurs.errors import FormatError
from secateurs.formats.shapes import sides

PANEL = (
    32  # outputs per block row of a dense weight packed as one block per row: two AVX-512 registers
)


TILE_INPUTS = 32  # bfloat16 inputs in a row of an AMX tile


@dataclass(frozen=True, eq=False)
class BlockSparseWeight:
    """A linear weight `[N, K]` as the tiles that are kept, block row by block row (BSR).

    Each tile is stored input-major (`[bk, bn]`), so that a kernel reads the weights of `bn`
    neighbouring outputs for one input as one contiguous vector. A dense weight is the special case
    of one block per row, `block = (32, K)`; then N need not be a multiple of 32, and the outputs
    beyond N are padding.

    CPUs multiply bfloat16 in pairs of inputs; `paired` stores a weight as they read it.

    Attributes:
        values: `[nnz, bk, bn]`, or in pairs `[nnz, bk / 2, bn, 2]`; contiguous.
        indptr: int32 `[rows + 1]`; blocks `indptr[r] .. indptr[r+1]` belong to outputs `r*bn ..`.
        indices: int32 `[nnz]`, the block column of each block, ascending within a row.
        shape: `(N, K)`.
    """

    values: Tensor
    indptr: Tensor
    indices: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("values", "indptr", "indices"):
            fit(name, getattr(self, name), Tensor, FormatError)
        object.__setattr__(self, "shape", fit("shape", self.shape, tuple[int, int], FormatError))

    @property
    def block(self) -> tuple[int, int]:
        return (self.values.shape[2], self.values.shape[1] * (2 if self.in_pairs else 1))

    @property
    def in_pairs(self) -> bool:
        return self.values.dim() == 4

    @property
    def density(self) -> float:
        """Stored blocks over all blocks."""
        rows, columns = self._grid()
        return self.values.shape[0] / max(1, rows * columns)

    @classmethod
    @door
    def pack(
        cls, weight: Tensor, keep: Tensor | None = None, block: tuple[int, int] = (32, 32)
    ) -> BlockSparseWeight:
        """Pack the tiles of `weight` `[N, K]` where `keep` `[N/bn, K/bk]` is True (None: tiles with
        any nonzero), as kernels read them.

        Raises FormatError if the block does not divide the weight or the mask does not fit.
        """
        (bn, bk), (n, k) = block, sides(weight)
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
        return cls(tiles[keep].contiguous(), indptr, indices, (n, k)).as_read()

    @classmethod
    @door
    def pack_dense(cls, weight: Tensor) -> BlockSparseWeight:
        """Pack a whole `weight` `[N, K]`, any N and K, in panels of 32 outputs, as kernels read
        them."""
        n, k = sides(weight)
        rows = -(-n // PANEL)
        padded = weight.new_zeros(rows * PANEL, k)
        padded[:n] = weight.detach()
        values = padded.view(rows, PANEL, k).transpose(1, 2).contiguous()
        indptr = torch.arange(rows + 1, dtype=torch.int32, device=weight.device)
        return cls(values, indptr, torch.zeros_like(indptr[1:]), (n, k)).as_read()

    def paired(self) -> BlockSparseWeight:
        """The same weight stored in pairs of inputs. Where one block spans all inputs, it grows by
        zeros to a multiple of 32 of them, what a tile product takes.

        Raises FormatError if a block of an odd number of inputs cannot grow.
        """
        if self.in_pairs:
            return self
        values, (bn, bk) = self.values, self.block
        if bk == self.shape[1]:
            values = nn.functional.pad(values, (0, 0, 0, -bk % TILE_INPUTS))
        elif bk % 2:
            raise FormatError(f"blocks of {bn} outputs by {bk} inputs have an input without a pair")
        pairs = values.view(len(values), values.shape[1] // 2, 2, bn).transpose(2, 3).contiguous()
        return BlockSparseWeight(pairs, self.indptr, self.indices, self.shape)

    def unpaired(self) -> BlockSparseWeight:
        """The same weight stored input by input, as files have it on every machine."""
        if not self.in_pairs:
            return self
        values = self.values.transpose(2, 3).flatten(1, 2)
        if values.shape[1] > self.shape[1]:
            values = values[:, : self.shape[1]]
        return BlockSparseWeight(values.contiguous(), self.indptr, self.indices, self.shape)

    def as_read(self) -> BlockSparseWeight:
        """The weight in the order in which kernels read it where it is and in its dtype: in pairs
        where they want that, unless its blocks have none. `pack` and `pack_dense` return it so."""
        if not ops.read_in_pairs(self.values.device, self.values.dtype):
            return self
        odd = self.block[1] % 2 and self.block[1] != self.shape[1]
        return self if odd else self.paired()

    def to_dense(self) -> Tensor:
        """The weight `[N, K]` with zeros where no tile is stored."""
        (n, k), (bn, bk) = self.shape, self.block
        rows, columns = self._grid()
        stored = self.values.transpose(2, 3).flatten(1, 2) if self.in_pairs else self.values
        tiles = stored.new_zeros(rows, columns, bk, bn)
        tiles[self._row_of_block(), self.indices.long()] = stored
        return tiles.permute(0, 3, 1, 2).reshape(rows * bn, -1)[:n, :k].contiguous()

    def keep(self) -> Tensor:
        """Bool `[rows, K/bk]`, True where a tile is stored."""
        grid = torch.zeros(self._grid(), dtype=torch.bool, device=self.values.device)
        grid[self._row_of_block(), self.indices.long()] = True
        return grid

    def validate(self) -> BlockSparseWeight:
        """Return self, or raise FormatError: a kernel trusts these indices, so nothing unchecked
        may reach one."""
        shape = tuple(self.values.shape)
        if (
            len(shape) not in (3, 4)
            or shape[3:] not in ((), (2,))
            or not self.values.is_contiguous()
        ):
            raise FormatError(
                "values must be contiguous [nnz, bk, bn], or [nnz, bk / 2, bn, 2] in pairs, got "
                f"shape {shape}"
            )
        for name, index in (("indptr", self.indptr), ("indices", self.indices)):
            if index.dtype != torch.int32 or index.dim() != 1:
                raise FormatError(f"{name} must be one-dimensional int32, got {index.dtype}")
        n, k = self.shape
        nnz, (bn, bk) = shape[0], self.block
        rows, columns = self._grid()
        grown = self.in_pairs and columns == 1
        if (k % max(1, bk) and not grown) or not (rows - 1) * bn < n <= rows * bn:
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
        return self.indptr.numel() - 1, -(-self.shape[1] // max(1, self.block[1]))

    def _row_of_block(self) -> Tensor:
        rows = torch.arange(self.indptr.numel() - 1, device=self.indptr.device)
        return rows.repeat_interleave(self.indptr.diff().long())
