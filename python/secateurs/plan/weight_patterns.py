"""Weight patterns: families of regular sparsity, and the nearest member of each to a weight.

Every family removes a fixed share of a weight `[N, K]`; `keep` chooses what stays so that the
squared error of the rest is smallest among all members of the family.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.errors import PatternError

MAX_LIBRARY = 16  # the code of a pattern fits four bits
_CANDIDATES = 256  # patterns considered for a library


@dataclass(frozen=True)
class Family:
    """Which weights may be zero together."""

    @property
    def density(self) -> float:
        """Share of the weights that stays."""
        raise NotImplementedError

    def keep(self, weight: Tensor) -> Tensor:
        """Bool `[N, K]`, True where the nearest member of the family keeps `weight` `[N, K]`.
        Raises PatternError if the family does not divide the weight."""
        raise NotImplementedError

    def project(self, weight: Tensor) -> Tensor:
        """The nearest member of the family: `weight` with zeros where `keep` is False."""
        return weight.masked_fill(~self.keep(weight), 0)


@dataclass(frozen=True)
class VectorNM(Family):
    """`n` of every `m` neighbouring inputs stay, the same for `vector` neighbouring outputs."""

    n: int
    m: int
    vector: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m or self.vector < 1:
            raise PatternError(
                f"expected 1 <= n <= m and a vector from 1, got {self.n}:{self.m} x {self.vector}"
            )

    @property
    def density(self) -> float:
        return self.n / self.m

    def keep(self, weight: Tensor) -> Tensor:
        return self.columns(weight).repeat_interleave(self.vector, 0)

    def columns(self, weight: Tensor) -> Tensor:
        """Bool `[N / vector, K]`: the inputs that each group of outputs keeps."""
        n, k = _divisible(weight, self.vector, self.m)
        energy = weight.detach().float().square()
        energy = energy.view(n // self.vector, self.vector, k // self.m, self.m).sum(1)
        return _largest(energy, self.n).view(n // self.vector, k)


@dataclass(frozen=True)
class TwoFour(VectorNM):
    """2:4: of every four neighbouring inputs of an output two stay, as sparse tensor cores want."""

    n: int = 2
    m: int = 4
    vector: int = 1


@dataclass(frozen=True, eq=False)
class Library(Family):
    """Every block of `p` outputs by `q` inputs follows one of a few patterns with equally many
    ones.

    Attributes:
        patterns: bool `[L, p, q]`, at most 16, all with the same number of True.
    """

    patterns: Tensor

    def __post_init__(self) -> None:
        patterns = self.patterns
        if patterns.dim() != 3 or patterns.dtype != torch.bool:
            raise PatternError(
                f"expected patterns as bool [L, p, q], got {patterns.dtype} {tuple(patterns.shape)}"
            )
        ones = patterns.flatten(1).sum(1)
        if not 1 <= len(patterns) <= MAX_LIBRARY or int(ones.min()) != int(ones.max()):
            raise PatternError(
                f"expected 1 to {MAX_LIBRARY} patterns with equally many ones, got {len(patterns)} "
                f"with {ones.tolist()}"
            )

    @classmethod
    def select(cls, weight: Tensor, block: tuple[int, int], ones: int, count: int = 8) -> Library:
        """A library of up to `count` patterns for `weight`: starting from the pattern that keeps
        most of it, always add the one that lets the blocks keep the most more.

        Candidates are the blocks' own largest `ones` entries, the most energetic ones first.
        Raises PatternError if the block does not divide the weight, or the numbers do not fit.
        """
        p, q = block
        if not 1 <= ones <= p * q or not 1 <= count <= MAX_LIBRARY:
            raise PatternError(
                f"expected 1 to {p * q} ones and 1 to {MAX_LIBRARY} patterns, got {ones} and "
                f"{count}"
            )
        energy = _blocks(weight, p, q)  # [blocks, p * q]
        own = _largest(energy, ones)
        candidates, owner = own.unique(dim=0, return_inverse=True)
        weight_of = energy.new_zeros(len(candidates)).index_add(0, owner, energy.sum(1))
        best = weight_of.sort(descending=True, stable=True).indices[:_CANDIDATES]
        candidates = candidates[best]
        kept = energy @ candidates.to(energy).T  # [blocks, candidates]
        chosen: list[int] = []
        covered = energy.new_zeros(len(energy), 1)
        for _ in range(min(count, len(candidates))):
            gain = kept.maximum(covered).sum(0)
            gain[chosen] = -1
            chosen.append(int(gain.argmax()))
            covered = covered.maximum(kept[:, chosen[-1:]])
        return cls(candidates[sorted(chosen)].view(-1, p, q))

    @property
    def density(self) -> float:
        return float(self.patterns[0].float().mean())

    def keep(self, weight: Tensor) -> Tensor:
        tiles = self.patterns.to(weight.device)[self.codes(weight).long()]  # [N/p, K/q, p, q]
        return tiles.transpose(1, 2).reshape(weight.shape)

    def codes(self, weight: Tensor) -> Tensor:
        """uint8 `[N / p, K / q]`: the pattern of each block that keeps most of it."""
        _, p, q = self.patterns.shape
        energy = _blocks(weight, p, q)
        kept = energy @ self.patterns.flatten(1).to(energy).T
        n, k = weight.shape
        return kept.argmax(1).to(torch.uint8).view(n // p, k // q)


def _blocks(weight: Tensor, p: int, q: int) -> Tensor:
    """Squares of the entries, block by block: `[N/p * K/q, p * q]`."""
    n, k = _divisible(weight, p, q)
    tiles = weight.detach().float().square().view(n // p, p, k // q, q)
    return tiles.transpose(1, 2).reshape(-1, p * q)


def _largest(energy: Tensor, count: int) -> Tensor:
    """True at the `count` largest entries of the last dimension, the first ones among equals."""
    order = energy.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(energy, dtype=torch.bool).scatter_(-1, order, True)


def _divisible(weight: Tensor, outputs: int, inputs: int) -> tuple[int, int]:
    if weight.dim() != 2 or weight.shape[0] % outputs or weight.shape[1] % inputs:
        raise PatternError(
            f"expected a weight [N, K] with N a multiple of {outputs} and K of {inputs}, got "
            f"{tuple(weight.shape)}"
        )
    n, k = weight.shape
    return n, k
