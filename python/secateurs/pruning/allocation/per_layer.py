"""Per layer: every layer loses the same share, its own lowest scores first.

The rule for scores that mean something only within a layer, and for layers that must stay of one
size (Zhang et al. 2021, arXiv 2011.03770, prune equally many heads of every layer).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from secateurs.pruning.allocation.units import UnitAllocator
from secateurs.pruning.ranking import lowest


@dataclass(frozen=True)
class PerLayer(UnitAllocator):
    """Remove the same share of each layer.

    Sites of one kind in one layer are ranked together: a layer's two sub-layers, or its linears.
    Shares are equal to half a unit, and their sum is what the budget says. The j-th unit (from 0)
    of a layer with n units goes at the share (j + 1/2) / n; at one share the lower score goes
    first, then the earlier layer. So a larger budget removes a superset of what a smaller one
    removes. A layer at its floor loses no more, and the others make up for it.
    """

    def choose(self, scores: Mapping[str, Tensor], count: int, floor: int) -> Mapping[str, Tensor]:
        layers: dict[str, dict[str, Tensor]] = {}
        for name, score in scores.items():
            layers.setdefault(name.rpartition(".")[0], {})[name] = score
        ranked = [[*layer.values()] for layer in layers.values()]
        # With a floor a layer has one site: heads, or neurons.
        most = [sum(s.numel() - floor for s in layer) for layer in ranked]
        counts = shares(ranked, most, count)
        gone: dict[str, Tensor] = {}
        for layer, number in zip(layers.values(), counts, strict=True):
            gone |= dict(zip(layer, lowest([*layer.values()], number), strict=True))
        return gone


def shares(layers: list[list[Tensor]], most: list[int], count: int) -> list[int]:
    """How many units each of `layers` loses of `count` in all, at most `most` of it; what a layer
    has are its scores, in one tensor or more."""
    sizes = [sum(score.numel() for score in layer) for layer in layers]
    total = sum(sizes)
    # Before this share fewer than `count` units go: each layer is half a unit away from its own.
    share = Fraction(max(0, 2 * count - len(layers) - 2), 2 * max(1, total))
    half = Fraction(1, 2)
    counts = [
        min(limit, max(0, math.ceil(share * size - half)))
        for size, limit in zip(sizes, most, strict=True)
    ]

    ordered = [torch.cat([s.flatten() for s in layer]).sort().values for layer in layers]

    def turn(layer: int) -> tuple[Fraction, float, int]:
        """When the next unit of a layer goes."""
        rank = counts[layer]
        return (rank + half) / sizes[layer], float(ordered[layer][rank]), layer

    waiting = [turn(i) for i in range(len(layers)) if counts[i] < most[i]]
    heapq.heapify(waiting)
    for _ in range(count - sum(counts)):
        layer = heapq.heappop(waiting)[-1]
        counts[layer] += 1
        if counts[layer] < most[layer]:
            heapq.heappush(waiting, turn(layer))
    return counts
