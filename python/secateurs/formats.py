"""How a sparse weight is stored: one class per real packing format."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.checks import door, fit
from secateurs.errors import FormatError

PANEL = (
    32  # outputs per block row of a dense weight packed as one block per row: two AVX-512 registers
)
TILE_INPUTS = 32  # bfloat16 inputs in a row of an AMX tile


def _sides(weight: Tensor) -> tuple[int, int]:
    """N and K of a `weight` `[N, K]`. Raises FormatError for one of other dimensions."""
    if weight.dim() != 2:
        raise FormatError(f"expected a weight [N, K], got a tensor of shape {tuple(weight.shape)}")
    n, k = weight.shape
    return n, k


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
        (bn, bk), (n, k) = block, _sides(weight)
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
        n, k = _sides(weight)
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


@dataclass(frozen=True, eq=False)
class VectorWeight:
    """A linear weight `[N, K]` in which `v` neighbouring outputs keep the same inputs (vector N:M;
    with v = 1, 2:4).

    Attributes:
        values: `[N / v, kept, v]`, contiguous: the weights of a group's outputs, input by input; or
            `[N / v, ceil(kept / s), v, s]` with `s` inputs of each output side by side (zeros fill
            the last ones), as bfloat16 products want them.
        columns: int32 `[N / v, kept]`, the inputs each group keeps, ascending.
        shape: `(N, K)`.
        places: of a 2:4 weight the columns as sparse tensor cores read them (`two_four_places`).
            Kernels only run with what was packed: to derive it in a call would wait for the GPU.
    """

    values: Tensor
    columns: Tensor
    shape: tuple[int, int]
    places: Tensor | None = None

    @property
    def vector(self) -> int:
        return self.values.shape[2]

    @property
    def together(self) -> int:
        """How many inputs of an output are stored side by side."""
        return self.values.shape[3] if self.values.dim() == 4 else 1

    @property
    def density(self) -> float:
        """Stored inputs over all inputs."""
        return self.columns.shape[1] / max(1, self.shape[1])

    @classmethod
    def pack(
        cls, weight: Tensor, keep: Tensor, vector: int, together: int | None = None
    ) -> VectorWeight:
        """Pack the entries of `weight` `[N, K]` where `keep` (bool `[N, K]`) is True, with
        `together` inputs of an output side by side; None: as many as the kernels read where the
        weight is.

        Raises FormatError unless each group of `vector` outputs keeps the same inputs, and all
        groups equally many.
        """
        n, k = weight.shape
        if vector < 1 or n % vector or keep.shape != weight.shape:
            raise FormatError(
                f"a weight of shape {(n, k)} and keep {tuple(keep.shape)} do not fit groups of "
                f"{vector} outputs"
            )
        if together is None:
            together = ops.inputs_together(weight.device, weight.dtype) if vector > 1 else 1
        groups = keep.to(weight.device, torch.bool).view(n // vector, vector, k)
        chosen = groups[:, 0]
        counts = chosen.sum(1)
        if bool((groups != chosen[:, None]).any()):
            raise FormatError(f"keep must be the same for each {vector} neighbouring outputs")
        if n and int(counts.min()) != int(counts.max()):
            raise FormatError(
                f"every group of outputs must keep equally many inputs, got {int(counts.min())} to "
                f"{int(counts.max())}"
            )
        kept = int(counts[0]) if n else 0
        columns = chosen.nonzero()[:, 1].view(n // vector, kept)
        inputs = weight.detach().view(n // vector, vector, k).transpose(1, 2)  # [N/v, K, v]
        values = inputs.gather(1, columns[:, :, None].expand(-1, -1, vector))
        if together > 1:
            values = nn.functional.pad(values, (0, 0, 0, -kept % together))
            steps = values.shape[1] // together
            values = values.view(len(values), steps, together, vector).transpose(2, 3)
        columns = columns.to(torch.int32)
        places = two_four_places(columns, (n, k)) if vector == together == 1 else None
        return cls(values.contiguous(), columns, (n, k), places)

    def to_dense(self) -> Tensor:
        """The weight `[N, K]` with zeros where nothing is stored."""
        (n, k), v = self.shape, self.vector
        values = self.values
        if values.dim() == 4:
            values = values.transpose(2, 3).flatten(1, 2)[:, : self.columns.shape[1]]
        inputs = values.new_zeros(n // max(1, v), k, v)
        index = self.columns.long()[:, :, None].expand(-1, -1, v)
        return inputs.scatter(1, index, values).transpose(1, 2).reshape(n, k)

    def validate(self) -> VectorWeight:
        """Return self, or raise FormatError: a kernel trusts these columns."""
        (n, k), values, columns = self.shape, self.values, self.columns
        if (
            values.dim() not in (3, 4)
            or not values.is_contiguous()
            or values.shape[0] * values.shape[2] != n
        ):
            raise FormatError(
                f"values must be contiguous [N / v, kept, v] or [N / v, kept / s, v, s] for {n} "
                f"outputs, got shape {tuple(values.shape)}"
            )
        if columns.dtype != torch.int32 or columns.dim() != 2 or len(columns) != len(values):
            raise FormatError(
                f"columns must be int32 [{len(values)}, kept], got {columns.dtype} "
                f"{tuple(columns.shape)}"
            )
        if -(-columns.shape[1] // self.together) != values.shape[1]:
            raise FormatError(
                f"values of shape {tuple(values.shape)} do not store {columns.shape[1]} inputs"
            )
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < k:
            raise FormatError(f"columns must lie in 0..{k - 1}")
        if bool((columns.diff(dim=1) <= 0).any()):
            raise FormatError("columns must rise within each group of outputs")
        if self.places is not None:
            places = two_four_places(columns, self.shape) if self.vector == 1 else None
            if places is None or not torch.equal(self.places, places):
                raise FormatError("places must be those of the columns (two_four_places)")
        return self


def two_four_places(columns: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Where among its four inputs each kept one of a 2:4 weight `[N, K]` stands, as mma.sp reads it
    (csrc/cuda/sparse_linear.h): int32 `[N / 16, K / 32, 8, 2]`.

    None unless two of every four inputs are kept, N is a multiple of 16 and K of 32.

    Args:
        columns: int32 `[N, K / 2]`, the inputs that each output keeps, ascending.
    """
    (n, k), kept = shape, columns.shape[1]
    if n % 16 or k % 32 or kept * 2 != k:
        return None
    fours = torch.arange(kept, device=columns.device) // 2
    if bool((columns // 4 != fours).any()):
        return None
    shifts = 2 * torch.arange(8, device=columns.device)
    halves = ((columns % 4).view(n // 16, 2, 8, k // 32, 2, 8).long() << shifts).sum(-1)
    words = halves[:, 0] | halves[:, 1] << 16  # [N / 16, 8, K / 32, 2]
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)  # the bits of an uint32
    return words.permute(0, 2, 1, 3).to(torch.int32).contiguous()


@dataclass(frozen=True, eq=False)
class LibraryWeight:
    """A linear weight `[N, K]` whose `p x q` blocks each follow one pattern of a library.

    Attributes:
        values: `[N / p, K / q, ones]`, contiguous: a block's entries, row by row of its pattern.
        codes: uint8 `[N / p, K / q]`, the pattern of each block.
        library: bool `[L, p, q]`, at most 16 patterns with `ones` True each.
        shape: `(N, K)`.
    """

    values: Tensor
    codes: Tensor
    library: Tensor
    shape: tuple[int, int]

    @property
    def density(self) -> float:
        """Stored entries over all entries."""
        return self.values.numel() / max(1, self.shape[0] * self.shape[1])

    @classmethod
    def pack(cls, weight: Tensor, codes: Tensor, library: Tensor) -> LibraryWeight:
        """Pack the entries of `weight` `[N, K]` that each block's pattern keeps.

        Raises FormatError if the library is uneven or does not divide the weight, or a code is not
        in it.
        """
        (n, k), (_, p, q) = weight.shape, library.shape
        if n % p or k % q:
            raise FormatError(f"block {(p, q)} does not divide a weight of shape {(n, k)}")
        empty = weight.new_zeros(n // p, k // q, int(library[0].sum()))
        packed = cls(empty, codes.to(torch.uint8), library, (n, k)).validate()
        blocks = weight.detach().reshape(n // p, p, k // q, q).transpose(1, 2)
        chosen = library[codes.long()]
        codes, library = packed.codes.contiguous(), library.contiguous()
        return cls(blocks[chosen].view_as(empty), codes, library, (n, k))

    @classmethod
    def pack_two_four(cls, weight: Tensor, keep: Tensor) -> LibraryWeight:
        """Pack 2:4: the entries of `weight` `[N, K]` where `keep` (bool `[N, K]`) is True, as a
        library of the six 1 x 4 patterns with two ones.

        Raises FormatError unless every four neighbouring inputs of an output keep two.
        """
        n, k = weight.shape
        if keep.shape != weight.shape or k % 4:
            raise FormatError(
                f"expected a weight [N, K] with K a multiple of 4 and keep alike, got {(n, k)} and "
                f"{tuple(keep.shape)}"
            )
        fours = keep.to(weight.device, torch.bool).view(n, k // 4, 4)
        if bool((fours.sum(2) != 2).any()):
            raise FormatError("every four neighbouring inputs of an output must keep two")
        pairs = [[i in pair for i in range(4)] for pair in combinations(range(4), 2)]
        library = torch.tensor(pairs, device=weight.device)
        codes = (fours[:, :, None] == library).all(3).to(torch.uint8).argmax(2)
        return cls.pack(weight, codes, library[:, None])

    def to_dense(self) -> Tensor:
        """The weight `[N, K]` with zeros where a pattern has none."""
        chosen = self.library[self.codes.long()]  # [N/p, K/q, p, q]
        blocks = self.values.new_zeros(chosen.shape).masked_scatter(chosen, self.values)
        return blocks.transpose(1, 2).reshape(self.shape)

    def validate(self) -> LibraryWeight:
        """Return self, or raise FormatError."""
        if self.library.dim() != 3 or self.library.dtype != torch.bool or not len(self.library):
            raise FormatError(
                f"library must be bool [L, p, q], got {self.library.dtype} "
                f"{tuple(self.library.shape)}"
            )
        (n, k), (count, p, q) = self.shape, self.library.shape
        if not p or not q or n % p or k % q:
            raise FormatError(f"blocks {(p, q)} do not divide a weight of shape {(n, k)}")
        ones = self.library.flatten(1).sum(1)
        if count > 16 or int(ones.min()) != int(ones.max()):
            raise FormatError(
                f"library must hold at most 16 patterns with equally many ones, got {count} with "
                f"{ones.tolist()}"
            )
        grid = (n // p, k // q)
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != grid:
            raise FormatError(
                f"codes must be uint8 {grid}, got {self.codes.dtype} {tuple(self.codes.shape)}"
            )
        if tuple(self.values.shape) != (*grid, int(ones[0])) or not self.values.is_contiguous():
            raise FormatError(
                f"values must be contiguous {(*grid, int(ones[0]))}, got {tuple(self.values.shape)}"
            )
        if self.codes.numel() and int(self.codes.max()) >= count:
            raise FormatError(f"codes must lie in 0..{count - 1}, got {int(self.codes.max())}")
        return self
