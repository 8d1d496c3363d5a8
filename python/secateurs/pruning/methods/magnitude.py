"""Magnitude: the size of the weights a unit owns (Han et al. 2015, arXiv 1506.02626, over
structured groups).

score = root mean square of the group: a head's rows of q, k, v (its share of them where key/value
heads are shared) and columns of the output projection; a neuron's rows of up and gate and column of
down; a sub-layer's linears; a block's elements. A pattern keeps the largest sum of squares: it is
the one-shot projection. Prunes heads, neurons, modules, blocks, weights, patterns. Needs weights
only. Cost: one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.magnitudes import head_magnitudes, neuron_magnitudes, squares


class MagnitudePruner(Pruner):
    """Root mean square of each unit's weights."""

    produces = frozenset({"heads", "neurons", "modules", "blocks", "weights", "patterns"})
    needs = Needs.WEIGHTS
    seeded = False

    @torch.no_grad()
    def scores(self) -> Mapping[str, Tensor]:
        scores = {}
        for name, shape in self.units().items():
            _, index, part = name.split(".")
            if part == "heads":
                scores[name] = head_magnitudes(self.model, self.sites, int(index))
            elif part == "neurons":
                scores[name] = neuron_magnitudes(self.model, self.sites, int(index))
            elif part in ("attention", "ffn"):
                scores[name] = self._module(int(index), part)
            elif self.budget.blocks is not None:
                scores[name] = self._blocks(int(index), part, shape)
            else:
                scores[name] = self._squares(int(index), part)
        return scores

    def _squares(self, index: int, role: str) -> Tensor:
        return squares(self.model, self.sites, index, role)

    def _module(self, index: int, part: str) -> Tensor:
        roles = self.sites.layers[index].linears()
        own = [r for r in roles if (r in ("up", "gate", "down")) == (part == "ffn")]
        return torch.cat([self._squares(index, role).flatten() for role in own]).mean().sqrt()

    def _blocks(self, index: int, role: str, shape: tuple[int, ...]) -> Tensor:
        squares = self._squares(index, role)
        rows, columns = shape
        return squares.view(rows, self.budget.block, columns, self.budget.block).mean((1, 3)).sqrt()
