"""Codebook weights: every block follows one of a few patterns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from secateurs.errors import FormatError


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
