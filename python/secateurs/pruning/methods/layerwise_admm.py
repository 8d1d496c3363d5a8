"""Layer-wise ADMM: masks under which the weights that stay can still give what each linear gave.

From the first linear upwards, on the model pruned so far: inputs X and wanted outputs Y of the
calibration tokens give the least-squares weight T and the norm |W - T|^2 = tr((W - T) H (W - T)^T),
H = X X^T + ridge mean(diag X X^T) I; the masked W nearest to T is looked for by ADMM, and the linear
goes on with it (`secateurs.reconstruction.admm`: formulas, papers). Y is what the dense model gives
there; for the last linear of a sub-layer what brings the residual stream to the dense one (K-prune,
Park et al. 2024). After `iterations` with a free mask it is held for as many.

Prunes patterns, weights, blocks; every linear loses the same share. A library of patterns is chosen
for each linear, from |w| |x|. With `bits`, the held iterations also round to b-bit levels, fitted to
the weights where the mask is held. Needs batches; no labels, no gradients. Cost: for each linear a
forward pass through its layer, a factorisation of K x K, and 2 `iterations` products N x K x K.

The plan holds masks and levels alone, as that of every method. The weights to go with it are made by
`refit`, which solves the same problems with the masks held: a pass more, and one way for the masks of
all methods. `decide, then do` stays true, and any plan made here can be merged, saved and applied
elsewhere. Ours: the mask in the iterations, Y, the bias, which takes what is left of the mean.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from secateurs.architectures.linears import stacked
from secateurs.architectures.sites import Sites
from secateurs.data.batches import Batch, evaluating
from secateurs.errors import DataError, MethodError
from secateurs.plan import BlockMask, Mask, PatternMask, SparsityPlan
from secateurs.plan.quantization import LEAST_BITS, MOST_BITS, Levels
from secateurs.plan.weight_patterns import Family
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.units import removed
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.ranking import lowest
from secateurs.reconstruction.admm import ITERATIONS, Admm, Choose, InputNorm
from secateurs.reconstruction.least_squares import NormalEquations
from secateurs.reconstruction.walk import Group, Run, Walk, warn_of_few_tokens


class LayerwiseAdmmPruner(Pruner):
    """Masks by ADMM on each linear's own least-squares problem.

    Args:
        iterations: with a free mask, and again with the mask held.
        ridge: how strongly weights are drawn to their old values, relative to the mean square of
            the inputs.
        bits: of the levels of what is kept, or 0 for none.
    """

    produces = frozenset({"patterns", "weights", "blocks"})
    needs = Needs.ACTIVATIONS
    seeded = False
    nested = False
    chooses = True

    def __init__(self, iterations: int = ITERATIONS, ridge: float = 0.01, bits: int = 0) -> None:
        if iterations < 1 or not ridge >= 0:
            raise MethodError(
                "expected at least one iteration and a ridge of at least 0, got "
                f"{iterations} and {ridge}"
            )
        if bits not in (0, *range(LEAST_BITS, MOST_BITS + 1)):
            raise MethodError(
                f"expected {LEAST_BITS} to {MOST_BITS} bits or 0 for none, got {bits}"
            )
        self.iterations, self.ridge, self.bits = iterations, ridge, bits
        self._walk: Walk | None = None
        self._runs: list[Run] = []
        self._seen = 0  # batches of this round
        self._sums: NormalEquations | None = None
        self._masks: dict[str, Mask] = {}
        self._levels: dict[str, Levels] = {}

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites, budget, seed)
        self._removed = self._shares()
        self.rounds = 4 * len(sites.layers)  # one for each group of linears that read one input

    @torch.no_grad()
    def observe(self, batch: Batch) -> None:
        with evaluating(self.model), torch.no_grad():
            if self._walk is None:
                pruned = copy.deepcopy(self.model)
                self._walk = Walk(self.sites, self.model, pruned)
                self._groups = [
                    g for i in range(len(self.sites.layers)) for g in self._walk.groups(i)
                ]
            group = self._groups[0]
            columns = self._columns(group)
            if self._sums is None:
                self._sums = self._walk.equations(group, columns)
            if len(self._runs) < self.batches:
                self._runs.append(self._walk.start(batch))
            self._walk.add(self._sums, group, columns, self._runs[self._seen])
        self._seen += 1

    @torch.no_grad()
    def end_round(self) -> None:
        assert self._walk is not None and self._sums is not None
        group = self._groups.pop(0)
        self._solve(self._walk, group, self._sums)
        self._sums, self._seen = None, 0
        if self._groups and self._groups[0].layer != group.layer:
            with evaluating(self.model), torch.no_grad():
                for run in self._runs:
                    self._walk.advance(group.layer, run)

    def plan(self) -> SparsityPlan:
        if not self._masks:
            raise DataError("layer-wise ADMM expects calibration batches, got none")
        return SparsityPlan(self._masks, self.sites.fingerprint(), levels=self._levels)
