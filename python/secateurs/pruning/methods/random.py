"""Random scores: the floor that every method must beat.

Prunes heads, neurons, modules, blocks, weights, patterns. Needs nothing. Cost: none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateurs.pruning.base import Needs, Pruner


class RandomPruner(Pruner):
    """Uniform scores from the seed."""

    produces = frozenset({"heads", "neurons", "modules", "blocks", "weights", "patterns"})
    needs = Needs.NOTHING

    def scores(self) -> Mapping[str, Tensor]:
        return {
            name: torch.rand(shape, generator=self.generator)
            for name, shape in self.units().items()
        }
