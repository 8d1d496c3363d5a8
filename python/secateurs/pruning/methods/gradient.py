"""Gradient ranking of heads and neurons (Michel et al. 2019, arXiv 1905.10650).

I_u = E_x |dL(x)/d xi_u| at the gate xi_u = 1 of unit u, per example, so that opposite signs do not
cancel; divided by the L2 norm of its layer; the lowest go first. In `rounds` > 1 rounds an equal
part of the budget goes each round and the importance is measured again on the gated model.

Without labels the loss is the squared distance between the dense model's outputs and the gated
model's. At xi = 1 that loss and its gradient vanish, so what counts is its curvature, the squared
length of d(output)/d xi_u, estimated without bias by (v . d(output)/d xi_u)^2 with one Gaussian v
per example; its root mean square over examples takes the place of E|gradient|. Departures from the
paper: neurons, rounds of any number, and this label-free form.

Prunes heads, neurons. Needs gradients: per round, one forward and one backward pass over the
calibration batches. Defaults: one round; per-layer norm, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateurs.data.batches import Batch
from secateurs.errors import DataError, MethodError
from secateurs.plan import SparsityPlan
from secateurs.plan.masks import KeepMask
from secateurs.processes import summed
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.gate_gradients import importance_sums


class GradientPruner(Pruner):
    """Expected absolute gradient of each unit's gate.

    Args:
        rounds: passes over the data, each removing an equal part of the budget.
        normalize: "layer" divides importances by the L2 norm of their layer, "none" compares them
            as they are.
    """

    produces = frozenset({"heads", "neurons"})
    needs = Needs.GRADIENTS

    def __init__(self, rounds: int = 1, normalize: str = "layer") -> None:
        if rounds < 1:
            raise MethodError(f"expected at least one round, got {rounds}")
        if normalize not in ("layer", "none"):
            raise MethodError(f"expected normalize to be 'layer' or 'none', got {normalize!r}")
        self.rounds, self.normalize = rounds, normalize
        self._round = 0
        self._gone = SparsityPlan()
        self._sums: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def observe(self, batch: Batch) -> None:
        sums, self._power = importance_sums(
            self.model, self.sites, self.units(), self._gone, batch, self.generator
        )
        for name, total in sums.items():
            self._sums[name] = self._sums.get(name, 0) + total

    def end_round(self) -> None:
        self._round += 1
        sums = {name: summed(total) for name, total in self._sums.items()}
        self._last = {name: self._importance(total) for name, total in sums.items()}
        self._sums = {}
        if self._round < self.rounds:
            self._gone = self._allocated(self._round / self.rounds)

    def scores(self) -> Mapping[str, Tensor]:
        if not self._last:
            raise DataError("gradient ranking expects calibration batches, got none")
        if not any(bool(score.any()) for score in self._last.values()):
            raise MethodError("expected gradients that tell units apart, got zeros everywhere")
        return {name: self._sunk(name, score) for name, score in self._last.items()}

    def _importance(self, total: Tensor) -> Tensor:
        importance = total.sqrt() if self._power == 2 else total
        if self.normalize == "layer":
            importance = importance / (importance.norm() + 1e-20)
        return importance

    def _sunk(self, name: str, score: Tensor) -> Tensor:
        """Units gone in an earlier round stay gone: they score below any other."""
        mask = self._gone.masks.get(name)
        return torch.where(mask.keep, score, -1.0) if isinstance(mask, KeepMask) else score

    def _allocated(self, part: float) -> SparsityPlan:
        return self.allocated({name: f * part for name, f in self.budget.asked().items()})
