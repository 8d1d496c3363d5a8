"""Layer-wise ADMM: masks under which the weights that stay can still give what each linear gave.

From the first linear upwards, on the model pruned so far: inputs X and wanted outputs Y of the
calibration tokens give the least-squares weight T and the norm |W - T|^2 = tr((W-T) H (W-T)^T), H =
X X^T + ridge mean(diag X X^T) I. ADMM looks for the masked W nearest to T, and the linear goes on
with it (`secateurs.reconstruction.admm`: formulas, papers). Y is what the dense model gives there;
for the last linear of a sub-layer what brings the residual stream to the dense one (K-prune, Park
et al. 2024). After `iterations` with a free mask it is held for as many.

Prunes patterns, weights, blocks; every linear loses the same share. A library of patterns is
selected for each linear from |w| |x|. With `bits` the held iterations also round to b-bit levels,
fitted to the weights as they are when the mask is held. Needs batches; no labels, no gradients.
Cost: for each linear a pass of the data through its layer, one factorisation of K x K, and twice
`iterations` products of N x K x K.

As of every method, the plan is masks and levels alone. `refit` makes the weights that go with it:
it solves the same problems with the mask held. That is a pass more, and in turn the masks of all
methods are fitted in one way, and a plan is still pure data that can be merged and saved.
Departures: the mask is found by the iterations also where outputs share it; Y; and the bias takes
what is left of the mean.
"""

from __future__ import annotations

import copy
from itertools import chain

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
        self._runs: list[list[Run]] = []  # of each batch
        self._seen = 0  # batches of this round
        self._sums: NormalEquations | None = None
        self._masks: dict[str, Mask] = {}
        self._levels: dict[str, Levels] = {}

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites.of_one_stack("layer-wise ADMM"), budget, seed)
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
            for run in self._runs[self._seen]:
                self._walk.add(self._sums, group, columns, run)
        self._seen += 1

    @torch.no_grad()
    def end_round(self) -> None:
        assert self._walk is not None
        assert self._sums is not None
        group = self._groups.pop(0)
        self._sums.gather()
        self._solve(self._walk, group, self._sums)
        self._sums, self._seen = None, 0
        if self._groups and self._groups[0].layer != group.layer:
            with evaluating(self.model), torch.no_grad():
                for run in chain.from_iterable(self._runs):
                    self._walk.advance(group.layer, run)

    def plan(self) -> SparsityPlan:
        if not self._masks:
            raise DataError("layer-wise ADMM expects calibration batches, got none")
        return SparsityPlan(self._masks, self.sites.fingerprint(), levels=self._levels)

    def _solve(self, walk: Walk, group: Group, sums: NormalEquations) -> None:
        """Decide the masks of a group, and give its linears in the pruned model their weights."""
        warn_of_few_tokens(sums, group)
        views = walk.views(group)
        old = stacked([view.weight for view in views]).double()
        sizes = [len(view.weight) for view in views]
        targets = (old + sums.solve(self.ridge)).split(sizes)
        norm = InputNorm(sums.damped(self.ridge))
        for view, target in zip(views, targets, strict=True):
            name = f"layers.{group.layer}.{view.linear.role}"
            admm, choose = Admm(target, norm), self._chooser(name)
            keep = admm.choose(choose, self.iterations)
            if self.bits:
                self._levels[name] = Levels.fit(admm.weight, self.bits)
            admm.hold(keep, self._levels.get(name), self.iterations)
            view.write(admm.weight)
            self._masks[name] = self._mask(keep)
        new = stacked([view.weight for view in views]).double()
        for view, bias in zip(views, sums.bias(new - old).split(sizes), strict=True):
            if (held := view.bias) is not None:
                view.write(bias=held + bias.to(held))

    def _columns(self, group: Group) -> Tensor:
        """All inputs of a group: `[K]`."""
        weight = self.linear_weight(group.layer, group.linears[0].role)
        return torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)

    def _shares(self) -> dict[str, int]:
        """Units that each linear loses, equal shares whose sum is what the budget says."""
        (fraction,) = self.budget.asked().values()
        before, shares = 0, {}
        for name, shape in self.units().items():
            behind = before + shape[0] * shape[1]
            shares[name] = removed(fraction, behind) - removed(fraction, before)
            before = behind
        return shares

    def _chooser(self, name: str) -> Choose:
        """What keeps most of a weight's energy: of a pattern, of single weights, or of blocks."""
        if self.budget.patterns is not None:
            return _PatternChoice(self.budget)
        bn, bk = self._tile()

        def largest(weight: Tensor) -> Tensor:
            n, k = weight.shape
            energy = weight.square().view(n // bn, bn, k // bk, bk).sum((1, 3))
            (gone,) = lowest([energy], self._removed[name])
            return (~gone).repeat_interleave(bn, 0).repeat_interleave(bk, 1)

        return largest

    def _mask(self, keep: Tensor) -> Mask:
        if self.budget.patterns is not None:
            return PatternMask(keep, self.budget.pattern_block)
        bn, bk = self._tile()
        return BlockMask(keep[::bn, ::bk], (bn, bk))


class _PatternChoice:
    """The nearest member of the budget's family, which is selected from the first weights seen."""

    def __init__(self, budget: Budget) -> None:
        (fraction,) = budget.asked().values()
        self._budget, self._kept = budget, budget.kept_in_pattern(fraction)
        self._family: Family | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        if self._family is None:
            self._family = self._budget.family(weight, self._kept)
        return self._family.keep(weight)
