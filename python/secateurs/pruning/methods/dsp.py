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

Defaults of the authors' code: w uniform after Xavier, learning rate 0.5, t0 = 1000, t1 = 1e-8 (a
third party reports 0.1 from the paper's appendix); the cooldown is two thirds of the training, as
25,000 steps are of their MNLI run. Departures: gates multiply a head's context, which is the same
function as its attention probabilities; w is not part of the clipped gradient norm; evaluation
during training takes the hard choice, too; ties of the straight-through form go by position. Single
gates exceed 1 midway (by the method, not by mistake): `figures` reports the largest.
"""

from __future__ import annotations

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
from secateurs.pruning.ranking import lowest
from secateurs.pruning.schedules import Schedule

TINY = torch.finfo(torch.float64).tiny


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


class DSPPruner(Pruner):
    """Differentiable subset pruning.

    Args:
        lr: learning rate of the importances.
        t0, t1: temperatures at which the cooldown begins and ends.
        cooldown: of the temperature: a share of the training if below 1, else steps.
        pipelined: freeze the model, train the importances alone.
        straight_through: the variant without noise and temperature.
    """

    produces = frozenset({"heads"})
    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    chooses = True

    def __init__(
        self,
        lr: float = 0.5,
        t0: float = 1000.0,
        t1: float = 1e-8,
        cooldown: float = 2 / 3,
        pipelined: bool = False,
        straight_through: bool = False,
    ) -> None:
        if not 0 < t1 < t0:
            raise MethodError(f"expected temperatures that fall, both above 0, got {t0} and {t1}")
        if lr <= 0 or cooldown <= 0:
            raise MethodError(f"expected lr and cooldown of more than 0, got {lr} and {cooldown}")
        self.lr, self.t0, self.t1, self.cooldown = lr, t0, t1, cooldown
        self.trains_model = not pipelined
        self._hard = bool(straight_through)
        self._temperature = t0
        self._done = 0
        self._largest = 1.0
        self._schedule: Schedule | None = None

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
        self._schedule = Schedule(self.t0, self.t1, 0, end, "geometric")
        self._temperature = self._schedule(self._done)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.importance], "lr": self.lr, "weight_decay": 0.0}]

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        soft = self.model.training and not self._hard
        if soft:
            noise = gumbel(tuple(self.importance.shape), self.generator).to(self.importance)
            gates = relaxed_top_k(self.importance + noise, self.kept, self._temperature)
        else:
            (gone,) = lowest([self.importance.detach()], self.importance.numel() - self.kept)
            gates = (~gone).to(self.importance)
            if self.model.training:
                gates = straight_through(gates, self.importance)
        self._largest = float(gates.detach().max())
        for name, part in self.heads_by_site(gates).items():
            self.gates[name] = part

    def after_backward(self, step: int) -> None:
        if self.importance.grad is not None:
            averaged(self.importance.grad)

    def after_step(self, step: int) -> None:
        self._done = step + 1
        if self._schedule is not None:
            self._temperature = self._schedule(self._done)

    def figures(self) -> dict[str, float]:
        return {"temperature": self._temperature, "largest_gate": self._largest}

    def scores(self) -> Mapping[str, Tensor]:
        return self.heads_by_site(self.importance.detach())

    def state_dict(self) -> dict[str, Any]:
        return {"importance": self.importance.detach(), "done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.importance.copy_(state["importance"])
        self._done = state["done"]
        if self._schedule is not None:
            self._temperature = self._schedule(self._done)
