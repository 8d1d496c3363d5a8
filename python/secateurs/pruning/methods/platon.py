"""PLATON: pruning by an upper bound of importance (Zhang et al. 2022, arXiv 2206.12562).

The importance of a weight in one step, I = |w dL/dw|, is noise of that batch. Its mean over a
window of D steps, I_D, is smoothed, and so is how far it strays, U:

    M <- a M + (1 - a) I_D        U <- b U + (1 - b) |I_D - M|        S = M U

S is large where a weight is important or where that is uncertain; what scores least goes. It is set
to zero in place, once a window, and not gated: its gradient and the optimizer's moments of it stay,
so that it moves on and returns as soon as its score is not among the lowest. Only from the end of
the schedule on gates are shut for good. The share that is zero follows a cubic schedule, compared
over the whole model. An evaluation before the end sees weights that have moved since.

Prunes weights (as published), and blocks and patterns, for which S is summed over the unit. Needs
gradients of a labelled loss, and a learning rate two to four times that of plain fine-tuning:
without it little returns. Cost of a step: four passes over the weights and, once a window, a
ranking. State: three float32 per weight.

Defaults: a = 0.85 of the authors' code, b = 0.85, which it has for most tasks; D is 10 there, here
a sixtieth of the training but at most 10; the schedule begins after 5 % of the training, two
windows at least, and ends at 72 %, as 5,400 and 27,000 steps are of their MNLI run. With b = 1, S
is M alone. Departures: the weights of the layers' linears are pruned, not their biases; the first
window has no empty step in it; equal scores go by position, and budgets are met exactly; the last
mask stays, where the authors rank again in each step that follows; their b = 2, a mean of squares,
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.pruning.base import Needs
from secateurs.pruning.schedules import Schedule
from secateurs.pruning.weight_scores import WeightPruner

LONGEST_WINDOW = 10
WINDOWS = 60  # of a training that is too short for the longest
FEWEST = 2  # windows before the first mask: before, nothing is known of how importance strays


class ImportanceBound:
    """M, U and the running window of one weight, of any shape.

    Args:
        like: the weight that is scored.
        decay, decay_uncertainty: a and b.
    """

    def __init__(self, like: Tensor, decay: float, decay_uncertainty: float) -> None:
        self.decay, self.decay_uncertainty = decay, decay_uncertainty
        zeros = torch.zeros_like(like, dtype=torch.float32, requires_grad=False)
        self.importance, self.uncertainty, self.window = zeros, zeros.clone(), zeros.clone()

    def read(self, weight: Tensor, gradient: Tensor, count: int) -> None:
        """Take one more step into the window, which holds `count` already."""
        now = (weight.float() * gradient.float()).abs_()
        self.window.lerp_(now, 1 / (count + 1))

    def end_window(self) -> None:
        """Let the window move both statistics."""
        self.importance.lerp_(self.window, 1 - self.decay)
        strayed = (self.window - self.importance).abs_()
        self.uncertainty.lerp_(strayed, 1 - self.decay_uncertainty)

    def score(self) -> Tensor:
        if self.decay_uncertainty == 1:
            return self.importance
        return self.importance * self.uncertainty


class PlatonPruner(WeightPruner):
    """PLATON.

    Args:
        decay: a, of the importance.
        decay_uncertainty: b, of the uncertainty; 1 leaves it out.
        window: D, in steps; 0 means a sixtieth of the training, at most 10.
        begin, end: of the schedule, as shares of the training.
    """

    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    seeded = False

    def __init__(
        self,
        decay: float = 0.85,
        decay_uncertainty: float = 0.85,
        window: int = 0,
        begin: float = 0.05,
        end: float = 0.72,
    ) -> None:
        if not 0 <= decay < 1 or not 0 <= decay_uncertainty <= 1 or window < 0:
            raise MethodError(
                "expected decay from 0 to below 1, decay_uncertainty from 0 to 1 and a window of "
                f"at least 0 steps, got {decay}, {decay_uncertainty} and {window}"
            )
        self._decays = (decay, decay_uncertainty)
        self._asked_window = self._window = window
        self._span = (begin, end)
        self._bounds: dict[str, ImportanceBound] = {}
        self._in_window = 0
        self._windows = 0
        self._final = False
        self._kept: dict[str, Tensor] = {}
        self._revived = 0
        self._schedule: Schedule | None = None

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self.units()  # refuses blocks and patterns that do not fit
        self._bounds = {
            name: ImportanceBound(weight, *self._decays)
            for name, weight in self.linear_weights().items()
        }

    def begin(self, steps: int) -> None:
        super().begin(steps)
        self._window = self._asked_window or min(max(round(steps / WINDOWS), 1), LONGEST_WINDOW)
        (target,) = self.budget.asked().values()
        begin, end = (round(share * steps) for share in self._span)
        begin = max(begin, FEWEST * self._window)
        if end <= begin:
            raise MethodError(
                f"expected a schedule that ends after {FEWEST} windows of {self._window} steps, "
                f"got one that ends at step {end} of {steps}"
            )
        self._schedule = Schedule(0.0, target, begin, end).within(steps)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        assert self._schedule is not None
        if self._final:
            return
        weights = self.linear_weights()
        ended = self._in_window == self._window
        if ended:
            self._in_window, self._windows = 0, self._windows + 1
        for name, bound in self._bounds.items():
            if ended:
                bound.end_window()
            gradient = weights[name].grad
            assert gradient is not None
            bound.read(weights[name], gradient, self._in_window)
        self._in_window += 1
        done = step + 1
        if self._windows < FEWEST:
            return
        if done >= self._schedule.end:
            self._final = True
            self._shut(self.kept_at(self._schedule.last))
        elif ended and (fraction := self._schedule(done)) > 0:
            self._zero(weights, self.kept_at(fraction))

    def figures(self) -> dict[str, float]:
        return {"revived": float(self._revived), "final": float(self._final)}

    def weight_scores(self) -> Mapping[str, Tensor]:
        if self._windows < FEWEST:
            raise MethodError(
                f"PLATON expects {FEWEST} windows of {self._window} steps before it decides, got "
                f"{self._windows}"
            )
        return {name: bound.score() for name, bound in self._bounds.items()}

    def state_dict(self) -> dict[str, Any]:
        bounds = {
            name: {"importance": b.importance, "uncertainty": b.uncertainty, "window": b.window}
            for name, b in self._bounds.items()
        }
        return {
            "bounds": bounds,
            "in_window": self._in_window,
            "windows": self._windows,
            "final": self._final,
            "kept": dict(self._kept),
            "revived": self._revived,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, bound in self._bounds.items():
            for key, value in state["bounds"][name].items():
                getattr(bound, key).copy_(value)
        self._in_window, self._windows = state["in_window"], state["windows"]
        self._revived, self._final = state["revived"], state["final"]
        device = next(self.model.parameters()).device
        self._kept = {name: keep.to(device) for name, keep in state["kept"].items()}
        if self._final:
            self._shut(self._kept)

    def _zero(self, weights: Mapping[str, Tensor], kept: dict[str, Tensor]) -> None:
        """Set what goes to zero; count what was zero at the last time and is not now."""
        for name, keep in kept.items():
            weights[name].masked_fill_(~keep, 0)
        if self._kept:
            self._revived = sum(int((kept[n] & ~before).sum()) for n, before in self._kept.items())
        self._kept = kept

    def _shut(self, kept: dict[str, Tensor]) -> None:
        self._kept = kept
        for name, weight in self.linear_weights().items():
            self.gates[name] = kept[name].to(weight)
