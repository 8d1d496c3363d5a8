"""DSP: differentiable subset pruning of attention heads (Li et al. 2021, arXiv 2108.04657).

One importance w per head, float64. In every training forward pass r = w + g with Gumbel noise g,
and k times in a row p_j = softmax(r / t), r <- r + log(1 - p_j); the gates are sum_j p_j, which sum
to k. The temperature t falls from t0 to t1, geometrically over the cooldown, so that the gates end
as a hard choice of exactly k heads; in evaluation they are the k largest w. With `straight_through`
there is neither noise nor temperature: the forward pass takes the k largest w, and the gradient
passes to w as if they were chosen softly.

Prunes heads, the number kept being exact over the whole model. Needs a labelled loss and a
training: joint with the model's, or with `pipelined` of w alone on a fine-tuned, frozen model. Cost
of a step: k softmaxes over the heads, nothing beside the model.

There are two schedules. `published` has the defaults of the authors' code: w uniform after Xavier,
learning rate 0.5, t0 = 1000, t1 = 1e-8 (a third party reports 0.1 from the paper's appendix); the
cooldown is two thirds of the training, as 25,000 steps are of their MNLI run. In some hundred steps
that temperature passes through the range in which anything is learnt too fast, so that w stays near
its random start. `short` is ours, for trainings below 5,000 steps, where it is the default: for the
first tenth of the steps all heads are open, and

    w = 2 z(log sum over examples of |dL/d gate|)

with z to mean 0 and deviation 1; from there to the end of the cooldown t falls from 1 to 0.05, the
noise shrinks to 0, and w learns at 15 / (steps of the cooldown), within 0.02 and 0.5; then w is
frozen and the choice hard.

Departures: gates multiply a head's context, which is the same function as its attention
probabilities; w is not part of the clipped gradient norm; evaluation during training takes the hard
choice, too; ties of the straight-through form go by position. Single gates exceed 1 midway (by the
method, not by mistake): `figures` reports the largest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates, straight_through
from secateurs.processes import averaged
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.units import kept_heads
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.gate_gradients import measuring
from secateurs.pruning.ranking import lowest
from secateurs.pruning.schedules import Schedule

TINY = torch.finfo(torch.float64).tiny
TEMPERATURES = {
    "published": (1000.0, 1e-8),
    "short": (1.0, 0.05),
}  # where the cooldown starts, ends
SCHEDULES = ("auto", *TEMPERATURES)
LONG = 5000  # steps from which on auto is published
RATE = 0.5
MEASURED = 0.1  # share of a short training that its start is measured in
PATH = 15.0  # how far w can go in a short training
LEAST = 1e-6  # of the largest sensitivity: what lies below is as good as nothing


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, float64: -log(-log u), u uniform in (tiny, 1)."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(TINY)
    return -(-uniform.log()).log()


def relaxed_top_k(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Soft choice of `k` of `scores` `[n]`, float64: weights that sum to k, and are the k largest's
    zeros and ones in the limit of low temperature.

    Raises MethodError for a k that is not between 1 and n, or scores not in float64: in float32
    the logarithm of what is left underflows.
    """
    if not 1 <= k <= scores.numel():
        raise MethodError(f"expected to choose between 1 and {scores.numel()}, got {k}")
    if scores.dtype != torch.float64:
        raise MethodError(f"expected scores in float64, got {scores.dtype}")
    chosen = torch.zeros_like(scores)
    for _ in range(k):
        share = (scores / temperature).log_softmax(-1).exp()
        chosen = chosen + share
        scores = scores + (1 - share).clamp_min(TINY).log()
    return chosen


def start_from(sensitivities: Tensor) -> Tensor:
    """Importances `[n]` from the sensitivities `[n]` of heads: twice their logarithms brought to
    mean 0 and deviation 1; zeros where all are equal."""
    logarithms = sensitivities.clamp_min(LEAST * float(sensitivities.max())).clamp_min(TINY).log()
    spread = logarithms - logarithms.mean()
    return 2 * spread / logarithms.std(correction=0).clamp_min(TINY)


class DSPPruner(Pruner):
    """Differentiable subset pruning.

    Args:
        lr: learning rate of the importances; by default the schedule's.
        t0, t1: temperatures at which the cooldown begins and ends; by default the schedule's.
        cooldown: when it ends: a share of the training if below 1, else steps.
        schedule: published, short, or auto: short below 5,000 steps.
        pipelined: freeze the model, train the importances alone.
        straight_through: the variant without noise and temperature.
    """

    produces = frozenset({"heads"})
    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    chooses = True

    def __init__(
        self,
        lr: float | None = None,
        t0: float | None = None,
        t1: float | None = None,
        cooldown: float = 2 / 3,
        schedule: str = "auto",
        pipelined: bool = False,
        straight_through: bool = False,
    ) -> None:
        if schedule not in SCHEDULES:
            raise MethodError(f"expected a schedule in {', '.join(SCHEDULES)}, got {schedule!r}")
        if straight_through and schedule == "short":
            raise MethodError(
                "expected no short schedule of a straight-through choice, which has neither noise "
                "nor temperature, got both"
            )
        if t0 is not None and t1 is not None:
            _check_fall(t0, t1)
        if (lr is not None and lr <= 0) or cooldown <= 0:
            raise MethodError(f"expected lr and cooldown of more than 0, got {lr} and {cooldown}")
        self.t0, self.t1, self.cooldown, self.schedule = t0, t1, cooldown, schedule
        self.lr = RATE if lr is None else lr
        self.trains_model = not pipelined
        self._given_lr = lr is not None
        self._hard = bool(straight_through)
        self._measured = 0  # steps
        self._decided = math.inf  # the step from which on w is frozen
        self._sensitivity: Tensor | None = None
        self._noise: Schedule | None = None
        self._schedule: Schedule | None = None
        self._done = 0
        self._largest = 1.0

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites, budget, seed)
        self.kept = kept_heads(sites, budget.asked()["heads"])

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self.importance = nn.Parameter(self.one_per_head())

    def begin(self, steps: int) -> None:
        super().begin(steps)
        if self._hard:
            return
        cooldown = self.cooldown * steps if self.cooldown < 1 else self.cooldown
        end = max(1, round(cooldown))
        if end >= steps:
            raise MethodError(
                f"expected a cooldown that ends before the training's {steps} steps do, got one of "
                f"{end} steps: the gates would not be a hard choice at the end"
            )
        auto = "short" if steps < LONG else "published"
        name = auto if self.schedule == "auto" else self.schedule
        t0, t1 = (
            usual if given is None else given
            for given, usual in zip((self.t0, self.t1), TEMPERATURES[name], strict=True)
        )
        _check_fall(t0, t1)
        if name == "short":
            self._measured, self._decided = max(1, round(MEASURED * steps)), end
            if self._measured >= end:
                raise MethodError(
                    f"expected a cooldown that ends after the {self._measured} steps in which the "
                    f"short schedule measures, got one that ends at step {end}"
                )
            self._noise = Schedule(1.0, 0.0, self._measured, end, "linear")
            if not self._given_lr:
                self.lr = min(max(PATH / (end - self._measured), 0.02), RATE)
        self._schedule = Schedule(t0, t1, self._measured, end, "geometric")

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.importance], "lr": self.lr, "weight_decay": 0.0}]

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        training = self.model.training
        if training and self._done < self._measured:
            gates = measuring(self.importance, torch.ones_like(self.importance), inputs)
        elif training and not self._hard and self._done < self._decided:
            noise = gumbel(tuple(self.importance.shape), self.generator).to(self.importance)
            scale = 1.0 if self._noise is None else self._noise(self._done)
            gates = relaxed_top_k(self.importance + scale * noise, self.kept, self._temperature)
        else:
            (gone,) = lowest([self.importance.detach()], self.importance.numel() - self.kept)
            gates = (~gone).to(self.importance)
            if training:
                gates = straight_through(gates, self.importance)
        self._largest = float(gates.detach().max())
        for name, part in self.heads_by_site(gates).items():
            self.gates[name] = part

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        gradient = self.importance.grad
        if gradient is None:
            return
        averaged(gradient)
        if self._done < self._measured:
            before = self._sensitivity
            self._sensitivity = gradient.clone() if before is None else before + gradient
            self.importance.copy_(start_from(self._sensitivity))
        if self._done < self._measured or self._done >= self._decided:
            self.importance.grad = None  # for an optimizer to pass it over

    def after_step(self, step: int) -> None:
        self._done = step + 1

    def figures(self) -> dict[str, float]:
        return {"temperature": self._temperature, "largest_gate": self._largest}

    def scores(self) -> Mapping[str, Tensor]:
        return self.heads_by_site(self.importance.detach())

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self.importance.detach(),
            "sensitivity": self._sensitivity,
            "done": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.importance.copy_(state["importance"])
        measured = state["sensitivity"]
        self._sensitivity = None if measured is None else measured.to(self.importance)
        self._done = state["done"]

    @property
    def _temperature(self) -> float:
        """Now; without a schedule 1, which nothing reads."""
        return 1.0 if self._schedule is None else self._schedule(self._done)


def _check_fall(t0: float, t1: float) -> None:
    if not 0 < t1 < t0:
        raise MethodError(f"expected temperatures that fall, both above 0, got {t0:g} and {t1:g}")
