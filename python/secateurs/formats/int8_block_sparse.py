"""Int8 weights: codes of 8 bits and a scale for each output, in the tiles that are kept (BSR)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs.checks import door, fit
from secateurs.errors import FormatError
from secateurs.formats.block_sparse import BlockSparseWeight
from secateurs.formats.shapes import sides

TOP = 127  # codes are symmetric: -127 .. 127
HALF_GROUP = 32  # inputs; what a kernel sums at once is one or two of them


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A linear weight `[N, K]` = scales `[N, 1]` * codes `[N, K]`, codes -127 .. 127, as the tiles
    that are kept (BSR; see `BlockSparseWeight`).

    Codes lie as CPUs multiply them: four inputs of an output side by side, 128 added, since the
    instruction that multiplies four pairs of bytes at once takes one side without sign. A dense
    weight is one block per row, `block = (32, K)` with zeros up to a multiple of 32 inputs.

    Attributes:
        values: uint8 `[nnz, bk / 4, bn, 4]`, codes + 128; contiguous.
        scales: float32 `[N]`, of each output.
        indptr: int32 `[rows + 1]`; blocks `indptr[r] .. indptr[r+1]` belong to outputs `r*bn ..`.
        indices: int32 `[nnz]`, the block column of each block, ascending within a row.
        shape: `(N, K)`.
    """

    values: Tensor
    scales: Tensor
    indptr: Tensor
    indices: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("values", "scales", "indptr", "indices"):
            fit(name, getattr(self, name), Tensor, FormatError)
        object.__setattr__(self, "shape", fit("shape", self.shape, tuple[int, int], FormatError))

    @property
    def block(self) -> tuple[int, int]:
        return (self.values.shape[2], 4 * self.values.shape[1])

    @property
    def density(self) -> float:
        """Stored blocks over all blocks."""
        rows, columns = self.indptr.numel() - 1, -(-self.shape[1] // max(1, self.block[1]))
        return self.values.shape[0] / max(1, rows * columns)

    @classmethod
    @door
    def pack(
        cls,
        weight: Tensor,
        keep: Tensor | None = None,
        block: tuple[int, int] = (32, 32),
        scales: Tensor | None = None,
    ) -> Int8Weight:
        """Round the tiles of `weight` `[N, K]` where `keep` `[N/bn, K/bk]` is True (None: tiles
        with any nonzero) to codes.

        Args:
            scales: float `[N]`, of each output; None: those of `row_scales`.

        Raises FormatError if the weight holds NaN or infinity, the block does not divide it or is
        not of 32 or a multiple of 64 inputs, or mask or scales do not fit.
        """
        _check_inputs_of_block(block[1])
        scales = scales_of(weight, scales)
        if keep is None:  # what rounds to zero was not removed
            keep = BlockSparseWeight.pack(weight, None, block).keep()
        return cls._of(BlockSparseWeight.pack(codes(weight, scales), keep, block), scales)

    @classmethod
    @door
    def pack_dense(cls, weight: Tensor, scales: Tensor | None = None) -> Int8Weight:
        """Round a whole `weight` `[N, K]`, any N and K, in panels of 32 outputs; `scales` as in
        `pack`. Raises FormatError if it holds NaN or infinity."""
        scales = scales_of(weight, scales)
        return cls._of(BlockSparseWeight.pack_dense(codes(weight, scales)), scales)

    @classmethod
    def _of(cls, packed: BlockSparseWeight, scales: Tensor) -> Int8Weight:
        """The weight of int8 codes in blocks."""
        values = packed.values
        values = nn.functional.pad(values, (0, 0, 0, -values.shape[1] % HALF_GROUP))
        nnz, bk, bn = values.shape
        shifted = (values.view(torch.uint8) ^ 128).view(nnz, bk // 4, 4, bn)
        shifted = shifted.transpose(2, 3).contiguous()
        return cls(shifted, scales, packed.indptr, packed.indices, packed.shape)

    def codes(self) -> BlockSparseWeight:
        """The int8 codes, input by input."""
        nnz, quads, bn, _ = self.values.shape
        flat = (self.values ^ 128).view(torch.int8).transpose(2, 3).reshape(nnz, 4 * quads, bn)
        if 4 * quads > self.shape[1]:
            flat = flat[:, : self.shape[1]].contiguous()
        return BlockSparseWeight(flat, self.indptr, self.indices, self.shape)

    def to_dense(self) -> Tensor:
        """The float32 weight `[N, K]` that is multiplied, zeros where no tile is stored."""
        return self.codes().to_dense().float() * self.scales[:, None]

    def keep(self) -> Tensor:
        """Bool `[rows, K/bk]`, True where a tile is stored."""
        return self.codes().keep()

    def validate(self) -> Int8Weight:
        """Return self, or raise FormatError: a kernel trusts these indices, so nothing unchecked
        may reach one."""
        shape = tuple(self.values.shape)
        if (
            len(shape) != 4
            or shape[3] != 4
            or self.values.dtype != torch.uint8
            or not self.values.is_contiguous()
        ):
            raise FormatError(
                "values must be contiguous uint8 [nnz, bk / 4, bn, 4], got "
                f"{self.values.dtype} {shape}"
            )
        (n, k), inputs = self.shape, self.block[1]
        if inputs < k or inputs != -(-k // HALF_GROUP) * HALF_GROUP:
            _check_inputs_of_block(inputs)
        check_scales(self.scales, n)
        if self.values.numel() and int(self.values.min()) == 0:
            raise FormatError(f"codes must lie in {-TOP}..{TOP}, got {-TOP - 1}")
        self.codes().validate()
        return self


@door
def row_scales(weight: Tensor) -> Tensor:
    """float32 `[N]`: max|w| / 127 of each output of `weight` `[N, K]`, 1 where that is zero or no
    normal number. Smaller ones, which clip the largest entries, leave more error in 8 bits.

    Raises FormatError if the weight holds NaN or infinity.
    """
    sides(weight)
    weight = weight.detach().float()
    if weight.numel() and not all(bool(end.isfinite()) for end in weight.aminmax()):
        raise FormatError("expected finite weights, got NaN or infinity")
    largest = weight.abs().amax(1) if weight.shape[1] else weight.new_zeros(len(weight))
    scales = largest / TOP
    return torch.where(scales >= torch.finfo(torch.float32).tiny, scales, 1.0)


def codes(weight: Tensor, scales: Tensor) -> Tensor:
    """int8 `[N, K]`: the nearest whole multiples of `scales` `[N]`, ties to even."""
    return (weight.detach().float() / scales[:, None]).round_().clamp_(-TOP, TOP).to(torch.int8)


def scales_of(weight: Tensor, scales: Tensor | None) -> Tensor:
    """`scales` if they fit the weight, by default those of `row_scales`; FormatError otherwise."""
    largest = row_scales(weight)
    if scales is None:
        return largest
    check_scales(scales, len(weight))
    return scales.detach().contiguous()


def check_scales(scales: Tensor, n: int) -> None:
    """Raise FormatError unless these are scales of `n` outputs."""
    if scales.dtype != torch.float32 or tuple(scales.shape) != (n,):
        raise FormatError(
            f"scales must be float32 of shape {(n,)}, got {scales.dtype} {tuple(scales.shape)}"
        )
    if n and not 0 < float(scales.min()) <= float(scales.max()) < float("inf"):
        raise FormatError("scales must be finite and above 0")


def _check_inputs_of_block(inputs: int) -> None:
    if inputs != HALF_GROUP and inputs % (2 * HALF_GROUP):
        raise FormatError(
            f"int8 blocks have {HALF_GROUP} inputs or a multiple of {2 * HALF_GROUP}, got {inputs}"
        )
