"""Global ranking: the lowest scores of the whole model go, wherever they are.

The rule of most papers that compare units over a model (Michel et al. 2019, arXiv 1905.10650, prune
heads so; Han et al. 2015, arXiv 1506.02626, per layer and globally). It needs scores that mean the
same in every layer, and may empty a layer unless a floor forbids it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.pruning.allocation.units import UnitAllocator, protected
from secateurs.pruning.ranking import lowest


@dataclass(frozen=True)
class GlobalRanking(UnitAllocator):
    """Remove the lowest scores over the whole model.

    Equal scores go by position, so one set of scores gives one plan, and a larger budget removes a
    superset of what a smaller one removes.
    """

    def choose(self, scores: Mapping[str, Tensor], count: int, floor: int) -> Mapping[str, Tensor]:
        ranked = list(scores.values())
        if floor:
            ranked = [s.masked_fill(protected(s, floor), torch.inf) for s in ranked]
        return dict(zip(scores, lowest(ranked, count), strict=True))
