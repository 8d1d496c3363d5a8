"""Gradual magnitude pruning: the smallest weights go along a training (Zhu and Gupta 2017, arXiv
1710.01878).

Every `every` steps the weights with the smallest squares are masked; the share that goes follows a
cubic schedule. What is masked keeps its value, for it has no gradient, so that it returns only
where others shrink below it. It is what a method that trains must beat: `magnitude` masks all at
once, and is no rival to a training.

Prunes weights (as published), and blocks and patterns, for which squares are summed over the unit.
Needs weights and a training with any loss. Cost of a step: nothing but, every `every` steps, a
ranking.

Departures: weights are compared over the whole model (`allocator="per_layer"` takes the same share
of each linear, as published); the span of the schedule is that of `seven`, a tenth to seven tenths
of the training, where the paper has no one span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.masking.gates import Gates
from secateurs.pruning.base import Needs
from secateurs.pruning.schedules import GradualMasks
from secateurs.pruning.weight_scores import WeightPruner


class GradualMagnitudePruner(WeightPruner):
    """Squared weights, in more and more masks.

    Args:
        begin, end: of the schedule, as shares of the training.
        every: steps between two masks.
    """

    needs = Needs.WEIGHTS | Needs.TRAINING
    seeded = False

    def __init__(self, begin: float = 0.1, end: float = 0.7, every: int = 5) -> None:
        self._masks = GradualMasks(begin, end, every)
        self._final = False

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self.linear_weights()  # refuses linears that are a part of a larger one

    def begin(self, steps: int) -> None:
        super().begin(steps)
        (target,) = self.budget.asked().values()
        self._masks.start(target, steps)

    def after_step(self, step: int) -> None:
        share = self._masks.due(step + 1)
        if share is None:
            return
        weights = self.linear_weights()
        for name, keep in self.kept_at(share).items():
            self.gates[name] = keep.to(weights[name])
        self._final = share >= self._masks.schedule.last

    def figures(self) -> dict[str, float]:
        return {"gone": self._masks.gone}

    @torch.no_grad()
    def weight_scores(self) -> Mapping[str, Tensor]:
        """Squares; once the whole budget is gone, what the gates keep is what stays."""
        if self._final:
            return dict(self.gates)
        return {name: weight.float().square() for name, weight in self.linear_weights().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"gates": dict(self.gates), "gone": self._masks.gone, "final": self._final}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = self.linear_weights()
        for name, gate in state["gates"].items():
            self.gates[name] = gate.to(weights[name])
        self._masks.gone, self._final = state["gone"], state["final"]
