"""WeightPruner: a method that scores every single weight; blocks and patterns score what they
hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from secateurs.pruning.base import Pruner


class WeightPruner(Pruner):
    """A method with one score for each weight of the linears, filled in as `weight_scores`."""

    produces = frozenset({"weights", "blocks", "patterns"})

    def weight_scores(self) -> Mapping[str, Tensor]:
        """Return the scores `[N, K]` by site, not negative."""
        raise NotImplementedError

    def scores(self) -> Mapping[str, Tensor]:
        scores = self.weight_scores()
        if self.budget.blocks is None:
            return scores
        bn, bk = self.budget.tile
        return {
            name: score.view(score.shape[0] // bn, bn, -1, bk).sum((1, 3))
            for name, score in scores.items()
        }

    def kept_at(self, fraction: float) -> dict[str, Tensor]:
        """What stays when `fraction` goes, bool `[N, K]` by site; none of them as long as a pattern
        cannot remove so little."""
        (kind,) = self.budget.kinds()
        if kind == "patterns":
            size = 16 if self.budget.pattern == "library" else 4
            ones = max(math.ceil(size * (1 - fraction) - 1e-9), 1)
            if ones == size or (self.budget.pattern == "2:4" and ones != 2):
                return {}
            fraction = 1 - ones / size
        weights = self.linear_weights()
        return {
            name: mask.elements().to(weights[name].device)  # type: ignore[attr-defined]
            for name, mask in self.allocated({kind: fraction}).masks.items()
        }
