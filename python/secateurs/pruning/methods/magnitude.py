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

from secateurs.plan import Site
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
            site = self.sites.by_name[name]
            if site.kind == "heads":
                scores[name] = head_magnitudes(self.model, self.sites, site)
            elif site.kind == "neurons":
                scores[name] = neuron_magnitudes(self.model, self.sites, site)
            elif site.kind == "module":
                scores[name] = self._module(site)
            elif self.budget.blocks is not None:
                scores[name] = self._blocks(site.layer, site.part, shape)
            else:
                scores[name] = self._squares(site.layer, site.part)
        return scores

    def _squares(self, index: int, role: str) -> Tensor:
        return squares(self.model, self.sites, index, role)

    def _module(self, site: Site) -> Tensor:
        roles = self.sites.sublayer(site).roles
        own = [self._squares(site.layer, role).flatten() for role in roles]
        return torch.cat(own).mean().sqrt()

    def _blocks(self, index: int, role: str, shape: tuple[int, ...]) -> Tensor:
        squares = self._squares(index, role)
        rows, columns = shape
        bn, bk = self.budget.tile
        return squares.view(rows, bn, columns, bk).mean((1, 3)).sqrt()
