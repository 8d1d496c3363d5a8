"""Levels: the few values, evenly spaced, that the weights of one linear may take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.checks import door, fit
from secateurs.errors import PlanError

LEAST_BITS, MOST_BITS = 2, 8  # codes fit int8
_SEARCHED = 4096  # entries among which the first scale is searched


@dataclass(frozen=True)
class Levels:
    """The values `scale * q` for whole numbers q with `|q| < 2^(bits - 1)`: zero is one of them.

    Raises PlanError for bits that are no whole number from 2 to 8, or a scale that is not positive,
    or whose levels are not finite, in float32.
    """

    bits: int
    scale: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", fit("bits", self.bits, int, PlanError))
        if not isinstance(self.scale, float):  # NaN and infinity are told below
            object.__setattr__(self, "scale", fit("scale", self.scale, float, PlanError))
        if not LEAST_BITS <= self.bits <= MOST_BITS:
            raise PlanError(
                f"expected levels of {LEAST_BITS} to {MOST_BITS} bits, got {self.bits!r}"
            )
        scale = float(torch.tensor(self.scale, dtype=torch.float32))
        largest = torch.tensor(scale, dtype=torch.float32) * (2 ** (self.bits - 1) - 1)
        if not (math.isfinite(largest) and scale > 0):
            raise PlanError(
                f"expected levels with a scale above 0 and finite values, got {self.scale!r}"
            )
        object.__setattr__(self, "scale", scale)

    @classmethod
    @door
    def fit(cls, weight: Tensor, bits: int, rounds: int = 5) -> Levels:
        """Levels close to all of `weight`, of any shape, by least squares.

        In turns each entry takes its nearest level q, and the scale becomes <weight, q> / <q, q>.
        That ends in a local minimum, so the first scale is the best one for up to 4096 of the
        entries, evenly from the largest on; with no more than those that is the global minimum.
        """
        bits = cls(bits, 1.0).bits
        size = weight.detach().float().abs()
        size = size[size > 0].sort(descending=True).values
        if not size.numel():
            return cls(bits, 1.0)
        top = 2 ** (bits - 1) - 1
        scale = _best_scale(size[:: -(-size.numel() // _SEARCHED)], top)
        for _ in range(rounds):
            q = (size / scale).round().clamp(max=top)
            scale = (size * q).sum() / q.square().sum()
        return cls(bits, float(scale))

    @door
    def codes(self, weight: Tensor) -> Tensor:
        """int8, shaped as `weight`: the q of the level nearest to each entry."""
        top = 2 ** (self.bits - 1) - 1
        return (weight.detach().float() / self.scale).round_().clamp_(-top, top).to(torch.int8)

    @door
    def values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """The levels that `codes` stand for, rounded to `dtype`: bfloat16 still tells 8 bits of
        levels apart, so that `codes` of them are the same."""
        return (codes.float() * self.scale).to(dtype)

    @door
    def nearest(self, weight: Tensor) -> Tensor:
        """`weight` with each entry on its nearest level, in the dtype of `weight`."""
        return self.values(self.codes(weight), weight.dtype)


def _best_scale(size: Tensor, top: int) -> Tensor:
    """The scale whose levels up to `top` lie closest to `size` `[n]`, positive.

    As the scale falls past size / (k - 1/2) the entry's level rises to k. So there are n * top
    choices of levels, and for each the best scale keeps <size, q>^2 / <q, q> of the squares.
    """
    k = torch.arange(1, top + 1, device=size.device)
    steps = (size.double()[:, None] / (k - 0.5)).flatten()  # [n * top]
    order = steps.sort(descending=True, stable=True).indices
    product = size.double()[order // top].cumsum(0)
    squares = (2 * k - 1)[order % top].cumsum(0)
    best = (product.square() / squares).argmax()
    return (product[best] / squares[best]).float()
