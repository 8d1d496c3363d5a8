"""SEVEN: pruning by a signal-to-noise corrected sensitivity (2024, arXiv 2403.12688).

After each optimizer step, with g = |dL/dw| and its moments m <- a m + (1 - a) g,
v <- b v + (1 - b) g^2, both corrected for their start:

    S <- S + |w g m / (sqrt(v) + 1e-9)|

S is never reset; m / sqrt(v) is 1 for steady gradients and small for rare ones, so that weights
with a steady say are kept. S = 0 for what is gone, which stays gone; the share that goes follows a
cubic schedule, compared over the whole model. `seven` does this along a training, `seven_pre`
before one: with frozen weights, the schedule over the calibration batches.

Prunes weights (as published), and blocks and patterns, for which S is summed over the unit, so that
a kernel gains. Needs gradients of a labelled loss. Cost of a step: a dozen passes over the weights
and, every `every` steps, a ranking. State: three float32 per weight.

Defaults: a = 0.8, b = 0.9 of the authors' code; 100 batches before training there, here as many as
are given; the span of the schedule is given there in steps per task, here as shares of the training
(ours). Departures: only linears of the layers are pruned, not the pooler; equal scores go by
position; a mask is made every 5 steps (there in each), and the last one meets the budget exactly
(there a little more is kept); gradients are read before they are clipped; `seven_pre` is rebuilt
from its description, its code is not public.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.data.batches import Batch, evaluating, is_label, loss_of, run, to_device
from secateurs.errors import DataError, MethodError
from secateurs.masking.gates import Gates
from secateurs.pruning.base import Needs
from secateurs.pruning.schedules import GradualMasks, Schedule
from secateurs.pruning.weight_scores import WeightPruner

EPSILON = 1e-9
GONE = 0.0  # the score of what is gone; all else scores at least LEAST
LEAST = torch.finfo(torch.float32).tiny


class Sensitivity:
    """The cumulative score S of one weight, of any shape.

    Args:
        weight: what is scored; never changed.
        decay, decay_square: a and b.
        signed: moments of the gradient itself, not of its size.
    """

    def __init__(self, weight: Tensor, decay: float, decay_square: float, signed: bool) -> None:
        self.weight, self.signed = weight, signed
        self.decay, self.decay_square = decay, decay_square
        zeros = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
        self.m, self.v, self.score = zeros, zeros.clone(), zeros.clone()
        self.count = 0
        self._factor: Tensor | None = None

    @torch.no_grad()
    def read(self, gradient: Tensor) -> None:
        """Take in a gradient; its part in the score waits for the weight to have moved."""
        self.count += 1
        g = gradient.float() if self.signed else gradient.float().abs()
        self.m.mul_(self.decay).add_(g, alpha=1 - self.decay)
        self.v.mul_(self.decay_square).addcmul_(g, g, value=1 - self.decay_square)
        m = self.m / (1 - self.decay**self.count)
        v = (self.v / (1 - self.decay_square**self.count)).sqrt_().add_(EPSILON)
        self._factor = g.mul(m).div_(v)

    @torch.no_grad()
    def accumulate(self, keep: Tensor | None) -> None:
        """Add |w g m / v| with the weight as it is now; what is not kept scores nothing."""
        if self._factor is not None:
            self.score += (self._factor * self.weight).abs_()
            self._factor = None
        self.score.clamp_(min=LEAST)
        if keep is not None:
            self.score.masked_fill_(keep == 0, GONE)


class _Seven(WeightPruner):
    labelled = True
    seeded = False

    def __init__(self, decay: float, decay_square: float, signed: bool) -> None:
        for name, value in (("decay", decay), ("decay_square", decay_square)):
            if not 0 <= value < 1:
                raise MethodError(f"expected {name} from 0 to below 1, got {value}")
        self._settings = (decay, decay_square, bool(signed))
        self._sensitivities: dict[str, Sensitivity] = {}

    def _track(self) -> None:
        self.units()  # refuses blocks and patterns that do not fit
        self._sensitivities = {
            name: Sensitivity(weight, *self._settings)
            for name, weight in self.linear_weights().items()
        }

    def _accumulate(self, gates: Gates) -> None:
        for name, sensitivity in self._sensitivities.items():
            sensitivity.accumulate(gates.get(name))

    def _mask(self, gates: Gates, fraction: float) -> None:
        """Shut the gates of the `fraction` that scores least."""
        for name, keep in self.kept_at(fraction).items():
            gates[name] = keep.to(self._sensitivities[name].weight)

    def weight_scores(self) -> Mapping[str, Tensor]:
        return {name: s.score for name, s in self._sensitivities.items()}


class SevenPruner(_Seven):
    """SEVEN along a training.

    Args:
        decay, decay_square: a and b of the moments.
        signed: moments of the gradient itself, to test the paper's claim against.
        begin, end: of the schedule, as shares of the training.
        every: steps between two masks.
    """

    needs = Needs.GRADIENTS | Needs.TRAINING

    def __init__(
        self,
        decay: float = 0.8,
        decay_square: float = 0.9,
        signed: bool = False,
        begin: float = 0.1,
        end: float = 0.7,
        every: int = 5,
    ) -> None:
        super().__init__(decay, decay_square, signed)
        self._masks = GradualMasks(begin, end, every)

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self._track()

    def begin(self, steps: int) -> None:
        super().begin(steps)
        (target,) = self.budget.asked().values()
        self._masks.start(target, steps)

    def after_backward(self, step: int) -> None:
        if step >= self._masks.schedule.begin:
            for sensitivity in self._sensitivities.values():
                assert sensitivity.weight.grad is not None
                sensitivity.read(sensitivity.weight.grad)

    def after_step(self, step: int) -> None:
        self._accumulate(self.gates)
        share = self._masks.due(step + 1)
        if share is not None:
            self._mask(self.gates, share)

    def state_dict(self) -> dict[str, Any]:
        of_weights = {
            name: {"m": s.m, "v": s.v, "score": s.score, "count": s.count}
            | ({"gate": self.gates[name]} if name in self.gates else {})
            for name, s in self._sensitivities.items()
        }
        return {"gone": self._masks.gone, **of_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._masks.gone = state["gone"]
        for name, sensitivity in self._sensitivities.items():
            saved = state[name]
            for key in ("m", "v", "score"):
                getattr(sensitivity, key).copy_(saved[key])
            sensitivity.count = saved["count"]
            if "gate" in saved:
                self.gates[name] = saved["gate"].to(sensitivity.weight)


class SevenPrePruner(_Seven):
    """SEVEN before a training.

    Args:
        decay, decay_square: a and b of the moments.
        signed: moments of the gradient itself, to test the paper's claim against.
        rounds: passes over the data.
    """

    needs = Needs.GRADIENTS
    nested = False  # what is masked on the way follows a schedule to the budget

    def __init__(
        self,
        decay: float = 0.8,
        decay_square: float = 0.9,
        signed: bool = False,
        rounds: int = 1,
    ) -> None:
        super().__init__(decay, decay_square, signed)
        if rounds < 1:
            raise MethodError(f"expected at least one round, got {rounds}")
        self.rounds = rounds
        self._seen = 0
        self._shut: dict[str, Tensor] = {}

    def observe(self, batch: Batch) -> None:
        if not self._sensitivities:
            self._track()
        weights = self.linear_weights()
        with evaluating(self.model), Gates(self.model, self.sites) as gates:
            for name, gate in self._shut.items():
                gates[name] = gate
            for weight in weights.values():
                weight.requires_grad_()
            if not any(map(is_label, batch)):
                raise DataError("expected batches with labels and a model with a task head")
            loss = loss_of(run(self.model, to_device(batch, self.model))).sum()
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if not bool(torch.isfinite(gradient).all()):
                    raise MethodError(f"expected finite gradients, got NaN or infinity at {name}")
                self._sensitivities[name].read(gradient)
            self._accumulate(gates)
            self._seen += 1
            (target,) = self.budget.asked().values()
            self._mask(gates, Schedule(0.0, target, 0, self.rounds * self.batches)(self._seen))
            self._shut = dict(gates)

    def scores(self) -> Mapping[str, Tensor]:
        if not self._sensitivities:
            raise DataError("SEVEN expects calibration batches, got none")
        return super().scores()
